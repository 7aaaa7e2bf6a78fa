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
from typing import TYPE_CHECKING, NoReturn

from s3dnerf import __version__
from s3dnerf.errors import UserError
from s3dnerf.interruption import Interrupted, raise_on_signals

if TYPE_CHECKING:
    from s3dnerf.evaluation.benchmark import Table

DEVICES = ("auto", "cpu", "cuda")
FIT_STEPS = {
    "type": int,
    "default": 0,
    "metavar": "N",
    "help": "steps by which the portrait is first fitted to its photograph",
}


def main(words: Sequence[str] | None = None) -> int:
    """Run one command (`words`, or those the program was started with) and return the exit code.

    0: done; 2: a UserError, printed as one line on the error stream; 130: interrupted with Ctrl-C; 128 + n: ended by
    signal n.
    """
    try:
        options, settings = build_parser().parse_known_args(words)
        if settings and options.command not in ("train", "train-sync", "ablate"):
            raise UserError(f"s3dnerf {options.command}", f"unknown option {settings[0]}", "--help lists them.")
        options.settings = settings
        with raise_on_signals():
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


class OneLineParser(argparse.ArgumentParser):
    """An argument parser whose complaints are UserErrors instead of a page of usage."""

    def error(self, message: str) -> NoReturn:
        raise UserError(self.prog, message, f"`{self.prog} --help` shows the options.")


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keeps the lines of descriptions; shows defaults, but not those that say nothing."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        silent = action.default is None or action.default is False
        return action.help if silent else super()._get_help_string(action)


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
    add_help: bool = True,
) -> argparse.ArgumentParser:
    """Add one command, whose options will be handed to `run`."""
    parser = commands.add_parser(
        name,
        help=summary,
        description=f"{summary}.\n{details}",
        formatter_class=HelpFormatter,
        allow_abbrev=False,
        add_help=add_help,
    )
    parser.set_defaults(run=run)
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
    )
    parser.add_argument("--videos", type=Path, required=True, metavar="DIR", help="folder with the videos")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the prepared clips")
    parser.add_argument(
        "--manifest", type=Path, metavar="CSV", help="table with id, person, split and sync of each clip"
    )
    parser.add_argument("--size", type=int, default=256, help="side of the prepared frames in pixels")
    parser.add_argument("--workers", type=int, default=2, help="processes at work at once")


def run_prepare(options: argparse.Namespace) -> None:
    from s3dnerf.data.prepare import prepare_videos
    from s3dnerf.data.report import check_success, format_summary

    report = prepare_videos(
        videos=options.videos,
        out=options.out,
        manifest=options.manifest,
        size=options.size,
        workers=options.workers,
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
        "Every setting can be given by its dotted name, such as --train.steps 1000; --help lists them all.",
        add_help=False,
    )
    parser.add_argument("--config", default="base.yaml", metavar="NAME", help="settings: a path, or a name in configs/")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="folder of the run (default: runs/<name of the config>)"
    )
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint in the folder of the run")
    parser.add_argument("-h", "--help", action="store_true", help="show this help with all settings and leave")
    parser.set_defaults(parser=parser)


def run_train(options: argparse.Namespace) -> None:
    import cv2

    from s3dnerf.backend import keep_freed_memory
    from s3dnerf.config import find_config, load_config, show_options
    from s3dnerf.media.files import refuse_inputs
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
        "Every setting can be given by its dotted name, such as --train.steps 1000; --help lists them all.",
        add_help=False,
    )
    parser.add_argument("--config", default="sync.yaml", metavar="NAME", help="settings: a path, or a name in configs/")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="folder of the run (default: runs/<name of the config>)"
    )
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint in the folder of the run")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument(
        "--evaluate", metavar="SPLIT", help="train nothing: print how well a discriminator does on clips of this split"
    )
    instead.add_argument(
        "--evaluate-offsets",
        metavar="SPLIT",
        help="train nothing: print how often the sound offset that prepare measures is right on clips of this split",
    )
    parser.add_argument(
        "--checkpoint", metavar="DIR", help="the one to evaluate (default: the weights that ship with the package)"
    )
    instead.add_argument(
        "--offsets",
        type=Path,
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
    from s3dnerf.models.lip_sync import SHIPPED, load_discriminator
    from s3dnerf.training.lip_sync import SyncConfig, train_sync

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
    elif options.offsets:
        check_output(options.offsets, [find_config(options.config), config.data.offsets], can_stream=True)
        write_offsets(config, run_dir, options.offsets)
    else:
        print(f"last checkpoint: {train_sync(config, run_dir=run_dir, resume=options.resume)}")


def add_render(commands: argparse._SubParsersAction) -> None:
    parser = add_command(commands, "render", run_render, "Let a portrait say a speech recording")
    parser.add_argument("--image", type=Path, required=True, metavar="FILE", help="the portrait")
    parser.add_argument("--audio", type=Path, required=True, metavar="FILE", help="the speech: any sound or video file")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the video (default: outputs/<image>_<audio>.mp4)")
    parser.add_argument(
        "--checkpoint", metavar="DIR", help="folder or hub id of a model (default: the shipped weights)"
    )
    parser.add_argument("--size", type=int, metavar="N", help="side of the frames in pixels (default: the model's own)")
    parser.add_argument(
        "--framing",
        choices=("crop", "picture"),
        default="crop",
        help="the square around the head, or the whole picture with the head put back into it",
    )
    parser.add_argument("--pose", default="idle", help="head motion: static, idle, or a video to take it from")
    parser.add_argument(
        "--turn",
        type=float,
        nargs=2,
        default=(0.0, 0.0),
        metavar=("RIGHT", "UP"),
        help="see the head from another side: degrees by which it is turned to your right and up, -40 to 40",
    )
    parser.add_argument("--blink", choices=("auto", "off"), default="auto", help="blink now and then, or never")
    parser.add_argument(
        "--background",
        default="keep",
        metavar="COLOR",
        help="keep the picture's own, which stands still, or a color that replaces it, such as green or #00ff00",
    )
    parser.add_argument("--face", type=int, metavar="N", help="which face, 1 is the largest (default: the largest)")
    parser.add_argument("--fit-steps", **FIT_STEPS)
    parser.add_argument("--seed", type=int, default=0, help="seed of idle motion and blinks")
    parser.add_argument("--device", choices=DEVICES, default="auto", help="where to compute")


def run_render(options: argparse.Namespace) -> None:
    from s3dnerf.backend import keep_freed_memory
    from s3dnerf.pipeline import render

    keep_freed_memory()
    render(
        image=options.image,
        audio=options.audio,
        out=options.out or Path("outputs") / f"{options.image.stem}_{options.audio.stem}.mp4",
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
    )
    parser.add_argument("--clips", type=Path, required=True, metavar="DIR", help="folder with mp4 files")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for videos and tables")
    parser.add_argument(
        "--checkpoint", metavar="DIR", help="folder or hub id of a model (default: the shipped weights)"
    )
    parser.add_argument("--manifest", type=Path, metavar="CSV", help="table with the split of each clip")
    parser.add_argument("--split", help="only clips of this split of the manifest")
    parser.add_argument("--max-frames", type=int, metavar="N", help="only the first N frames of a clip")
    parser.add_argument("--rows", nargs="+", metavar="ROW", help="only these rows of the table, such as ours")
    parser.add_argument(
        "--weights-folder", type=Path, metavar="DIR", help="weights of LPIPS, CSIM, FID and LSE, as named above"
    )
    parser.add_argument("--fit-steps", **FIT_STEPS)
    parser.add_argument("--seed", type=int, default=0, help="seed of the blinks")
    parser.add_argument("--device", choices=DEVICES, default="auto", help="where to compute")


def run_evaluate(options: argparse.Namespace) -> None:
    from s3dnerf.backend import keep_freed_memory
    from s3dnerf.evaluation.evaluate import ROWS, evaluate_clips

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
        "What is finished in OUT is not done again, so that more seeds can be added later, and Ctrl-C loses little:\n"
        "  python tools/ablate.py --clips clips --manifest clips/MANIFEST.csv --split val --out outputs/ablation\n"
        "  python tools/ablate.py --clips clips --manifest clips/MANIFEST.csv --split val --out outputs/ablation \\\n"
        "      --seeds 0 1 2",
    )
    parser.add_argument("--clips", type=Path, required=True, metavar="DIR", help="folder with mp4 files to reenact")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for runs, videos and tables")
    parser.add_argument(
        "--config", default="ablation.yaml", metavar="NAME", help="settings of full: a path, or a name in configs/"
    )
    parser.add_argument("--manifest", type=Path, metavar="CSV", help="table with the split of each clip")
    parser.add_argument("--split", help="only clips of this split of the manifest")
    parser.add_argument("--max-frames", type=int, default=100, metavar="N", help="only the first N frames of a clip")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], metavar="N", help="seeds, two or more")
    parser.add_argument("--variants", nargs="+", metavar="NAME", help="only these (default: all)")
    parser.add_argument("--rank-by", default="lip_correlation", metavar="SCORE", help="score to rank by")


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
    )
    parser.add_argument("--kernels", action="store_true", help="each operator against PyTorch's own")
    parser.add_argument("--render", action="store_true", help="a whole frame, phase by phase")
    parser.add_argument("--train", type=Path, metavar="DIR", help="a training step, on the prepared clips in DIR")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here too")
    parser.add_argument("--steps", type=int, default=50, help="training steps to make on each backend")
    parser.add_argument("--points", type=int, default=2**18, help="points an operator works on")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each operator")
    parser.add_argument("--frames", type=int, default=75, help="frames to render, at most")
    parser.add_argument("--image", type=Path, metavar="FILE", help="portrait to render (default: a public-domain one)")
    parser.add_argument("--audio", type=Path, metavar="FILE", help="speech to render (default: the shipped sentence)")
    parser.add_argument(
        "--checkpoint", metavar="DIR", help="folder or hub id of a model (default: the shipped weights)"
    )
    parser.add_argument("--device", choices=DEVICES, default="auto", help="where to compute")


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
    )


def run_doctor(options: argparse.Namespace) -> None:
    from s3dnerf.backend import diagnose

    print(diagnose())
