"""The commands ``benchmark`` and ``doctor``."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from s3dnerf import limits
from s3dnerf.cli.arguments import CHECKPOINT, DEVICE, add_command
from s3dnerf.errors import UserError
from s3dnerf.options import OneLineParser, add_int, read_path

if TYPE_CHECKING:
    from s3dnerf.evaluation.benchmark import Table

STREAM_POSES = ("idle", "speech")
"""Head motions whose live sessions are measured."""


def add_benchmark(commands: argparse._SubParsersAction[OneLineParser]) -> None:
    """Add the command `benchmark`."""
    parser = add_command(
        commands,
        "benchmark",
        run_benchmark,
        "Measure the speed of this machine",
        "Times are the best of several runs; our operators and PyTorch's take turns.",
        "  s3dnerf benchmark --kernels --render\n  s3dnerf benchmark --train data/prepared --json speed.json\n"
        "  s3dnerf benchmark --stream --pose idle --seconds 3600",
    )
    parser.add_argument("--kernels", action="store_true", help="each operator against PyTorch's")
    parser.add_argument(
        "--libraries",
        action="store_true",
        help="the super-resolution network in torch.compile, onnxruntime and OpenVINO (where they are installed); with "
        "--kernels also torch.compile of each operator, which takes minutes",
    )
    parser.add_argument("--render", action="store_true", help="a whole frame, by phase")
    parser.add_argument("--stream", action="store_true", help="the latency of live sessions, at their own pace")
    parser.add_argument(
        "--pose",
        nargs="+",
        choices=STREAM_POSES,
        help="with --stream, the head motions to measure, a session each (default: both)",
    )
    add_int(
        parser,
        "--sessions",
        limits.SESSIONS,
        help="how many live sessions at once `s3dnerf serve` holds on this machine; N is the most to try",
    )
    add_int(parser, "--seconds", limits.SECONDS, default=30, help="length of a live session")
    parser.add_argument(
        "--unpaced",
        action="store_true",
        help="with --stream, feed speech as fast as frames are rendered: what long sessions lose, without latencies",
    )
    parser.add_argument(
        "--train", type=read_path, metavar="DIR", help="a training step on the prepared clips in this folder"
    )
    parser.add_argument("--json", type=read_path, metavar="FILE", help="also write the measurements to this file")
    add_int(parser, "--steps", limits.STEPS, default=50, help="training steps to make on each backend, 2 or more")
    add_int(parser, "--points", limits.POINTS, default=2**18, help="points that an operator processes, 64 or more")
    add_int(parser, "--repeats", limits.REPEATS, default=5, help="runs of each implementation")
    add_int(parser, "--frames", limits.FRAMES, default=75, help="maximum number of frames to render")
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
    """Run the requested benchmarks and print their tables."""
    from s3dnerf.evaluation.benchmark import (
        default_inputs,
        measure_kernels,
        measure_render,
        measure_sessions,
        measure_streaming,
        measure_super_resolution,
        measure_training,
        write_json,
    )
    from s3dnerf.media.files import check_output
    from s3dnerf.training.s3dnerf import S3DNeRFTrainer

    wanted = (options.kernels, options.libraries, options.render, options.stream, options.sessions, options.train)
    if not any(wanted):
        raise UserError(
            "s3dnerf benchmark",
            "has nothing to measure",
            "Name --kernels, --render, --stream, --sessions N or --train DIR.",
        )
    for argument, given in (("--unpaced", options.unpaced), ("--pose", options.pose)):
        if given and not options.stream:
            raise UserError(argument, "has no live session", "Give it with --stream.")
    if options.json:
        check_output(options.json, [options.image, options.audio], can_stream=True)
    tables = []
    if options.kernels:
        tables += show(measure_kernels(options.points, options.repeats, options.device, options.libraries))
    if options.libraries:
        with default_inputs(options.image, options.audio) as (image, audio):
            tables += show([measure_super_resolution(image, audio, options.checkpoint, options.repeats)])
    if options.render:
        given = (options.image, options.audio, options.checkpoint, options.frames, options.device)
        tables += show(measure_render(*given))
    if options.stream:
        given = (options.image, options.audio, options.checkpoint, options.seconds, options.device)
        poses = tuple(options.pose or STREAM_POSES)
        tables += show([measure_streaming(*given, poses, paced=not options.unpaced)])
    if options.sessions:
        given = (options.image, options.audio, options.checkpoint, options.seconds, options.device)
        tables += show([measure_sessions(options.sessions, *given)])
    if options.train:
        tables += show(measure_training(S3DNeRFTrainer, options.train, options.steps, device=options.device))
    if options.json:
        write_json(options.json, tables)


def add_doctor(commands: argparse._SubParsersAction[OneLineParser]) -> None:
    """Add the command `doctor`."""
    add_command(
        commands,
        "doctor",
        run_doctor,
        "Print the available backends, the chosen ones, and how to install what is missing",
        "Lists the backends of the operators, the choice for each operator (S3DNERF_BACKEND=tinycudann, cuda, cpu or\n"
        "pytorch forces one), and the tools that build them.",
    )


def run_doctor(options: argparse.Namespace) -> None:
    """Print the available backends."""
    from s3dnerf.ops.backend import diagnose

    print(diagnose())
