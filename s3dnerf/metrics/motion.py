"""How a face moves by itself: trembling landmarks and blinks. Nothing here looks at a reference."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import percentile_filter

CLOSED_SHARE = 0.65
REOPENED_SHARE = 0.8
"""Shares of the usual openness. Where real eyes fall to 0.5 to 0.65 of it, one sees the lids come down and go up."""
USUAL_PERCENT = 75
USUAL_SECONDS = 2.0


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


def count_blinks(openness: np.ndarray, fps: float = 25.0) -> int:
    """Number of blinks in the eye openness [T] or [T, 2] (mean of both eyes) at `fps` frames a second.

    A blink begins when the openness falls below 0.65 of what is usual and ends above 0.8 of it: two
    thresholds, so that noise at one of them is not counted twice. Usual is the upper quartile of the two
    seconds around, so that neither a gaze that sinks slowly nor eyes held shut for a second change it much.
    NaN frames are skipped.
    """
    openness = np.asarray(openness, np.float64)
    openness = openness.mean(axis=-1) if openness.ndim == 2 else openness
    openness = openness[np.isfinite(openness)]
    if not len(openness):
        return 0
    window = min(round(USUAL_SECONDS * fps) | 1, len(openness))
    usual = percentile_filter(openness, USUAL_PERCENT, size=window, mode="nearest")
    blinks, closed = 0, False
    for value, normal in zip(openness, usual, strict=True):
        if not closed and value < CLOSED_SHARE * normal:
            blinks, closed = blinks + 1, True
        elif closed and value > REOPENED_SHARE * normal:
            closed = False
    return blinks


def measure_blink_rate(openness: np.ndarray, fps: float) -> float:
    """Blinks a minute in the eye openness [T] or [T, 2] at `fps` frames a second; NaN for no frames."""
    if not len(openness):
        return float("nan")
    return count_blinks(openness, fps) * 60.0 * fps / len(openness)
