"""Ranges of options: the command line checks them when it reads its words, the library when it is called."""

from __future__ import annotations

import difflib
import math
import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from s3dnerf.errors import UserError

LARGEST_INT = 2**31 - 1
"""Counts above this overflow the 32-bit sizes of the kernels, and no machine could serve them."""
LARGEST_SEED = 2**63 - 1
"""The largest seed that both NumPy and PyTorch accept."""
LIKENESS = 0.7
"""How much alike a word and the one that was probably meant are, at least: "gpu" is not taken for "cpu"."""


@dataclass(frozen=True)
class IntRange:
    """Whole numbers from ``least`` to ``most``, of which only the even ones may be meant."""

    least: int
    most: int = LARGEST_INT
    even: bool = False
    unit: str = ""

    def require(self, name: str, value: object) -> int:
        """Return a value as an int, or raise UserError with ``name``, such as "--size", if it is out of range."""
        if isinstance(value, bool) or not hasattr(value, "__index__"):
            raise UserError(f"{name} {value!r}", "is not a whole number", f"Use {self}.")
        number = operator.index(value)
        if number < self.least:
            raise UserError(f"{name} {number}", "is too small", f"Use {self}.")
        if number > self.most:
            raise UserError(f"{name} {number}", "is too large", f"Use {self.most} or less.")
        if self.even and number % 2:
            below, above = max(number - 1, self.least), min(number + 1, self.most)
            raise UserError(f"{name} {number}", "is odd, and H.264 video has even sides", f"Use {below} or {above}.")
        return number

    def option(self, name: str) -> Callable[[str], int]:
        """Return a function that reads the word after the option ``name``, for argparse."""

        def read(word: str) -> int:
            try:
                number: object = int(word)
            except ValueError:
                raise UserError(f"{name} {word}", "is not a whole number", f"Use {self}.") from None
            return self.require(name, number)

        return read

    def __str__(self) -> str:
        kind = "an even number" if self.even else "a whole number"
        unit = f" {self.unit}" if self.unit else ""
        if self.most in (LARGEST_INT, LARGEST_SEED):
            return f"{kind} of {self.least} or more{unit}"
        return f"{kind} from {self.least} to {self.most}{unit}"


SIZE = IntRange(16, 4096, even=True, unit="pixels")
"""Side of rendered frames. The model's own are 256 or 512; larger ones only take longer to write."""
PREPARED_SIZE = IntRange(64, 2048, even=True, unit="pixels")
"""Side of prepared clips."""
WORKERS = IntRange(1, 1024)
"""Processes that prepare clips."""
SEED = IntRange(0, LARGEST_SEED)
FIT_STEPS = IntRange(0, 100_000)
FACE = IntRange(1)
"""Which face of a picture, counted from the largest."""
BATCH = IntRange(1, 4096)
"""Frames rendered at once."""
MAX_FRAMES = IntRange(5)
"""Frames of an evaluated clip: with fewer, motion cannot be measured."""
REENACTED_FRAMES = IntRange(1)
STEPS = IntRange(2, 1_000_000)
"""Training steps of a benchmark: every other one is of another kind, and both are measured."""
POINTS = IntRange(64, 2**28)
"""Points of a benchmark: the smallest case looks at 48 together."""
REPEATS = IntRange(1, 1_000_000)
FRAMES = IntRange(1, 1_000_000)


def require_number(name: str, value: object, least: float, most: float) -> float:
    """Return a value as a float, or raise UserError with ``name`` if it is no number from ``least`` to ``most``."""
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        number = math.nan
    if isinstance(value, bool) or not least <= number <= most:
        raise UserError(f"{name} {value}", "is out of range", f"Use a number from {least:g} to {most:g}.")
    return number


def require_choice(name: str, value: object, choices: Iterable[str]) -> None:
    """Raise UserError with ``name`` if a value is none of ``choices``."""
    choices = list(choices)
    if value not in choices:
        raise UserError(f"{name} {value}", "is not known", f"{suggest(value, choices)}Use {' or '.join(choices)}.")


def suggest(word: object, known: Iterable[str]) -> str:
    """Return "Did you mean ...? " with the entry of ``known`` that is most like a word, or "" if none is."""
    close = difflib.get_close_matches(str(word), list(known), n=1, cutoff=LIKENESS)
    return f"Did you mean {close[0]}? " if close else ""
