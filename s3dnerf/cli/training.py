"""The commands ``train``, ``train-sync``, ``train-motion`` and ``train-frames``."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

from s3dnerf.cli.arguments import add_command
from s3dnerf.errors import ArgumentError
from s3dnerf.options import OneLineParser, read_path, read_text

Settings = TypeVar("Settings")


def add_train(commands: argparse._SubParsersAction[OneLineParser]) -> None:
    """Add the command `train`."""
    parser = add_command(
        commands,
        "train",
        run_train,
        "Train on prepared clips",
        "Every setting can be given by its dotted name, such as --train.steps 1000; --help lists them all, with\n"
        "the values of the settings file. Ctrl-C saves a checkpoint, from which --resume continues.",
        "  s3dnerf train --config smoke.yaml --data.root data/own --out runs/smoke\n"
        "  s3dnerf train --config base.yaml --data.root data/own --train.learning_rate 5e-4\n"
        "  s3dnerf train --config base.yaml --data.root data/own --resume",
        takes_settings=True,
        add_help=False,
    )
    add_run_options(parser, "base.yaml")


def run_train(options: argparse.Namespace) -> None:
    """Train S3D-NeRF."""
    import cv2

    from s3dnerf.ops.backend import keep_freed_memory
    from s3dnerf.training import S3DNeRFConfig, train

    config = load_settings(options, S3DNeRFConfig)
    keep_freed_memory()
    # Set before any worker process starts: a worker that inherits OpenCV's threads deadlocks when it sets their number.
    cv2.setNumThreads(1)
    run_dir = choose_run_dir(options)
    run_training(options, partial(train, config), run_dir)


def add_train_sync(commands: argparse._SubParsersAction[OneLineParser]) -> None:
    """Add the command `train-sync`."""
    parser = add_command(
        commands,
        "train-sync",
        run_train_sync,
        "Train the lip-sync discriminator on prepared clips, or evaluate it",
        "Every setting can be given by its dotted name, such as --train.steps 1000; --help lists them all, with\n"
        "the values of the settings file.",
        "  s3dnerf train-sync --data.root data/own\n"
        "  s3dnerf train-sync --data.root data/own --evaluate val\n"
        "  s3dnerf train-sync --data.root data/own --offsets data/own/offsets.csv",
        takes_settings=True,
        add_help=False,
    )
    add_run_options(parser, "sync.yaml")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument(
        "--evaluate",
        type=read_text,
        metavar="SPLIT",
        help="do not train: print the accuracy of a discriminator on the clips of this split",
    )
    instead.add_argument(
        "--evaluate-offsets",
        type=read_text,
        metavar="SPLIT",
        help="do not train: print how often the audio offset that prepare measures is right on the clips of this split",
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
        help="write the constant offset of each training clip, found by a discriminator trained on the other half of "
        "the people",
    )


def run_train_sync(options: argparse.Namespace) -> None:
    """Train or evaluate the sync discriminator, or estimate the offsets of clips."""
    from s3dnerf.config import find_config
    from s3dnerf.evaluation.sync_discriminator import evaluate_discriminator, format_reports
    from s3dnerf.evaluation.sync_offsets import evaluate_offsets, format_offset_scores
    from s3dnerf.media.files import check_output
    from s3dnerf.models.sync_discriminator import SHIPPED, load_discriminator
    from s3dnerf.training.sync import SyncConfig, train_sync
    from s3dnerf.training.sync_offsets import write_offsets

    config = load_settings(options, SyncConfig)
    run_dir = choose_run_dir(options)
    if options.evaluate:
        model = load_discriminator(options.checkpoint or SHIPPED)
        print(format_reports(evaluate_discriminator(model, config.data.root, options.evaluate)))
    elif options.evaluate_offsets:
        model = load_discriminator(options.checkpoint or SHIPPED)
        print(format_offset_scores(evaluate_offsets(model, config.data.root, options.evaluate_offsets)))
    elif options.checkpoint:
        raise ArgumentError(
            "checkpoint", None, "is for measuring a discriminator, and this would train one", "Add --evaluate."
        )
    elif options.offsets:
        refuse_config(options, run_dir)
        check_output(options.offsets, [find_config(options.config), config.data.offsets], can_stream=True)
        write_offsets(config, run_dir, options.offsets)
    else:
        run_training(options, partial(train_sync, config), run_dir)


def add_train_motion(commands: argparse._SubParsersAction[OneLineParser]) -> None:
    """Add the command `train-motion`."""
    parser = add_command(
        commands,
        "train-motion",
        run_train_motion,
        "Train motion diffusion (FD2Talk): head motion, blinks and expression from speech",
        "Every setting can be given by its dotted name, such as --train.steps 1000; --help lists them all, with\n"
        "the values of the settings file. Ctrl-C saves a checkpoint, from which --resume continues.",
        "  s3dnerf train-motion --data.root data/own\n"
        "  s3dnerf train-motion --data.root data/own --model.layout one --out runs/one_transformer\n"
        "  s3dnerf train-motion --data.root data/own --refit s3dnerf/weights/fd2talk_motion --out models/refitted\n"
        "  s3dnerf train-motion --data.root data/own --ablate --train.steps 300 --out outputs/motion_ablation",
        takes_settings=True,
        add_help=False,
    )
    add_run_options(parser, "fd2talk_motion.yaml")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument(
        "--ablate",
        action="store_true",
        help="train and compare variants: without alignment mask, without lip expert, one transformer for both, and "
        "expression alone; finished ones in OUT are not repeated",
    )
    instead.add_argument(
        "--refit",
        type=read_text,
        metavar="DIR",
        help="do not train: fit the sampling settings of this model (a folder or a hub id) to all people of the "
        "training split, and save it in OUT",
    )


def run_train_motion(options: argparse.Namespace) -> None:
    """Train motion diffusion."""
    from s3dnerf.media.files import refuse_inputs
    from s3dnerf.training.motion import MotionConfig, train_motion

    config = load_settings(options, MotionConfig)
    run_dir = choose_run_dir(options)
    if options.ablate:
        from s3dnerf.training.motion_ablation import run_motion_ablation

        refuse_inputs(run_dir, [config.data.root])
        print(run_motion_ablation(options.config, options.settings, run_dir).format_markdown())
        return
    if options.refit:
        if options.resume or options.out is None:
            raise ArgumentError(
                "refit", None, "needs --out, and does not resume", "Name the folder of the fitted model."
            )
        from s3dnerf.training.motion_sampling import refit_sampling

        refuse_inputs(run_dir, [options.refit])
        refit_sampling(config.data, options.refit, run_dir, config.seed)
        return
    run_training(options, partial(train_motion, config), run_dir)


def add_train_frames(commands: argparse._SubParsersAction[OneLineParser]) -> None:
    """Add the command `train-frames`."""
    parser = add_command(
        commands,
        "train-frames",
        run_train_frames,
        "Train frame diffusion (FD2Talk): frames from a portrait and motion, without a radiance field",
        "Every setting can be given by its dotted name, such as --train.steps 1000; --help lists them all, with\n"
        "the values of the settings file. Ctrl-C saves a checkpoint, from which --resume continues.",
        "  s3dnerf train-frames --data.root data/own\n"
        "  s3dnerf train-frames --data.root data/own --model.start noise --model.diffusion_steps 1000 "
        "--model.sampling_steps 25 --out runs/from_noise",
        takes_settings=True,
        add_help=False,
    )
    add_run_options(parser, "fd2talk_frames.yaml")


def run_train_frames(options: argparse.Namespace) -> None:
    """Train frame diffusion."""
    from s3dnerf.ops.backend import keep_freed_memory
    from s3dnerf.training.frames import FrameConfig, train_frames

    config = load_settings(options, FrameConfig)
    keep_freed_memory()
    run_dir = choose_run_dir(options)
    run_training(options, partial(train_frames, config), run_dir)


def load_settings(options: argparse.Namespace, kind: type[Settings]) -> Settings:
    """Return the settings of a run. With ``--help``, show all of them and exit."""
    from s3dnerf.config import load_config, show_options

    config = load_config(kind, options.config, options.settings)
    if options.help:
        options.parser.print_help()
        show_options(kind, config, prog=options.parser.prog)
    return config


def choose_run_dir(options: argparse.Namespace) -> Path:
    """Return the folder of the run."""
    return options.out or Path("runs") / Path(options.config).stem


def refuse_config(options: argparse.Namespace, run_dir: Path) -> None:
    """Raise UserError if a new run would overwrite its own settings file."""
    from s3dnerf.config import find_config
    from s3dnerf.media.files import refuse_inputs

    if not options.resume:
        refuse_inputs(run_dir / "config.yaml", [find_config(options.config)])


def run_training(options: argparse.Namespace, train: Callable[..., Path], run_dir: Path) -> None:
    """Train, in one or more processes, and print the last checkpoint."""
    from s3dnerf.training.processes import is_main_process, leave_processes

    refuse_config(options, run_dir)
    with leave_processes():
        checkpoint = train(run_dir=run_dir, resume=options.resume)
        if is_main_process():
            print(f"last checkpoint: {checkpoint}")


def add_run_options(parser: OneLineParser, config: str) -> None:
    """Add the options that all training commands share; ``config`` is the default settings file."""
    parser.add_argument(
        "--config",
        type=read_text,
        default=config,
        metavar="NAME",
        help="settings file: a path, or a name in configs/",
    )
    parser.add_argument(
        "--out", type=read_path, metavar="DIR", help="folder of the run (default: runs/<name of the config>)"
    )
    parser.add_argument("--resume", action="store_true", help="continue from the last checkpoint of the run")
    parser.add_argument("-h", "--help", action="store_true", help="show this help with all settings and exit")
    parser.set_defaults(parser=parser)
