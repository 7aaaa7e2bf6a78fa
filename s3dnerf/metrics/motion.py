"""Motion metrics without a reference: landmark jitter and blinks."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import percentile_filter

CLOSED_RATIO = 0.65
REOPENED_RATIO = 0.8
"""Thresholds relative to the usual openness. Visible blinks of real eyes reach 0.5 to 0.65 of it."""
USUAL_PERCENTILE = 75
USUAL_SECONDS = 2.0
"""The usual openness is this percentile in a window of this length."""


def measure_jitter(landmarks: np.ndarray) -> float:
    """Compute the jitter of landmarks ``[T, P, 2 or more]``: the mean length of their second difference in time.

    It is 0 for uniform motion and large for noise between frames. The unit is that of the landmarks per frame squared
    (here pixels of a 256 x 256 frame). NaN frames are ignored; the result is NaN without three consecutive frames.
    """
    if landmarks.ndim != 3:
        raise ValueError(f"expected landmarks [T, P, 2 or more], got {landmarks.shape}")
    bends = np.diff(np.asarray(landmarks, np.float64)[..., :2], n=2, axis=0)
    lengths = np.linalg.norm(bends, axis=-1)
    known = lengths[np.isfinite(lengths)]
    return float(known.mean()) if known.size else float("nan")


def find_blinks(openness: np.ndarray, fps: float = 25.0) -> np.ndarray:
    """Find the blinks in the eye openness ``[T]`` or ``[T, 2]`` (mean of both eyes).

    A blink begins below 0.65 of the usual openness and ends above 0.8 of it; two thresholds keep noise from being
    counted as blinks. The usual openness is the upper quartile over two seconds; a slowly sinking gaze or eyes shut for
    a second barely change it. NaN frames are skipped.

    Returns:
        ``int64 [N, 2]``: the first frame of each blink, and its number of frames below 0.65, counted without NaN
        frames.
    """
    openness = np.asarray(openness, np.float64)
    openness = openness.mean(axis=-1) if openness.ndim == 2 else openness
    openness = openness[np.isfinite(openness)]
    if not len(openness):
        return np.zeros((0, 2), np.int64)
    window = min(round(USUAL_SECONDS * fps) | 1, len(openness))
    usual = percentile_filter(openness, USUAL_PERCENTILE, size=window, mode="nearest")
    blinks: list[list[int]] = []
    closed = False
    for frame, (value, normal) in enumerate(zip(openness, usual, strict=True)):
        if value < CLOSED_RATIO * normal:
            if not closed:
                blinks.append([frame, 0])
                closed = True
            blinks[-1][1] += 1
        elif closed and value > REOPENED_RATIO * normal:
            closed = False
    return np.array(blinks, np.int64).reshape(-1, 2)


def count_blinks(openness: np.ndarray, fps: float = 25.0) -> int:
    """Count the blinks in the eye openness ``[T]`` or ``[T, 2]``, see :func:`find_blinks`."""
    return len(find_blinks(openness, fps))


def measure_blink_rate(openness: np.ndarray, fps: float) -> float:
    """Return the blinks per minute in the eye openness ``[T]`` or ``[T, 2]``; NaN for no frames."""
    if not len(openness):
        return float("nan")
    return count_blinks(openness, fps) * 60.0 * fps / len(openness)
