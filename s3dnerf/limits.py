"""Ranges of options, checked both by the command line (when parsing) and by the library (when called)."""

from __future__ import annotations

import difflib
import math
import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from s3dnerf.errors import ArgumentError

MAX_INT = 2**31 - 1
"""Larger counts overflow the 32-bit sizes of the kernels."""
MAX_SEED = 2**63 - 1
"""The largest seed that both NumPy and PyTorch accept."""
MAX_LIVELINESS = 2.0
"""Largest factor of the head's speed in motion from speech."""
SIMILARITY = 0.7
"""Minimum similarity (as of difflib) of a word and its suggestion. At 0.7, "cpu" is not suggested for "gpu"."""


@dataclass(frozen=True)
class IntRange:
    """Whole numbers from ``minimum`` to ``maximum``, both included; only the even ones if ``even``."""

    minimum: int
    maximum: int = MAX_INT
    even: bool = False
    unit: str = ""

    def require(self, name: str, value: object) -> int:
        """Return a value as an int, or raise ArgumentError with ``name``, such as "size", if it is out of range."""
        if isinstance(value, bool) or not hasattr(value, "__index__"):
            raise ArgumentError(name, repr(value), "is not a whole number", f"Use {self}.")
        number = operator.index(value)
        if number < self.minimum:
            raise ArgumentError(name, number, "is too small", f"Use {self}.")
        if number > self.maximum:
            raise ArgumentError(name, number, "is too large", f"Use {self.maximum} or less.")
        if self.even and number % 2:
            below, above = max(number - 1, self.minimum), min(number + 1, self.maximum)
            raise ArgumentError(name, number, "is odd, and H.264 video has even sides", f"Use {below} or {above}.")
        return number

    def option(self, name: str) -> Callable[[str], int]:
        """Return a parser of the argument of the option ``name``, for argparse."""
        argument = name.removeprefix("--").replace("-", "_")

        def read(word: str) -> int:
            try:
                number: object = int(word)
            except ValueError:
                raise ArgumentError(argument, word, "is not a whole number", f"Use {self}.") from None
            return self.require(argument, number)

        return read

    def __str__(self) -> str:
        kind = "an even number" if self.even else "a whole number"
        unit = f" {self.unit}" if self.unit else ""
        if self.maximum in (MAX_INT, MAX_SEED):
            return f"{kind} of {self.minimum} or more{unit}"
        return f"{kind} from {self.minimum} to {self.maximum}{unit}"


SIZE = IntRange(16, 4096, even=True, unit="pixels")
"""Side of rendered frames. The model renders at 256 or 512; larger frames are only resized."""
MAX_SIDE = IntRange(64, 4096, unit="pixels")
"""Largest side of frames that show a whole picture; 4096 is the limit of H.264 level 5.1."""
PREPARED_SIZE = IntRange(64, 2048, even=True, unit="pixels")
"""Side of prepared clips."""
WORKERS = IntRange(1, 1024)
"""Processes that prepare clips."""
SEED = IntRange(0, MAX_SEED)
FIT_STEPS = IntRange(0, 100_000)
FACE = IntRange(1)
"""Which face of a picture, counted from the largest."""
BATCH = IntRange(1, 4096)
"""Frames rendered at once."""
MAX_FRAMES = IntRange(5)
"""Frames of an evaluated clip. Motion cannot be measured on fewer than five."""
MOTION_CLIPS = IntRange(3)
"""Clips whose motion is evaluated: one, the donor of its copied motion, and one of a third person."""
REENACTED_FRAMES = IntRange(1)
STEPS = IntRange(2, 1_000_000)
"""Training steps of a benchmark. Two kinds of steps alternate, and both are measured."""
POINTS = IntRange(64, 2**28)
"""Points of a benchmark. The smallest case needs 48."""
RESOLUTION = IntRange(16, 512)
"""Grid cells along the height of a mesh."""
REPEATS = IntRange(1, 1_000_000)
FRAMES = IntRange(1, 1_000_000)
SESSIONS = IntRange(1, 100)
"""Live sessions at once in a benchmark."""
SECONDS = IntRange(10, 24 * 3600)
"""Length of a measured live session."""


def require_number(name: str, value: object, minimum: float, maximum: float) -> float:
    """Return a value as a float, or raise ArgumentError with ``name`` if it is not from ``minimum`` to ``maximum``."""
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if isinstance(value, bool) or not minimum <= number <= maximum:
        raise ArgumentError(name, str(value), "is out of range", f"Use a number from {minimum:g} to {maximum:g}.")
    return number


def require_choice(name: str, value: object, choices: Iterable[object]) -> None:
    """Raise ArgumentError with ``name`` if a value is none of ``choices``."""
    known = list(choices)
    if value not in known:
        words = [str(choice) for choice in known]
        raise ArgumentError(name, str(value), "is not known", f"{suggest(value, words)}Use {' or '.join(words)}.")


def suggest(word: object, known: Iterable[str]) -> str:
    """Return "Did you mean ...? " with the most similar entry of ``known``, or "" if none is similar."""
    close = difflib.get_close_matches(str(word), list(known), n=1, cutoff=SIMILARITY)
    return f"Did you mean {close[0]}? " if close else ""
