"""Parsing of command line arguments, with errors as UserErrors that suggest the intended word."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from s3dnerf.errors import UserError
from s3dnerf.limits import IntRange, suggest
from s3dnerf.paths import check_encoding, shorten_name

NUMBER = re.compile(r"-\.?\d")
"""Start of a negative number; other words with a leading dash are options."""
MAX_NAME_LENGTH = 200
"""Bytes of a default file name before its suffix. File systems allow 255, some encrypting ones only 143."""


class OneLineParser(argparse.ArgumentParser):
    """An argument parser that raises UserError instead of printing the usage.

    Unknown options are reported before missing ones, since the missing option may be the misspelled one.
    """

    takes_settings = False
    """Whether unknown options may be settings of a training run, which are parsed elsewhere."""

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Parse as argparse does, after checking the names of the options."""
        if args is not None:
            self.check_names(args)
        return super().parse_known_args(args, namespace)

    def check_names(self, words: Sequence[str]) -> None:
        """Raise UserError for the first option that is unknown or probably misspelled."""
        known = [name for action in self._actions for name in action.option_strings]
        has_commands = any(isinstance(action, argparse._SubParsersAction) for action in self._actions)
        for word in words:
            if word == "--" or (has_commands and not word.startswith("-")):
                return
            name = word.partition("=")[0]
            if not word.startswith("-") or word == "-" or NUMBER.match(word) or name in known:
                continue
            question = suggest(f"--{name.lstrip('-')}", known)
            if self.takes_settings and ("." in name or not question):
                continue
            raise UserError(self.prog, f"unknown option {name}", f"{question}`{self.prog} --help` lists all options.")

    def error(self, message: str) -> NoReturn:
        """Raise argparse's message as a UserError."""
        raise UserError(self.prog, message, f"`{self.prog} --help` shows the options.")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        # argparse checks all choices here, including commands.
        if action.choices is None or value in action.choices:
            return
        what = "unknown command" if isinstance(action, argparse._SubParsersAction) else "invalid choice:"
        name = "" if action.metavar == "COMMAND" else f"{'/'.join(action.option_strings)}: "
        known = [str(choice) for choice in action.choices]
        hint = f"{suggest(value, known)}Choose from: {', '.join(known)}."
        raise UserError(self.prog, f"{name}{what} {value!r}", hint)


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keeps line breaks of descriptions, and shows defaults unless they are empty or part of the help text."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        silent = action.default is None or action.default is False or "(default" in (action.help or "")
        return action.help if silent else super()._get_help_string(action)


def add_int(parser: argparse.ArgumentParser, name: str, allowed: IntRange, **rest: Any) -> None:
    """Add an option for an integer within a range; ``rest`` is passed to ``add_argument``."""
    parser.add_argument(name, type=allowed.option(name), metavar="N", **rest)


def read_text(word: str) -> str:
    """Return a word, or raise argparse.ArgumentTypeError if it is empty, as unset shell variables are."""
    if not word.strip():
        raise argparse.ArgumentTypeError("is empty")
    return word


def read_path(word: str) -> Path:
    """Return a word as a Path. Raises argparse.ArgumentTypeError if it is empty, UserError if it is not UTF-8."""
    check_encoding(read_text(word))
    return Path(word)


def name_output(image: Path, audio: Path) -> Path:
    """Return the default output of a video, named after its portrait and its speech."""
    name = f"{image.stem}_{audio.stem}"
    if len(os.fsencode(name)) > MAX_NAME_LENGTH:
        name = "_".join(shorten_name(path.stem, MAX_NAME_LENGTH // 2) for path in (image, audio))
    return Path("outputs") / f"{name}.mp4"
