"""Options that several commands share."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from s3dnerf.options import HelpFormatter, OneLineParser, read_path, read_text

CHECKPOINT: dict[str, Any] = {
    "type": read_text,
    "metavar": "DIR",
    "help": "the model: a folder with config.json and model.safetensors, or a Hugging Face hub id such as user/model "
    "(default: the shipped weights)",
}
DEVICE: dict[str, Any] = {
    "choices": ("auto", "cpu", "cuda", "mps"),
    "default": "auto",
    "help": "device to run on; auto selects the GPU if PyTorch can use one",
}
FIT_STEPS: dict[str, Any] = {
    "default": 0,
    "help": "optimization steps that first fit the model to each portrait: sharper frames, for about an eighth of a "
    "second per step on two CPU cores",
}
MANIFEST: dict[str, Any] = {
    "type": read_path,
    "metavar": "CSV",
    "help": "table of the clips to use, with the columns file and split",
}
RAY: dict[str, Any] = {
    "type": read_text,
    "metavar": "ADDRESS",
    "help": "use the processors of a Ray cluster at HOST:PORT (or auto); local starts one on this machine with "
    "--workers processes (default: plain processes of this machine)",
}
SPLIT: dict[str, Any] = {
    "type": read_text,
    "metavar": "NAME",
    "help": "use only the clips of this split of the manifest, such as val",
}
ONLY: dict[str, Any] = {
    "type": read_text,
    "nargs": "+",
    "metavar": "NAME",
    "help": "only these clips or people (identity in the manifest), or a .txt file of names",
}


def add_command(
    commands: argparse._SubParsersAction[OneLineParser],
    name: str,
    run: Callable[[argparse.Namespace], None],
    summary: str,
    details: str = "",
    examples: str = "",
    takes_settings: bool = False,
    add_help: bool = True,
) -> OneLineParser:
    """Add a command.

    Args:
        commands: where to add it.
        name: of the command.
        run: called with the parsed options.
        summary: one line of help.
        details: further help.
        examples: shown at the end of the help.
        takes_settings: whether unknown options are settings of a training run.
        add_help: whether argparse adds ``--help``.
    """
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
