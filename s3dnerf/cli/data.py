"""The commands ``prepare`` and ``fit-coefficients``."""

from __future__ import annotations

import argparse
import sys

from s3dnerf import limits
from s3dnerf.cli.arguments import RAY, add_command
from s3dnerf.options import OneLineParser, add_int, read_path


def add_prepare(commands: argparse._SubParsersAction[OneLineParser]) -> None:
    """Add the command `prepare`."""
    parser = add_command(
        commands,
        "prepare",
        run_prepare,
        "Prepare videos for training",
        "Reads VoxCeleb2's mp4/<person>/<video>/<clip>.mp4, a flat folder (HDTF), or what a manifest names.\n"
        "Audio-video synchronization is measured unless a manifest states it (docs/data.md).\n"
        "A second run prepares only what is missing. OUT/report.json lists failures.",
        "  s3dnerf prepare --videos VoxCeleb2/dev --out data/vox --size 512 --ray 10.0.0.1:6379\n"
        "  s3dnerf prepare --videos VoxCeleb2/dev --out data/vox --size 512 --workers 8\n"
        "  s3dnerf prepare --videos clips --out data/own --manifest clips/MANIFEST.csv\n"
        "  s3dnerf prepare --videos VoxCeleb2/dev --out data/vox --size 512 --shards data/vox-shards",
    )
    parser.add_argument("--videos", type=read_path, required=True, metavar="DIR", help="folder with the videos")
    parser.add_argument("--out", type=read_path, required=True, metavar="DIR", help="folder for the prepared clips")
    parser.add_argument(
        "--manifest",
        type=read_path,
        metavar="CSV",
        help="table with one row per clip and the columns id, kind, file, identity, split, sync and notes (default: "
        "all videos are used, with one person in twenty for validation)",
    )
    add_int(
        parser,
        "--size",
        limits.PREPARED_SIZE,
        default=256,
        help="side of the prepared frames in pixels, an even number from 64 to 2048",
    )
    parser.add_argument("--ray", **RAY)
    add_int(
        parser,
        "--workers",
        limits.WORKERS,
        default=2,
        help="number of worker processes, one video each",
    )
    parser.add_argument(
        "--shards",
        type=read_path,
        metavar="DIR",
        help="folder for all prepared clips as tar shards of about 256 MB (WebDataset), which training also reads",
    )


def run_prepare(options: argparse.Namespace) -> None:
    """Prepare videos for training."""
    from s3dnerf.data.index import refresh_index
    from s3dnerf.data.prepare import prepare_videos
    from s3dnerf.data.report import check_success, format_summary
    from s3dnerf.data.shards import check_shards_folder, write_shards
    from s3dnerf.sync_embedder import load_sync_embedder

    if options.shards is not None:
        check_shards_folder(options.shards, options.out)
    report = prepare_videos(
        videos=options.videos,
        out=options.out,
        manifest=options.manifest,
        size=options.size,
        workers=options.workers,
        ray=options.ray,
        load_embedder=load_sync_embedder,
    )
    check_success(report, options.out)
    for failure in report.failed:
        print(f"{failure.video}: {failure.reason}", file=sys.stderr)
    refresh_index(options.out)
    if options.shards is not None:
        write_shards(options.out, options.shards)
    print(format_summary(report, options.out))


def add_fit_coefficients(commands: argparse._SubParsersAction[OneLineParser]) -> None:
    """Add the command `fit-coefficients`."""
    parser = add_command(
        commands,
        "fit-coefficients",
        run_fit_coefficients,
        "Fit the expression basis and the statistics of motion coefficients",
        "Uses the people of the split train, all with the same weight. Prints how well the basis describes the faces\n"
        "of train and val (docs/data.md).",
        "  s3dnerf fit-coefficients --clips data/prepared --out basis.safetensors\n"
        "  s3dnerf fit-coefficients --clips data/prepared --basis 3dmm.npz --out basis.safetensors",
    )
    parser.add_argument("--clips", type=read_path, required=True, metavar="DIR", help="prepared clips")
    parser.add_argument("--out", type=read_path, required=True, metavar="FILE", help="file to write (.safetensors)")
    parser.add_argument(
        "--basis",
        type=read_path,
        metavar="FILE",
        help="use the expression components of a 3DMM, an .npz or .safetensors file with the arrays components "
        "[K, P, 3] and mean [P, 3] (default: learn them from the clips)",
    )


def run_fit_coefficients(options: argparse.Namespace) -> None:
    """Fit the expression basis."""
    from s3dnerf.data.motion_statistics import fit_motion_basis, measure_basis
    from s3dnerf.face.expression_basis import read_3dmm_basis, save_basis
    from s3dnerf.media.files import refuse_inputs

    inputs = [] if options.basis is None else [options.basis]
    refuse_inputs(options.out, inputs)
    components = None if options.basis is None else read_3dmm_basis(options.basis)
    fit = fit_motion_basis(options.clips, components)
    save_basis(options.out, fit.basis)
    print(f"{options.out}: {fit.people} people, {fit.clips} clips, {fit.frames} frames")
    for split in ("train", "val"):
        quality = measure_basis(options.clips, split, fit.basis)
        if quality is not None:
            print(
                f"{split}, {quality.people} people: lips r {quality.lip_correlation:.4f} (least of a clip "
                f"{quality.least_lip_correlation:.4f}), brows r {quality.brow_correlation:.4f}, "
                f"{quality.unexplained:.1%} of the variance unexplained"
            )
