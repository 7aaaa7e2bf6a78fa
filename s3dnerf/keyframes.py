"""Values that change in the course of a video, as key frames in a JSON file.

The file holds a list of objects. Each has ``seconds`` and the values at that time; what an object leaves out is
interpolated between the others::

    [{"seconds": 0, "yaw": -20}, {"seconds": 2, "yaw": 20, "zoom": 1.2}, {"seconds": 4, "yaw": 0, "zoom": 1}]
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from s3dnerf.errors import UserError
from s3dnerf.limits import suggest

MAX_BYTES = 10_000_000


class KeyFrames:
    """Smooth curves through key frames. Before the first and after the last one, values stay."""

    def __init__(self, curves: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> None:
        """Take for each name the times ``[n]`` in seconds, increasing, and the values ``[n]``."""
        self.curves = dict(curves)

    def at(self, name: str, seconds: float, default: float) -> float:
        """Return a value at a time, or the default if no key frame has this name.

        >>> frames = KeyFrames({"yaw": (np.array([0.0, 2.0]), np.array([0.0, 10.0]))})
        >>> frames.at("yaw", 1.0, 0.0), frames.at("yaw", 9.0, 0.0), frames.at("zoom", 1.0, 1.0)
        (5.0, 10.0, 1.0)
        """
        if name not in self.curves:
            return default
        times, values = self.curves[name]
        after = int(np.searchsorted(times, seconds, side="right"))
        if after in (0, len(times)):
            return float(values[0 if after == 0 else -1])
        before = after - 1
        share = (seconds - times[before]) / (times[after] - times[before])
        # At rest in each key frame, so that speeds do not jump.
        share = share * share * (3.0 - 2.0 * share)
        return float(values[before] + share * (values[after] - values[before]))


def read_key_frames(path: str | Path, ranges: Mapping[str, tuple[float, float]]) -> KeyFrames:
    """Read key frames.

    Args:
        path: a JSON file.
        ranges: the names that objects may have, with the smallest and the largest value.

    Raises:
        UserError: the file cannot be read, or holds something else.
    """
    hint = f'Write a list such as [{{"seconds": 0, "{next(iter(ranges))}": 0}}].'
    try:
        with open(path, encoding="utf-8") as file:
            entries = json.loads(file.read(MAX_BYTES))
    except OSError as error:
        raise UserError(path, f"cannot be read ({error.strerror})", hint) from error
    except (ValueError, RecursionError) as error:
        raise UserError(path, f"is no JSON ({error})", hint) from error
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        raise UserError(path, "holds no list of key frames", hint)
    points: dict[str, list[tuple[float, float]]] = {}
    for number, entry in enumerate(entries, start=1):
        seconds = _require_number(path, number, entry, "seconds", (0.0, 1e6))
        for name in entry.keys() - {"seconds"}:
            if name not in ranges:
                known = f"{suggest(name, ranges)}Use {', '.join(ranges)}."
                raise UserError(path, f"key frame {number} has the unknown name {name}", known)
            points.setdefault(name, []).append((seconds, _require_number(path, number, entry, name, ranges[name])))
    return KeyFrames({name: _make_curve(path, name, pairs) for name, pairs in points.items()})


def _make_curve(path: str | Path, name: str, pairs: Iterable[tuple[float, float]]) -> tuple[np.ndarray, np.ndarray]:
    times, values = np.array(sorted(pairs)).T
    if (np.diff(times) <= 0.0).any():
        raise UserError(path, f"gives {name} twice at the same time", "Leave one of them out.")
    return times, values


def _require_number(
    path: str | Path, number: int, entry: dict[str, object], name: str, allowed: tuple[float, float]
) -> float:
    value = entry.get(name)
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
        raise UserError(path, f"key frame {number} has no number as {name}", f'Write "{name}": 0.')
    if not allowed[0] <= value <= allowed[1]:
        hint = f"Use {allowed[0]:g} to {allowed[1]:g}."
        raise UserError(path, f"key frame {number} has {name} {value:g}, which is out of range", hint)
    return float(value)
