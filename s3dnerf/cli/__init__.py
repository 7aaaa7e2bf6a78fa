"""The command line: ``s3dnerf COMMAND``.

``tools/*.py`` are the same commands. Each command turns its options into one call of the package. Heavy modules are
imported by the command that needs them, so that help and invalid options are answered at once.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable, Sequence

from s3dnerf import __version__
from s3dnerf.cli.batch import add_batch
from s3dnerf.cli.data import add_fit_coefficients, add_prepare
from s3dnerf.cli.diagnostics import add_benchmark, add_doctor
from s3dnerf.cli.evaluation import (
    add_ablate,
    add_benchmark_manifest,
    add_benchmark_method,
    add_evaluate,
    add_score,
)
from s3dnerf.cli.motion import add_evaluate_motion
from s3dnerf.cli.publishing import add_export, add_push
from s3dnerf.cli.rendering import add_extract_motion, add_mesh, add_render
from s3dnerf.cli.serving import add_demo, add_serve
from s3dnerf.cli.training import add_train, add_train_frames, add_train_motion, add_train_sync
from s3dnerf.errors import ArgumentError, UserError
from s3dnerf.failures import explain_failures
from s3dnerf.interruption import Interrupted, raise_on_signals
from s3dnerf.options import OneLineParser


def main(words: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        words: the arguments; None for those of the program.

    Returns:
        The exit code: 0 on success, 2 for a UserError, which is printed as one line on standard error, 130 after
        Ctrl-C, and 128 + n after signal n.
    """

    def run_command() -> None:
        options, settings = build_parser().parse_known_args(sys.argv[1:] if words is None else words)
        if settings and not options.takes_settings:
            raise UserError(f"s3dnerf {options.command}", f"unexpected word {settings[0]}", "--help lists the options.")
        options.settings = settings
        options.run(options)

    return report_errors(run_command)


def report_errors(action: Callable[[], None]) -> int:
    """Run the action of a program. Errors and signals end it with one line on standard error.

    Returns:
        The exit code, as of :func:`main`.
    """
    try:
        with explain_failures(), raise_on_signals():
            action()
    except UserError as error:
        error = error.to_option() if isinstance(error, ArgumentError) else error
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
    """Return the parser of all commands. The parsed options hold the function to call in ``run``."""
    parser = OneLineParser(prog="s3dnerf", description="Generate talking-head videos from a portrait and speech.")
    parser.add_argument("--version", action="version", version=f"s3dnerf {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    add_prepare(commands)
    add_fit_coefficients(commands)
    add_train(commands)
    add_train_sync(commands)
    add_train_motion(commands)
    add_train_frames(commands)
    add_render(commands)
    add_batch(commands)
    add_extract_motion(commands)
    add_mesh(commands)
    add_serve(commands)
    add_demo(commands)
    add_evaluate(commands)
    add_score(commands)
    add_benchmark_method(commands)
    add_benchmark_manifest(commands)
    add_evaluate_motion(commands)
    add_ablate(commands)
    add_push(commands)
    add_export(commands)
    add_benchmark(commands)
    add_doctor(commands)
    return parser
