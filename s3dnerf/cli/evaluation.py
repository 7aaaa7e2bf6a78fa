"""The commands of evaluation: ``evaluate``, ``score``, the benchmark of methods, ``ablate``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from s3dnerf import limits
from s3dnerf.cli.arguments import CHECKPOINT, DEVICE, FIT_STEPS, MANIFEST, ONLY, SPLIT, add_command
from s3dnerf.options import OneLineParser, add_int, read_path, read_text

if TYPE_CHECKING:
    from s3dnerf.evaluation.score import RealClips
    from s3dnerf.evaluation.score_jobs import ScoreSettings


def add_evaluate(commands: argparse._SubParsersAction[OneLineParser]) -> None:
    """Add the command `evaluate`."""
    parser = add_command(
        commands,
        "evaluate",
        run_evaluate,
        "Evaluate self-reenactment on real clips",
        "Regenerates every clip from its first frame, its audio and its tracked head poses.\n"
        "Writes the videos, a table (JSON, CSV, Markdown) and a contact sheet of target above generated to OUT.\n\n"
        "--audio-driven gives only the first frame and the audio. Its rows are those of render: static, idle, speech,\n"
        "speech_next_seed (the same with the next seed), and fd2talk. It writes audio_driven.md, .csv and .json with\n"
        "lip scores over people, and videos and sheets of all rows side by side. Finished clips are not repeated.\n\n"
        "LPIPS, CSIM, FID, LSE-C and LSE-D need weights of public networks, which are not shipped; the table names\n"
        "missing files. --weights-folder names a folder with some or all of these, .safetensors as well:\n"
        "  alexnet.pth, lpips_alex.pth  LPIPS: torchvision's alexnet-owt-7be5be79, weights/v0.1/alex of lpips\n"
        "  vgg16.pth, lpips_vgg.pth     LPIPS-VGG: torchvision's vgg16-397923af, weights/v0.1/vgg of lpips\n"
        "  arcface.pth                  CSIM: backbone.pth of insightface's arcface_torch, iresnet50 or iresnet100\n"
        "  inception.pth                FID: pytorch-fid's pt_inception-2015-12-05-6726825d\n"
        "  syncnet_v2.model             LSE-C and LSE-D: syncnet_python's syncnet_v2.model",
        "  s3dnerf evaluate --clips clips --out outputs/evaluation\n"
        "  s3dnerf evaluate --clips clips --manifest clips/MANIFEST.csv --split val --out outputs/val --rows ours\n"
        "  s3dnerf evaluate --clips clips --manifest clips/MANIFEST.csv --split val --out outputs/val --rows ours "
        "--resume\n"
        "  s3dnerf evaluate --clips clips --out outputs/free --audio-driven --rows idle speech --max-frames 100\n"
        "  s3dnerf evaluate --clips clips --out outputs/new --checkpoint runs/new --compare outputs/old",
    )
    parser.add_argument("--clips", type=read_path, required=True, metavar="DIR", help="folder with mp4 files")
    parser.add_argument("--out", type=read_path, required=True, metavar="DIR", help="folder for videos and tables")
    parser.add_argument("--checkpoint", **CHECKPOINT)
    parser.add_argument("--manifest", **MANIFEST)
    parser.add_argument("--split", **SPLIT)
    add_int(
        parser,
        "--max-frames",
        limits.MAX_FRAMES,
        help="use only the first N frames of a clip, 5 or more (default: all)",
    )
    parser.add_argument(
        "--rows",
        type=read_text,
        nargs="+",
        metavar="ROW",
        help="only these rows of the table: ours, fd2talk, fd2talk_diffusion, refined, two_images, closed_eyes, "
        "closed_mouth, open_mouth, turned, open_mouth_two_images, enlarged, tracked_motion, tracked_source, "
        "frozen_mouth, frozen_pose, unmoved_portrait, ground_truth (default: all but fd2talk_diffusion and refined, "
        "which are slow, those that are given other frames than the first, enlarged and the tracked ones)",
    )
    parser.add_argument(
        "--weights-folder", type=read_path, metavar="DIR", help="weights of LPIPS, CSIM, FID and LSE, as named above"
    )
    parser.add_argument("--only", **ONLY)
    subset = "a second table of these clips or people, or of a .txt file of names"
    parser.add_argument("--subset", **(ONLY | {"help": subset}))
    parser.add_argument(
        "--compare",
        type=read_path,
        metavar="DIR",
        help="also print a comparison with the evaluation of the same clips in this output folder",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on after an interruption: clips finished with the same settings and weights are not repeated",
    )
    parser.add_argument(
        "--audio-driven", action="store_true", help="take nothing but the first frame and the audio from a clip"
    )
    add_int(parser, "--fit-steps", limits.FIT_STEPS, **FIT_STEPS)
    add_int(parser, "--seed", limits.SEED, default=0, help="seed of motion and blinks, 0 or more")
    parser.add_argument("--device", **DEVICE)


def run_evaluate(options: argparse.Namespace) -> None:
    """Run the command `evaluate`."""
    from s3dnerf.evaluation.evaluate import evaluate_clips
    from s3dnerf.evaluation.rows import DEFAULT_ROWS
    from s3dnerf.ops.backend import keep_freed_memory

    keep_freed_memory()
    if options.audio_driven:
        from s3dnerf.cli.motion import run_evaluate_audio_driven

        run_evaluate_audio_driven(options)
        return
    report = evaluate_clips(
        clips=options.clips,
        out=options.out,
        checkpoint=options.checkpoint,
        manifest=options.manifest,
        split=options.split,
        max_frames=options.max_frames,
        device=options.device,
        rows=options.rows or DEFAULT_ROWS,
        seed=options.seed,
        weights_folder=options.weights_folder,
        fit_steps=options.fit_steps,
        only=options.only or (),
        subset=options.subset or (),
        compare=options.compare,
        resume=options.resume,
    )
    for clip, reason in report.skipped.items():
        print(f"{clip}: {reason}", file=sys.stderr)
    print(report.format_summary())
    if report.missing:
        print(f"\n{report.format_missing()}")


def add_score(commands: argparse._SubParsersAction[OneLineParser]) -> None:
    """Add the command `score`."""
    parser = add_command(
        commands,
        "score",
        run_score,
        "Score talking-head videos of any method against real clips",
        "Compares every video in --generated with the real clip of the same name in --real, under the protocol\n"
        "s3dnerf-bench-1 (docs/benchmark.md). Videos of any size and frame rate are brought to 25 frames a second and\n"
        "a shorter side of 256 pixels. Lips are compared with the sound of the video itself.\n\n"
        "--task says what the videos are, and so what they can be compared with:\n"
        "  self   the first frame, the own sound and the own head poses were given: all measures\n"
        "  free   the head moves by itself: no measure that compares frames\n"
        "  cross  another person speaks: measures of the sound, the face and the video alone\n\n"
        "--crop says what of the frames is compared:\n"
        "  frame  all of it; videos must be framed as the real clips are\n"
        "  head   the square around the head, found in each video by itself: for videos in any framing\n\n"
        "Writes to OUT: scores.md (means over people with 95% intervals, differences from --against, and what each\n"
        "measure cannot see), scores.csv (every video), scores.json, contact_sheet.png and sheets/. A video that is\n"
        "missing, broken or too short is listed with its reason and stops nothing. Results are kept in OUT/clips: run\n"
        "the same command again to go on after Ctrl-C, or to add videos.\n\n"
        "Works without downloads. `pip install s3dnerf[identity]` adds the identity distance, and --weights-folder\n"
        "LPIPS, CSIM, FID and LSE (`s3dnerf evaluate --help` names the files).",
        "  s3dnerf score --generated mine --real clips --out outputs/score\n"
        "  s3dnerf score --generated mine --real clips --against theirs --manifest clips.csv --split val\n"
        "  s3dnerf score --generated mine --real clips --task free --crop head --max-frames 250",
    )
    parser.add_argument(
        "--generated", type=read_path, required=True, metavar="DIR", help="folder with the videos to score"
    )
    _add_score_options(parser, "outputs/score")


def run_score(options: argparse.Namespace) -> None:
    """Run the command `score`."""
    from s3dnerf.evaluation.score import score_videos

    arguments = options.against or (), _read_score_settings(options, options.task or "self"), options.workers
    report = score_videos(options.generated, _read_real_clips(options), options.out, *arguments)
    print(report.format_summary())
    print(f"\nscores.md in {options.out} has all measures, and what each one cannot see.")


def add_benchmark_method(commands: argparse._SubParsersAction[OneLineParser]) -> None:
    """Add the command `benchmark-method`."""
    parser = add_command(
        commands,
        "benchmark-method",
        run_benchmark_method,
        "Run a talking-head method over real clips and score it",
        "METHOD names a class, as module:Class (modules of this folder too) or path/file.py:Class:\n\n"
        "  class Mine:\n"
        "      def reenact(self, image, audio, poses): ...   # or reenact(self, image, audio)\n\n"
        "  image   uint8 [H, W, 3] RGB, the first frame of the clip\n"
        "  audio   float32 [640 T], 16 kHz, as long as the T frames\n"
        "  poses   rotation [T, 3, 3], scale [T] and center [T, 2] of the head in pixels of the image\n"
        "  returns or yields T frames uint8 [h, w, 3], 25 a second\n\n"
        "The class is made once, without arguments. With poses, --task self gives the own sound and poses of the\n"
        "clip; without poses, --task free is the default; --task cross gives the sound of another person.\n"
        "Videos are written to OUT/videos/CLASS and scored as by `s3dnerf score`. The table also has the seconds a\n"
        "frame and the peak of memory. Clips on which the method fails are listed, and OUT/errors has the traceback.\n"
        "Videos that exist are kept; --overwrite makes them again.",
        "  s3dnerf benchmark-method my_module:Mine --real clips --out outputs/mine\n"
        "  s3dnerf benchmark-method examples/benchmark_your_method.py:LandmarkWarp --real clips --max-frames 100\n"
        "  s3dnerf benchmark-method s3dnerf.evaluation.methods:S3DNeRF --real clips --against outputs/mine/videos/Mine",
    )
    parser.add_argument("method", type=read_text, metavar="METHOD", help="the class, as module:Class or file.py:Class")
    _add_score_options(parser, "outputs/benchmark")
    parser.add_argument("--overwrite", action="store_true", help="make videos again that exist already")


def run_benchmark_method(options: argparse.Namespace) -> None:
    """Run the command `benchmark-method`."""
    from s3dnerf.evaluation.benchmark_method import benchmark_method
    from s3dnerf.evaluation.methods import load_method, takes_poses

    task = options.task or ("self" if takes_poses(load_method(options.method)) else "free")
    report = benchmark_method(
        options.method,
        _read_real_clips(options),
        options.out,
        _read_score_settings(options, task),
        options.against or (),
        options.workers,
        options.overwrite,
    )
    print(f"{report.format_summary()}\n\n{report.format_costs()}")


def add_benchmark_manifest(commands: argparse._SubParsersAction[OneLineParser]) -> None:
    """Add the command `benchmark-manifest`."""
    parser = add_command(
        commands,
        "benchmark-manifest",
        run_benchmark_manifest,
        "Write the list of the real clips of a benchmark, with checksums",
        "The CSV file lists each clip with its person, number of frames, the clip whose sound drives it in --task\n"
        "cross, and its SHA-256. `score` and `benchmark-method` take it as --manifest and refuse other files, so that\n"
        "two tables with one manifest are of the same clips. Publish it with your table.",
        "  s3dnerf benchmark-manifest --real HDTF/clips --out hdtf-bench.csv\n"
        "  s3dnerf benchmark-manifest --real clips --manifest clips/MANIFEST.csv --split val --out bench.csv",
    )
    _add_real_options(parser)
    parser.add_argument("--out", type=read_path, required=True, metavar="CSV", help="the file to write")


def run_benchmark_manifest(options: argparse.Namespace) -> None:
    """Run the command `benchmark-manifest`."""
    from s3dnerf.evaluation.protocol import write_manifest
    from s3dnerf.media.files import check_output

    check_output(options.out, [options.manifest])
    real = _read_real_clips(options)
    clips = real.find()
    write_manifest(options.out, clips, real.read_manifest())
    print(f"{options.out} lists {len(clips)} clips.")


def _add_real_options(parser: OneLineParser) -> None:
    parser.add_argument("--real", type=read_path, required=True, metavar="DIR", help="folder with the real clips")
    parser.add_argument(
        "--manifest",
        type=read_path,
        metavar="CSV",
        help="table of the real clips, with the column file, and if wanted split, identity (the person), speech and "
        "sha256; without it every clip is a person of its own",
    )
    parser.add_argument("--split", **SPLIT)
    parser.add_argument("--only", **ONLY)


def _add_score_options(parser: OneLineParser, out: str) -> None:
    _add_real_options(parser)
    parser.add_argument("--out", type=read_path, default=Path(out), metavar="DIR", help="folder for the results")
    parser.add_argument(
        "--against",
        type=read_path,
        nargs="+",
        metavar="DIR",
        help="folders with other methods' videos of the same clips, scored too, with the differences",
    )
    parser.add_argument("--task", choices=("self", "free", "cross"), help="what the videos are, as named above")
    parser.add_argument(
        "--crop", choices=("frame", "head"), default="frame", help="what of the frames is compared, as for `score`"
    )
    add_int(parser, "--max-frames", limits.MAX_FRAMES, help="use only the first N frames of a clip (default: all)")
    parser.add_argument(
        "--weights-folder", type=read_path, metavar="DIR", help="weights of LPIPS, CSIM, FID and LSE, as of `evaluate`"
    )
    add_int(parser, "--workers", limits.WORKERS, default=2, help="processes that score, one thread each")
    parser.add_argument("--device", **DEVICE)


def _read_real_clips(options: argparse.Namespace) -> RealClips:
    from s3dnerf.evaluation.score import RealClips

    return RealClips(options.real, options.manifest, options.split, options.only or ())


def _read_score_settings(options: argparse.Namespace, task: str) -> ScoreSettings:
    from s3dnerf.evaluation.score_jobs import ScoreSettings

    folder = None if options.weights_folder is None else str(options.weights_folder)
    return ScoreSettings(task, options.crop, options.max_frames, folder, options.device)


def add_ablate(commands: argparse._SubParsersAction[OneLineParser]) -> None:
    """Add the command `ablate`."""
    parser = add_command(
        commands,
        "ablate",
        run_ablate,
        "Train ablations of the method and rank them against the paper",
        "Every variant is trained from scratch with the same seeds, data and steps, then evaluated as by `evaluate`.\n"
        "The table has the mean and the standard deviation over the seeds.\n"
        "  full                 the method\n"
        "  concatenation        speech concatenated to region tokens instead of cross-attention\n"
        "  without_sync         no lip-sync discriminator loss\n"
        "  whole_face           one motion code for the whole face instead of regions\n"
        "  without_deformation  no deformation by speech; the head still follows its pose\n\n"
        "Training settings for all variants can be given by their dotted names, such as --train.steps 2000.\n"
        "Finished runs in OUT are not repeated, so that seeds can be added later, and Ctrl-C loses little.",
        "  s3dnerf ablate --clips clips --manifest clips/MANIFEST.csv --split val --out outputs/ablation\n"
        "  s3dnerf ablate --clips clips --manifest clips/MANIFEST.csv --split val --out outputs/ablation \\\n"
        "      --seeds 0 1 2",
        takes_settings=True,
    )
    parser.add_argument(
        "--clips", type=read_path, required=True, metavar="DIR", help="folder with mp4 files to reenact"
    )
    parser.add_argument(
        "--out", type=read_path, required=True, metavar="DIR", help="folder for runs, videos and tables"
    )
    parser.add_argument(
        "--config",
        type=read_text,
        default="ablation.yaml",
        metavar="NAME",
        help="settings file of full: a path, or a name in configs/",
    )
    parser.add_argument("--manifest", **MANIFEST)
    parser.add_argument("--split", **SPLIT)
    parser.add_argument("--only", **ONLY)
    add_int(parser, "--max-frames", limits.MAX_FRAMES, default=100, help="use the first N frames of a clip, 5 or more")
    add_int(parser, "--seeds", limits.SEED, nargs="+", default=[0, 1], help="two or more seeds (default: 0 1)")
    parser.add_argument(
        "--variants",
        type=read_text,
        nargs="+",
        metavar="NAME",
        help="only these of the variants above (default: all)",
    )
    parser.add_argument(
        "--rank-by",
        type=read_text,
        default="lip_correlation",
        metavar="SCORE",
        help="score to rank by, such as psnr, ssim, m_lmd or sync_confidence",
    )


def run_ablate(options: argparse.Namespace) -> None:
    """Train and compare the ablation variants."""
    from s3dnerf.evaluation.ablation import Protocol, run_ablation
    from s3dnerf.training.s3dnerf import train

    protocol = Protocol(options.clips, options.manifest, options.split, options.max_frames, tuple(options.only or ()))
    report = run_ablation(
        train=train,
        config=options.config,
        settings=options.settings,
        out=options.out,
        protocol=protocol,
        seeds=options.seeds,
        variants=options.variants,
        rank_by=options.rank_by,
    )
    print(f"{report.format_table()}\n\n{report.describe_order()}")
