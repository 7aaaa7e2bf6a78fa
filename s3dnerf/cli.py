"""The command line: `s3dnerf prepare | train | train-sync | render | evaluate | ablate | benchmark | doctor`.

`tools/*.py` are the same. Each command turns its options into one call of the package. Heavy modules are imported by
the command that needs them, so that help and mistakes in the options are answered at once.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from s3dnerf import __version__, limits
from s3dnerf.errors import UserError
from s3dnerf.failures import explain_failures
from s3dnerf.interruption import Interrupted, raise_on_signals
from s3dnerf.options import HelpFormatter, OneLineParser, add_int, name_output, read_path, read_text

if TYPE_CHECKING:
    from s3dnerf.evaluation.benchmark import Table

CHECKPOINT = {
    "type": read_text,
    "metavar": "DIR",
    "help": "the model: a folder with config.json and model.safetensors, or a Hugging Face hub id such as user/model "
    "(default: the shipped weights)",
}
DEVICE = {
    "choices": ("auto", "cpu", "cuda"),
    "default": "auto",
    "help": "where to compute; auto takes the GPU where PyTorch can use one",
}
FIT_STEPS = {
    "default": 0,
    "help": "steps of optimization by which the model is first fitted to each portrait: sharper frames, for about an "
    "eighth of a second a step on two processor cores",
}
MANIFEST = {"type": read_path, "metavar": "CSV", "help": "table with the columns file and split: which clips to take"}
SPLIT = {"type": read_text, "metavar": "NAME", "help": "only clips of this split of the manifest, such as val"}


def main(words: Sequence[str] | None = None) -> int:
    """Run one command (`words`, or those the program was started with) and return the exit code.

    0: done; 2: a UserError, printed as one line on the error stream; 130: interrupted with Ctrl-C; 128 + n: ended by
    signal n.
    """
    try:
        with explain_failures(), raise_on_signals():
            options, settings = build_parser().parse_known_args(sys.argv[1:] if words is None else words)
            if settings and not options.takes_settings:
                raise UserError(
                    f"s3dnerf {options.command}", f"unexpected word {settings[0]}", "--help lists the options."
                )
            options.settings = settings
            options.run(options)
    except UserError as error:
        print(f"s3dnerf: error: {error}", file=sys.stderr)
        return 2
    except Interrupted as interruption:
        print(f"s3dnerf: ended by {signal.Signals(interruption.number).name}", file=sys.stderr)
        return 128 + interruption.number
    except KeyboardInterrupt:
        print("s3dnerf: interrupted", file=sys.stderr)
        return 130
    return 0


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands; the parsed options carry the function to call as `run`."""
    parser = OneLineParser(prog="s3dnerf", description="A portrait and a speech recording become a talking video.")
    parser.add_argument("--version", action="version", version=f"s3dnerf {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    add_prepare(commands)
    add_train(commands)
    add_train_sync(commands)
    add_render(commands)
    add_evaluate(commands)
    add_ablate(commands)
    add_benchmark(commands)
    add_doctor(commands)
    return parser


def add_command(
    commands: argparse._SubParsersAction,
    name: str,
    run: Callable[[argparse.Namespace], None],
    summary: str,
    details: str = "",
    examples: str = "",
    takes_settings: bool = False,
    add_help: bool = True,
) -> OneLineParser:
    """Add one command, whose options will be handed to `run`; `examples` are shown at the end of its help."""
    parser = commands.add_parser(
        name,
        help=summary,
        description=f"{summary}.\n{details}",
        epilog=f"examples:\n{examples}" if examples else None,
        formatter_class=HelpFormatter,
        allow_abbrev=False,
        add_help=add_help,
    )
    parser.takes_settings = takes_settings
    parser.set_defaults(run=run, takes_settings=takes_settings)
    return parser


def add_prepare(commands: argparse._SubParsersAction) -> None:
    parser = add_command(
        commands,
        "prepare",
        run_prepare,
        "Turn a tree of videos into prepared clips for training",
        "Reads VoxCeleb2's mp4/<person>/<video>/<clip>.mp4, a flat folder (HDTF), or what a manifest names.\n"
        "Whether sound and picture are in step is measured where no manifest says so (docs/data.md).\n"
        "A second run does only what is missing; what failed is listed in OUT/report.json.",
        "  s3dnerf prepare --videos VoxCeleb2/dev --out data/vox --size 512 --workers 8\n"
        "  s3dnerf prepare --videos clips --out data/own --manifest clips/MANIFEST.csv",
    )
    parser.add_argument("--videos", type=read_path, required=True, metavar="DIR", help="folder with the videos")
    parser.add_argument("--out", type=read_path, required=True, metavar="DIR", help="folder for the prepared clips")
    parser.add_argument(
        "--manifest",
        type=read_path,
        metavar="CSV",
        help="table with the columns id, kind, file, identity, split, sync and notes, a row for each clip (default: "
        "every video is taken, and one person in twenty is set aside for validation)",
    )
    add_int(
        parser,
        "--size",
        limits.PREPARED_SIZE,
        default=256,
        help="side of the prepared frames in pixels, an even number from 64 to 2048",
    )
    add_int(parser, "--workers", limits.WORKERS, default=2, help="videos prepared at once, a process each")


def run_prepare(options: argparse.Namespace) -> None:
    from s3dnerf.data.prepare import prepare_videos
    from s3dnerf.data.report import check_success, format_summary
    from s3dnerf.sync_embedder import load_sync_embedder

    report = prepare_videos(
        videos=options.videos,
        out=options.out,
        manifest=options.manifest,
        size=options.size,
        workers=options.workers,
        load_embedder=load_sync_embedder,
    )
    check_success(report, options.out)
    for failure in report.failed:
        print(f"{failure.video}: {failure.reason}", file=sys.stderr)
    print(format_summary(report, options.out))


def add_train(commands: argparse._SubParsersAction) -> None:
    parser = add_command(
        commands,
        "train",
        run_train,
        "Train on prepared clips",
        "Every setting can be given by its dotted name, such as --train.steps 1000; --help lists them all, with\n"
        "the values of the settings file. Ctrl-C saves a checkpoint, and --resume goes on from it.",
        "  s3dnerf train --config smoke.yaml --data.root data/own --out runs/smoke\n"
        "  s3dnerf train --config base.yaml --data.root data/own --train.learning_rate 5e-4\n"
        "  s3dnerf train --config base.yaml --data.root data/own --resume",
        takes_settings=True,
        add_help=False,
    )
    parser.add_argument(
        "--config",
        type=read_text,
        default="base.yaml",
        metavar="NAME",
        help="settings file: a path, or a name in configs/",
    )
    parser.add_argument(
        "--out", type=read_path, metavar="DIR", help="folder of the run (default: runs/<name of the config>)"
    )
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint in the folder of the run")
    parser.add_argument("-h", "--help", action="store_true", help="show this help with all settings and leave")
    parser.set_defaults(parser=parser)


def run_train(options: argparse.Namespace) -> None:
    import cv2

    from s3dnerf.config import find_config, load_config, show_options
    from s3dnerf.media.files import refuse_inputs
    from s3dnerf.ops.backend import keep_freed_memory
    from s3dnerf.training import S3DNeRFConfig, train

    config = load_config(S3DNeRFConfig, options.config, options.settings)
    if options.help:
        options.parser.print_help()
        show_options(S3DNeRFConfig, config, prog=options.parser.prog)
    keep_freed_memory()
    # Before any worker process: one that inherits OpenCV's threads waits forever when it changes their number.
    cv2.setNumThreads(1)
    run_dir = options.out or Path("runs") / Path(options.config).stem
    if not options.resume:
        refuse_inputs(run_dir / "config.yaml", [find_config(options.config)])
    checkpoint = train(config, run_dir=run_dir, resume=options.resume)
    print(f"last checkpoint: {checkpoint}")


def add_train_sync(commands: argparse._SubParsersAction) -> None:
    parser = add_command(
        commands,
        "train-sync",
        run_train_sync,
        "Train the lip-sync discriminator on prepared clips, or measure it",
        "Every setting can be given by its dotted name, such as --train.steps 1000; --help lists them all, with\n"
        "the values of the settings file.",
        "  s3dnerf train-sync --data.root data/own\n"
        "  s3dnerf train-sync --data.root data/own --evaluate val\n"
        "  s3dnerf train-sync --data.root data/own --offsets data/own/offsets.csv",
        takes_settings=True,
        add_help=False,
    )
    parser.add_argument(
        "--config",
        type=read_text,
        default="sync.yaml",
        metavar="NAME",
        help="settings file: a path, or a name in configs/",
    )
    parser.add_argument(
        "--out", type=read_path, metavar="DIR", help="folder of the run (default: runs/<name of the config>)"
    )
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint in the folder of the run")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument(
        "--evaluate",
        type=read_text,
        metavar="SPLIT",
        help="train nothing: print how well a discriminator does on clips of this split",
    )
    instead.add_argument(
        "--evaluate-offsets",
        type=read_text,
        metavar="SPLIT",
        help="train nothing: print how often the sound offset that prepare measures is right on clips of this split",
    )
    parser.add_argument(
        "--checkpoint",
        type=read_text,
        metavar="DIR",
        help="the discriminator to evaluate: a folder or a hub id (default: the shipped weights)",
    )
    instead.add_argument(
        "--offsets",
        type=read_path,
        metavar="FILE",
        help="write the constant offset of each training clip, found by one trained on the other half of the people",
    )
    parser.add_argument("-h", "--help", action="store_true", help="show this help with all settings and leave")
    parser.set_defaults(parser=parser)


def run_train_sync(options: argparse.Namespace) -> None:
    from s3dnerf.config import find_config, load_config, show_options
    from s3dnerf.evaluation.lip_sync import evaluate_discriminator, format_reports, write_offsets
    from s3dnerf.evaluation.sync_offset import evaluate_offsets, format_offset_scores
    from s3dnerf.media.files import check_output, refuse_inputs
    from s3dnerf.models.sync_discriminator import SHIPPED, load_discriminator
    from s3dnerf.training.sync import SyncConfig, train_sync

    config = load_config(SyncConfig, options.config, options.settings)
    if options.help:
        options.parser.print_help()
        show_options(SyncConfig, config, prog=options.parser.prog)
    run_dir = options.out or Path("runs") / Path(options.config).stem
    if not (options.resume or options.evaluate):
        refuse_inputs(run_dir / "config.yaml", [find_config(options.config)])
    if options.evaluate:
        model = load_discriminator(options.checkpoint or SHIPPED)
        print(format_reports(evaluate_discriminator(model, config.data.root, options.evaluate)))
    elif options.evaluate_offsets:
        model = load_discriminator(options.checkpoint or SHIPPED)
        print(format_offset_scores(evaluate_offsets(model, config.data.root, options.evaluate_offsets)))
    elif options.checkpoint:
        raise UserError("--checkpoint", "is for measuring a discriminator, and this would train one", "Add --evaluate.")
    elif options.offsets:
        check_output(options.offsets, [find_config(options.config), config.data.offsets], can_stream=True)
        write_offsets(config, run_dir, options.offsets)
    else:
        print(f"last checkpoint: {train_sync(config, run_dir=run_dir, resume=options.resume)}")


def add_render(commands: argparse._SubParsersAction) -> None:
    parser = add_command(
        commands,
        "render",
        run_render,
        "Let a portrait say a speech recording",
        "The portrait is any picture with a visible face, the speech any sound or video file of any length.\n"
        "Writes an mp4 with 25 frames a second and the speech as its sound.",
        "  s3dnerf render --image portrait.png --audio speech.wav --out talking.mp4\n"
        "  s3dnerf render --image portrait.png --audio speech.wav --turn -20 5 --background green\n"
        "  s3dnerf render --image group.jpg --audio speech.mp3 --face 2 --framing picture --pose nodding.mp4",
    )
    parser.add_argument("--image", type=read_path, required=True, metavar="FILE", help="the portrait: PNG, JPEG, WebP")
    parser.add_argument(
        "--audio", type=read_path, required=True, metavar="FILE", help="the speech: a sound or video file"
    )
    parser.add_argument(
        "--out",
        type=read_path,
        metavar="FILE",
        help="the video to write (default: outputs/<image>_<audio>.mp4)",
    )
    parser.add_argument("--checkpoint", **CHECKPOINT)
    add_int(
        parser,
        "--size",
        limits.SIZE,
        help="side of the square around the head in pixels, an even number from 16 to 4096 (default: the model's own, "
        "256 for the shipped weights); without effect where --framing picture keeps the size of the picture",
    )
    parser.add_argument(
        "--framing",
        choices=("crop", "picture"),
        default="crop",
        help="the square around the head, or the whole picture with the head put back into it",
    )
    parser.add_argument(
        "--pose",
        type=read_text,
        default="idle",
        metavar="POSE",
        help="head motion: static keeps the head still, idle sways a little, a video file gives its own motion",
    )
    parser.add_argument(
        "--turn",
        type=float,
        nargs=2,
        default=(0.0, 0.0),
        metavar=("RIGHT", "UP"),
        help="see the head from another side: degrees by which it is turned to your right and up, -40 to 40 each "
        "(default: 0 0)",
    )
    parser.add_argument("--blink", choices=("auto", "off"), default="auto", help="blink now and then, or never")
    parser.add_argument(
        "--background",
        type=read_text,
        default="keep",
        metavar="COLOR",
        help="keep the picture's background, which stands still, or replace it by a color such as green or #00ff00",
    )
    add_int(parser, "--face", limits.FACE, help="which face of several; 1 is the largest (default: the largest)")
    add_int(parser, "--fit-steps", limits.FIT_STEPS, **FIT_STEPS)
    add_int(parser, "--seed", limits.SEED, default=0, help="seed of idle motion and blinks, 0 or more")
    parser.add_argument(
        "--start", type=read_path, metavar="FILE", help="go on from the end state of another video (JSON)"
    )
    parser.add_argument("--end", type=read_path, metavar="FILE", help="write the end state for the next video (JSON)")
    parser.add_argument("--device", **DEVICE)


def run_render(options: argparse.Namespace) -> None:
    from s3dnerf.ops.backend import keep_freed_memory
    from s3dnerf.pipeline import render

    keep_freed_memory()
    render(
        image=options.image,
        audio=options.audio,
        out=options.out or name_output(options.image, options.audio),
        checkpoint=options.checkpoint,
        size=options.size,
        pose=options.pose,
        turn=tuple(options.turn),
        blink=options.blink,
        background=options.background,
        framing=options.framing,
        seed=options.seed,
        device=options.device,
        face=options.face,
        fit_steps=options.fit_steps,
        start=options.start,
        end=options.end,
    )


def add_evaluate(commands: argparse._SubParsersAction) -> None:
    parser = add_command(
        commands,
        "evaluate",
        run_evaluate,
        "Measure self-reenactment on real clips",
        "For every clip: its first frame, its own sound and its tracked head poses in, the clip out.\n"
        "Writes the videos, a table (JSON, CSV, Markdown) and a contact sheet of real above ours to OUT.\n\n"
        "LPIPS, CSIM, FID, LSE-C and LSE-D need weights of public networks, which are not ours to ship; the table\n"
        "says which file is missing. --weights-folder names a folder with some or all of these, .safetensors as well:\n"
        "  alexnet.pth, lpips_alex.pth  LPIPS: torchvision's alexnet-owt-7be5be79, weights/v0.1/alex of lpips\n"
        "  vgg16.pth, lpips_vgg.pth     LPIPS-VGG: torchvision's vgg16-397923af, weights/v0.1/vgg of lpips\n"
        "  arcface.pth                  CSIM: backbone.pth of insightface's arcface_torch, iresnet50 or iresnet100\n"
        "  inception.pth                FID: pytorch-fid's pt_inception-2015-12-05-6726825d\n"
        "  syncnet_v2.model             LSE-C and LSE-D: syncnet_python's syncnet_v2.model",
        "  s3dnerf evaluate --clips clips --out outputs/evaluation\n"
        "  s3dnerf evaluate --clips clips --manifest clips/MANIFEST.csv --split val --out outputs/val --rows ours",
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
        help="only the first N frames of a clip, 5 or more (default: all of them)",
    )
    parser.add_argument(
        "--rows",
        type=read_text,
        nargs="+",
        metavar="ROW",
        help="only these rows of the table: ours, frozen_mouth, frozen_pose, unmoved_portrait, ground_truth "
        "(default: all of them)",
    )
    parser.add_argument(
        "--weights-folder", type=read_path, metavar="DIR", help="weights of LPIPS, CSIM, FID and LSE, as named above"
    )
    add_int(parser, "--fit-steps", limits.FIT_STEPS, **FIT_STEPS)
    add_int(parser, "--seed", limits.SEED, default=0, help="seed of the blinks, 0 or more")
    parser.add_argument("--device", **DEVICE)


def run_evaluate(options: argparse.Namespace) -> None:
    from s3dnerf.evaluation.evaluate import ROWS, evaluate_clips
    from s3dnerf.ops.backend import keep_freed_memory

    keep_freed_memory()
    report = evaluate_clips(
        clips=options.clips,
        out=options.out,
        checkpoint=options.checkpoint,
        manifest=options.manifest,
        split=options.split,
        max_frames=options.max_frames,
        device=options.device,
        rows=options.rows or ROWS,
        seed=options.seed,
        weights_folder=options.weights_folder,
        fit_steps=options.fit_steps,
    )
    for clip, reason in report.skipped.items():
        print(f"{clip}: {reason}", file=sys.stderr)
    print(report.format_table())
    print(f"\n{report.format_gain_spread()}")
    if report.missing:
        print(f"\n{report.format_missing()}")


def add_ablate(commands: argparse._SubParsersAction) -> None:
    parser = add_command(
        commands,
        "ablate",
        run_ablate,
        "Train the method and what is left of it without its parts, and rank them beside the paper",
        "Every variant is trained from scratch with the same seeds, data and steps, then reenacts the clips as in\n"
        "`evaluate`. The table has mean and spread (standard deviation) over the seeds.\n"
        "  full                 the method\n"
        "  concatenation        speech concatenated to region tokens instead of cross-attention\n"
        "  without_sync         no loss of the lip-sync discriminator\n"
        "  whole_face           one motion code moves the whole face: no regions\n"
        "  without_deformation  speech moves nothing; the head still follows its pose\n\n"
        "Settings of training may follow by their dotted names and hold for all variants, such as --train.steps 2000.\n"
        "What is finished in OUT is not done again, so that more seeds can be added later, and Ctrl-C loses little.",
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
    add_int(parser, "--max-frames", limits.MAX_FRAMES, default=100, help="only the first N frames of a clip, 5 or more")
    add_int(parser, "--seeds", limits.SEED, nargs="+", default=[0, 1], help="two or more seeds (default: 0 1)")
    parser.add_argument(
        "--variants",
        type=read_text,
        nargs="+",
        metavar="NAME",
        help="only these of the variants above (default: all of them)",
    )
    parser.add_argument(
        "--rank-by",
        type=read_text,
        default="lip_correlation",
        metavar="SCORE",
        help="score to rank by, such as psnr, ssim, m_lmd or sync_confidence",
    )


def run_ablate(options: argparse.Namespace) -> None:
    from s3dnerf.evaluation.ablation import Protocol, run_ablation

    protocol = Protocol(options.clips, options.manifest, options.split, options.max_frames)
    report = run_ablation(
        config=options.config,
        settings=options.settings,
        out=options.out,
        protocol=protocol,
        seeds=options.seeds,
        variants=options.variants,
        rank_by=options.rank_by,
    )
    print(f"{report.format_table()}\n\n{report.judge_order()}")


def add_benchmark(commands: argparse._SubParsersAction) -> None:
    parser = add_command(
        commands,
        "benchmark",
        run_benchmark,
        "Measure speed on this machine",
        "Every figure is the best of some runs; ours and PyTorch's own operators take turns.",
        "  s3dnerf benchmark --kernels --render\n  s3dnerf benchmark --train data/prepared --json speed.json",
    )
    parser.add_argument("--kernels", action="store_true", help="each operator against PyTorch's own")
    parser.add_argument("--render", action="store_true", help="a whole frame, phase by phase")
    parser.add_argument(
        "--train", type=read_path, metavar="DIR", help="a training step, on the prepared clips in this folder"
    )
    parser.add_argument("--json", type=read_path, metavar="FILE", help="write the figures to this file too")
    add_int(parser, "--steps", limits.STEPS, default=50, help="training steps to make on each backend, 2 or more")
    add_int(parser, "--points", limits.POINTS, default=2**18, help="points an operator works on, 64 or more")
    add_int(parser, "--repeats", limits.REPEATS, default=5, help="runs of each operator")
    add_int(parser, "--frames", limits.FRAMES, default=75, help="frames to render, at most")
    parser.add_argument(
        "--image", type=read_path, metavar="FILE", help="portrait to render (default: a public-domain one)"
    )
    parser.add_argument(
        "--audio", type=read_path, metavar="FILE", help="speech to render (default: the shipped sentence)"
    )
    parser.add_argument("--checkpoint", **CHECKPOINT)
    parser.add_argument("--device", **DEVICE)


def show(tables: list[Table]) -> list[Table]:
    """Print tables and return them."""
    for table in tables:
        print(table.format(), flush=True)
    return tables


def run_benchmark(options: argparse.Namespace) -> None:
    from s3dnerf.evaluation.benchmark import measure_kernels, measure_render, write_json
    from s3dnerf.evaluation.training_speed import measure_training
    from s3dnerf.media.files import check_output

    if not (options.kernels or options.render or options.train):
        raise UserError("s3dnerf benchmark", "has nothing to measure", "Name --kernels, --render or --train DIR.")
    if options.json:
        check_output(options.json, [options.image, options.audio], can_stream=True)
    tables = []
    if options.kernels:
        tables += show([measure_kernels(options.points, options.repeats, options.device)])
    if options.render:
        given = (options.image, options.audio, options.checkpoint, options.frames, options.device)
        tables += show(measure_render(*given))
    if options.train:
        tables += show(measure_training(options.train, options.steps, device=options.device))
    if options.json:
        write_json(options.json, tables)


def add_doctor(commands: argparse._SubParsersAction) -> None:
    add_command(
        commands,
        "doctor",
        run_doctor,
        "Print what this machine offers, what was chosen, and how to add what is missing",
        "Lists the backends that can compute the operators, the one chosen for each (S3DNERF_BACKEND=tinycudann,\n"
        "cuda, cpu or pytorch forces one), and the tools that build them.",
    )


def run_doctor(options: argparse.Namespace) -> None:
    from s3dnerf.ops.backend import diagnose

    print(diagnose())
