"""How a face moves by itself: trembling landmarks and blinks. Nothing here looks at a reference."""

from __future__ import annotations

import numpy as np

CLOSED_SHARE = 0.5
REOPENED_SHARE = 0.7


def measure_jitter(landmarks: np.ndarray) -> float:
    """Trembling of landmarks [T, P, 2 or more]: mean length of their second difference in time.

    Steady motion has none; noise from frame to frame has much. The unit is that of the landmarks per frame
    squared (pixels of a 256 x 256 frame here). Frames of NaN are left out. NaN when no three neighbors are
    known.
    """
    if landmarks.ndim != 3:
        raise ValueError(f"expected landmarks [T, P, 2 or more], got {landmarks.shape}")
    bends = np.diff(np.asarray(landmarks, np.float64)[..., :2], n=2, axis=0)
    lengths = np.linalg.norm(bends, axis=-1)
    known = lengths[np.isfinite(lengths)]
    return float(known.mean()) if known.size else float("nan")


def count_blinks(openness: np.ndarray) -> int:
    """Number of blinks in the eye openness [T] or [T, 2] (mean of both eyes).

    A blink begins when the openness falls below half of its median and ends above 0.7 of it: two
    thresholds, so that noise at one of them is not counted twice. NaN frames are skipped.
    """
    openness = np.asarray(openness, np.float64)
    openness = openness.mean(axis=-1) if openness.ndim == 2 else openness
    openness = openness[np.isfinite(openness)]
    if not len(openness):
        return 0
    usual = np.median(openness)
    blinks, closed = 0, False
    for value in openness:
        if not closed and value < CLOSED_SHARE * usual:
            blinks, closed = blinks + 1, True
        elif closed and value > REOPENED_SHARE * usual:
            closed = False
    return blinks


def measure_blink_rate(openness: np.ndarray, fps: float) -> float:
    """Blinks a minute in the eye openness [T] or [T, 2] at `fps` frames a second; NaN for no frames."""
    if not len(openness):
        return float("nan")
    return count_blinks(openness) * 60.0 * fps / len(openness)
