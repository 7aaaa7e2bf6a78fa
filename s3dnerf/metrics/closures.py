"""Closed lips: moments at which the lips are nearly together, and the lip opening in pauses of the speech.

The range of a lip opening is taken from its 5th to its 95th percentile. Frames without a face are NaN and are ignored.
"""

from __future__ import annotations

import numpy as np
from scipy.ndimage import binary_dilation

from .lips import STILL_GAIN, measure_opening_gain

RANGE_PERCENTILES = (5.0, 95.0)
CLOSED_PART = 0.25
"""Lips count as closed in the lowest quarter of the range."""
TOLERANCE = 2
"""Closed frames match at a distance of up to two frames (80 ms)."""
MIN_SHIFT = 12
"""Smallest circular shift in frames (about half a second, two syllables) at which two openings count as unrelated."""


def find_closures(opening: np.ndarray) -> np.ndarray:
    """Find the frames in which lips are nearly together, by the range of this opening ``[T]`` alone.

    Returns:
        ``bool [T]``, True in the lowest quarter of the range; all False if the opening is constant.
    """
    opening = np.asarray(opening, np.float64)
    low, high = _measure_range(opening)
    # Comparisons with NaN are False. So are those of an opening that is constant or has no known frame.
    return opening < (low + CLOSED_PART * (high - low) if high > low else -np.inf)


def measure_closure_f1(target: np.ndarray, generated: np.ndarray) -> float:
    """Compute the F1 of closed lips: do two openings ``[T]`` close at the same moments, each by its own range?

    Precision is the share of generated closed frames with a target closed frame within two frames; recall is the share
    of target closed frames with a generated one. Neither depends on how far the lips open. Unrelated openings of
    speech reach 0.5 on average; see :func:`measure_closure_chance`.

    Returns:
        F1 in [0, 1]; 0 if the generated lips are still (as for ``measure_opening_correlation``), NaN if the target
        lips are still or fewer than three frames are known in both.
    """
    masks = _find_both(target, generated)
    if masks is None:
        return measure_opening_gain(target, generated) * 0.0
    return _match(*masks)


def measure_closure_chance(target: np.ndarray, generated: np.ndarray) -> float:
    """Compute the chance level of :func:`measure_closure_f1`: its mean over circular shifts of the generated opening.

    All shifts by at least 12 frames to either side count. It is NaN if the clip is too short for one, and 0 or NaN for
    still lips as the F1 is.
    """
    masks = _find_both(target, generated)
    if masks is None:
        return measure_opening_gain(target, generated) * 0.0
    shifts = range(MIN_SHIFT, len(masks[0]) - MIN_SHIFT + 1)
    return float(np.mean([_match(masks[0], np.roll(masks[1], shift)) for shift in shifts])) if shifts else float("nan")


def measure_silent_opening(target: np.ndarray, generated: np.ndarray, is_pause: np.ndarray) -> float:
    """Compute the mean generated lip opening in pauses of the speech, in the range of the target lips.

    Args:
        target: target lip opening ``[T]``; its 5th percentile counts as 0 and its 95th as 1.
        generated: generated lip opening ``[T]`` in the same unit, or the target again for the value to compare with.
        is_pause: ``bool [T]``, the frames in pauses.

    Returns:
        About 0 for closed lips. NaN if there is no pause, or the target lips are still.
    """
    target, generated = np.asarray(target, np.float64), np.asarray(generated, np.float64)
    if target.ndim != 1 or not target.shape == generated.shape == is_pause.shape:
        raise ValueError(f"expected arrays [T], got {target.shape}, {generated.shape} and {is_pause.shape}")
    low, high = _measure_range(target)
    silent = generated[is_pause & np.isfinite(generated)]
    if not len(silent) or not high > low:
        return float("nan")
    return float((silent.mean() - low) / (high - low))


def _measure_range(opening: np.ndarray) -> tuple[float, float]:
    known = opening[np.isfinite(opening)]
    if not len(known):
        return float("nan"), float("nan")
    low, high = np.percentile(known, RANGE_PERCENTILES)
    return float(low), float(high)


def _find_both(target: np.ndarray, generated: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the closed frames of both openings, over the frames known in both; None if either is still."""
    gain = measure_opening_gain(target, generated)
    if np.isnan(gain) or gain < STILL_GAIN:
        return None
    known = np.isfinite(target) & np.isfinite(generated)
    first, second = (find_closures(np.where(known, opening, np.nan)) for opening in (target, generated))
    return first, second


def _match(target: np.ndarray, generated: np.ndarray) -> float:
    hits = int((generated & _dilate(target)).sum()), int((target & _dilate(generated)).sum())
    if not all(hits):
        return 0.0
    precision, recall = hits[0] / generated.sum(), hits[1] / target.sum()
    return float(2.0 * precision * recall / (precision + recall))


def _dilate(mask: np.ndarray) -> np.ndarray:
    """Mark all frames within the tolerance of a marked frame."""
    dilated: np.ndarray = binary_dilation(mask, iterations=TOLERANCE)
    return dilated
