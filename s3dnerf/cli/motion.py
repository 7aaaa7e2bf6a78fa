"""The commands ``evaluate-motion`` and ``evaluate --audio-driven``."""

from __future__ import annotations

import argparse
from typing import Any

from s3dnerf import limits
from s3dnerf.cli.arguments import CHECKPOINT, add_command
from s3dnerf.errors import ArgumentError
from s3dnerf.options import OneLineParser, add_int, read_path, read_text


def run_evaluate_audio_driven(options: argparse.Namespace) -> None:
    """Run the command `evaluate --audio-driven`."""
    from s3dnerf.device import choose_device
    from s3dnerf.evaluation.audio_driven import AUDIO_DRIVEN_ROWS, EvaluatedVideos, evaluate_audio_driven
    from s3dnerf.models.sync_discriminator import load_discriminator
    from s3dnerf.pipeline import TalkingHeadPipeline

    for name in ("weights_folder", "subset", "compare"):
        if getattr(options, name):
            hint = "Leave it out, or --audio-driven."
            raise ArgumentError(name, None, "compares frames with those of the clip", hint)
    report = evaluate_audio_driven(
        EvaluatedVideos(options.clips, options.manifest, options.split, options.max_frames, options.only or ()),
        options.out,
        TalkingHeadPipeline.from_pretrained(options.checkpoint, options.device, options.fit_steps),
        load_discriminator(device=choose_device(options.device)),
        options.rows or tuple(AUDIO_DRIVEN_ROWS),
        options.seed,
        options.checkpoint,
    )
    print(report.format_markdown())


def add_evaluate_motion(commands: argparse._SubParsersAction[OneLineParser]) -> None:
    """Add the command `evaluate-motion`."""
    parser = add_command(
        commands,
        "evaluate-motion",
        run_evaluate_motion,
        "Compare head motion, blinks, brows and gaze with real ones",
        "Measures the motion of prepared clips as coefficients, without rendering, for these rows:\n"
        "  real         the motion of the clips: what all others are compared with\n"
        "  still        a head that does not move\n"
        "  idle         the motion and blinks of `render`, which do not depend on speech\n"
        "  copied       motion of another person: right statistics, no agreement with the speech\n"
        "  ridge        a linear regression from speech: agreement, but hardly any motion\n"
        "  ours         the motion of `render --pose speech`, with four seeds, and with the speech of somebody else\n"
        "  white noise, random walk  show that beat alignment rewards noise\n\n"
        "Writes motion.md (means over people with 95% intervals), motion.csv (every clip), motion.json, and in\n"
        "curves/ a plot for each clip of pitch, yaw and roll, to OUT. Clips under four seconds are left out.\n"
        "Agreement with speech and Frechet distance need real motion of other people: the split of --reference.",
        "  s3dnerf evaluate-motion --clips data/prepared --out outputs/motion\n"
        "  s3dnerf evaluate-motion --clips data/prepared --out outputs/quick --max-clips 5",
    )
    parser.add_argument("--clips", type=read_path, required=True, metavar="DIR", help="prepared clips")
    parser.add_argument("--out", type=read_path, required=True, metavar="DIR", help="folder for table and plots")
    parser.add_argument("--checkpoint", **CHECKPOINT)
    parser.add_argument("--liveliness", type=float, default=1.0, metavar="X", help="of ours, 0 to 2 (default: 1)")
    name: dict[str, Any] = {"type": read_text, "metavar": "NAME"}
    parser.add_argument("--split", **name, default="val", help="evaluated split (default: val)")
    parser.add_argument("--reference", **name, default="train", help="split of other people (default: train)")
    add_int(
        parser,
        "--max-clips",
        limits.MOTION_CLIPS,
        help="evaluate this many clips, 3 or more, of as many people as there are (default: all)",
    )
    add_int(parser, "--seed", limits.SEED, default=0, help="seed of ours, idle motion and noise, 0 or more")


def run_evaluate_motion(options: argparse.Namespace) -> None:
    """Run the command `evaluate-motion`."""
    from s3dnerf.evaluation.motion_table import evaluate_motion
    from s3dnerf.models.fd2talk.motion_diffusion import SHIPPED, load_motion_diffusion
    from s3dnerf.models.fd2talk.motion_generator import SpeechMotion

    liveliness = limits.require_number("liveliness", options.liveliness, 0.0, limits.MAX_LIVELINESS)
    model = SpeechMotion(load_motion_diffusion(options.checkpoint or SHIPPED))
    splits = options.split, options.reference
    report = evaluate_motion(options.clips, options.out, *splits, options.max_clips, model, options.seed, liveliness)
    print(report.format_markdown())
