"""The command ``batch``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from dataclasses import fields

from s3dnerf import limits
from s3dnerf.cli.arguments import CHECKPOINT, DEVICE, FIT_STEPS, RAY, add_command
from s3dnerf.cli.rendering import (
    add_inference_settings,
    add_provenance_options,
    add_render_options,
    read_credentials,
    read_inference_settings,
    read_render_options,
)
from s3dnerf.errors import ArgumentError
from s3dnerf.options import OneLineParser, add_int, read_path
from s3dnerf.render_options import RenderOptions

FLAGS = {"yes": True, "true": True, "1": True, "no": False, "false": False, "0": False}
"""Cells of options without a value."""


def add_batch(commands: argparse._SubParsersAction[OneLineParser]) -> None:
    """Add the command `batch`."""
    parser = add_command(
        commands,
        "batch",
        run_batch,
        "Render many videos from a table",
        "The table has the columns image, audio and out, and any option of `s3dnerf render` about what a video shows,\n"
        "such as pose or turn. Empty cells have the value of the option of this command. Several images of one person\n"
        "are separated by semicolons.\n"
        "A second run renders only what is missing. Rows that fail stop no other; the exit code is then 1.",
        "  s3dnerf batch jobs.csv\n"
        "  s3dnerf batch jobs.csv --pose speech --workers 4\n"
        "  s3dnerf batch jobs.csv --ray 10.0.0.1:6379 --report report.csv",
    )
    parser.add_argument("jobs", type=read_path, metavar="CSV", help="the table of jobs")
    parser.add_argument(
        "--report", type=read_path, metavar="FILE", help="CSV file for the report (default: <jobs>_report.csv)"
    )
    parser.add_argument("--overwrite", action="store_true", help="render again what exists")
    parser.add_argument("--ray", **RAY)
    add_int(
        parser,
        "--workers",
        limits.WORKERS,
        default=1,
        help="number of processes; the processors are shared among them",
    )
    parser.add_argument(
        "--codec", choices=("h264", "hevc"), default="h264", help="codec of the videos; WebM always has VP9"
    )
    add_provenance_options(parser)
    parser.add_argument("--checkpoint", **CHECKPOINT)
    add_render_options(parser)
    add_int(parser, "--fit-steps", limits.FIT_STEPS, **FIT_STEPS)
    parser.add_argument("--device", **DEVICE)
    add_inference_settings(parser)


def run_batch(options: argparse.Namespace) -> None:
    """Render the jobs of a table, and exit with 1 if some failed."""
    import torch

    from s3dnerf.batch.jobs import read_jobs
    from s3dnerf.batch.run import run_jobs
    from s3dnerf.batch.worker import BatchSettings
    from s3dnerf.media.files import check_output
    from s3dnerf.media.watermark import check_watermark

    if options.watermark is not None:
        check_watermark(options.watermark)
    credentials = read_credentials(options)
    if credentials is not None:
        credentials.check("any.mp4")
    report_file = options.report or options.jobs.with_name(f"{options.jobs.stem}_report.csv")
    check_output(report_file, [options.jobs])
    jobs = read_jobs(options.jobs, make_row_parser(read_render_options(options)))
    settings = BatchSettings(
        checkpoint=options.checkpoint,
        device=options.device,
        fit_steps=options.fit_steps,
        settings=tuple(read_inference_settings(options).items()),
        codec=options.codec,
        watermark=options.watermark,
        credentials=credentials,
        threads=1 if options.ray else max(1, torch.get_num_threads() // options.workers),
    )
    report = run_jobs(
        jobs, report_file, settings, workers=options.workers, ray=options.ray, overwrite=options.overwrite
    )
    for job, reason in report.failed:
        print(f"{options.jobs}, line {job.line}: {reason}", file=sys.stderr)
    print(f"{options.jobs}: {report}; {report_file} lists them")
    if report.failed:
        raise SystemExit(1)


def make_row_parser(defaults: RenderOptions) -> Callable[[Mapping[str, str]], RenderOptions]:
    """Return a function that reads cells of a table as the command line reads options.

    Args:
        defaults: options of the cells that are empty.
    """
    parser = OneLineParser(prog="row", allow_abbrev=False, add_help=False)
    add_render_options(parser)
    parser.set_defaults(**{part.name: getattr(defaults, part.name) for part in fields(RenderOptions)})
    counts = {action.dest: action.nargs for action in parser._actions}

    def parse(cells: Mapping[str, str]) -> RenderOptions:
        words: list[str] = []
        for name, cell in cells.items():
            option = f"--{name.replace('_', '-')}"
            if counts[name] == 0:
                words += [option] * read_flag(name, cell)
            else:
                # Values may begin with a dash.
                words += [f"{option}={cell}"] if counts[name] is None else [option, *cell.split()]
        return read_render_options(parser.parse_args(words)).check()

    return parse


def read_flag(name: str, cell: str) -> bool:
    """Return whether a cell says yes. Raises ArgumentError if it says neither yes nor no."""
    if cell.lower() not in FLAGS:
        raise ArgumentError(name, cell, "is neither yes nor no", f"Use one of {', '.join(FLAGS)}.")
    return FLAGS[cell.lower()]
