"""Soft dynamic time warping of lip openings (Cuturi and Blondel, 2017)."""

from __future__ import annotations

import numpy as np

from .lips import select_known

SOFTNESS = 0.1
"""Softness of the minimum, in variances of the target opening."""
BAND = 12
"""Frames by which matched frames may differ in time; twelve are about two syllables."""


def measure_soft_dtw(
    target: np.ndarray, generated: np.ndarray, softness: float = SOFTNESS, band: int | None = None
) -> float:
    """Compute soft-DTW of two series: the soft minimum over monotonic paths of the sum of squared distances along one.

    It is below the sum of the best path, and negative for like series: see :func:`measure_lip_warping`.

    Args:
        target: ``[N]`` or ``[N, C]``, finite.
        generated: ``[M]`` or ``[M, C]``, finite.
        softness: of the minimum, in squared units of the series; 0 gives the plain minimum, DTW.
        band: least number of frames by which paths may leave the diagonal; None for any number. It is widened to the
            difference of the lengths.

    Raises:
        ValueError: a series is empty or not finite, the numbers of channels differ, or softness or band are negative.
    """
    first, second = (np.asarray(one, np.float64) for one in (target, generated))
    first, second = (one[:, None] if one.ndim == 1 else one for one in (first, second))
    if not len(first) or not len(second) or first.ndim != 2 or first.shape[1:] != second.shape[1:]:
        raise ValueError(f"expected series [N, C] and [M, C], not empty, got {first.shape} and {second.shape}")
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise ValueError("expected finite series")
    if softness < 0 or (band is not None and band < 0):
        raise ValueError(f"softness and band must not be negative, got {softness} and {band}")
    rows, columns = len(first), len(second)
    width = max(rows, columns) if band is None else max(band, abs(rows - columns))
    # Totals of the antidiagonals i + j of the grid, by the row i. Row and column 0 lie before the series.
    before, last = np.full(rows + 1, np.inf), np.full(rows + 1, np.inf)
    before[0] = 0.0
    for total in range(2, rows + columns + 1):
        low = max(1, total - columns, -((width - total) // 2))
        high = min(rows, total - 1, (total + width) // 2)
        current = np.full(rows + 1, np.inf)
        if low <= high:
            i = np.arange(low, high + 1)
            cost = np.square(first[i - 1] - second[total - i - 1]).sum(axis=1)
            current[i] = cost + _soft_minimum(np.stack([before[i - 1], last[i - 1], last[i]]), softness)
        before, last = last, current
    return float(last[rows])


def measure_lip_warping(
    target: np.ndarray, generated: np.ndarray, softness: float = SOFTNESS, band: int = BAND
) -> float:
    """Compute the soft-DTW divergence of two lip openings ``[T]`` per frame (Blondel et al., 2021).

    The openings are taken in standard deviations of the target from its mean, so that size and position count. The
    divergence is D(x, y) - D(x, x) / 2 - D(y, y) / 2 over T. It is 0 for equal openings, forgives lips that are late or
    early by a few frames, and is near 1 for a frozen mouth at the mean of the target. Real lips that are three frames
    late are 0.02 away, those of other clips in the same range 0.7 (mean of 39 pairs).

    Args:
        target: target opening; NaN without a face.
        generated: generated opening in the same unit.
        softness: of the minimum, in variances of the target.
        band: frames by which matched frames may differ in time.

    Returns:
        NaN as ``measure_opening_correlation``: if the target lips do not move or fewer than three frames are known in
        both. Frames that are unknown in one are left out of both.
    """
    first, second = select_known(target, generated)
    if len(first) < 3 or np.ptp(first) == 0:
        return float("nan")
    one, other = ((opening - first.mean()) / first.std() for opening in (first, second))
    own = sum(measure_soft_dtw(opening, opening, softness, band) for opening in (one, other))
    return (measure_soft_dtw(one, other, softness, band) - own / 2) / len(one)


def _soft_minimum(values: np.ndarray, softness: float) -> np.ndarray:
    """Return the soft minimum over the first axis of ``[3, N]``; infinity where all are infinite."""
    least = values.min(axis=0)
    if softness == 0:
        return least
    shifted = values - np.where(np.isfinite(least), least, 0.0)
    with np.errstate(divide="ignore"):
        return least - softness * np.log(np.exp(-shifted / softness).sum(axis=0))
