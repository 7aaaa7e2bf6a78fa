"""How well a face and its lips follow the real ones: landmark distances, and the lip opening over time.

Landmark numbers are those of the MediaPipe face mesh. A frame in which no face was found is a row of NaN; its
distance is NaN, and the correlation and the gain leave it out.
"""

from __future__ import annotations

import numpy as np

FACE_POINT_COUNT = 468
"""The mesh without the ten iris points that some trackers append."""

MOUTH_POINTS = (
    *(61, 146, 91, 181, 84, 17, 314, 405, 321, 375, 291, 409, 270, 269, 267, 0, 37, 39, 40, 185),
    *(78, 95, 88, 178, 87, 14, 317, 402, 318, 324, 308, 415, 310, 311, 312, 13, 82, 81, 80, 191),
)
"""Outer and inner outline of the lips, twenty points each."""

STILL_SHARE = 0.05
"""Lips that move less than this share of the real amount are still: a tracker trembles that much."""


def measure_f_lmd(real: np.ndarray, made: np.ndarray) -> np.ndarray:
    """Whole-face landmark distance of each frame: mean distance over the 468 mesh points, not aligned.

    real, made [T, 468 or 478, 2 or more] in one square unit; only the first two coordinates count. Give
    pixels of a 256 x 256 frame to get the usual unit. Returns float64 [T] in that unit.
    """
    real, made = _pair_landmarks(real, made)
    return _mean_distance(real[:, :FACE_POINT_COUNT], made[:, :FACE_POINT_COUNT])


def measure_m_lmd(real: np.ndarray, made: np.ndarray) -> np.ndarray:
    """Mouth landmark distance of each frame: the 40 lip points, each mouth moved to its own mean first.

    What is left is the mouth's shape, size and tilt; its place is not judged (Chen et al., 2018, align mouths
    the same way). Arguments, unit and result as for `measure_f_lmd`.
    """
    real, made = (points[:, MOUTH_POINTS] for points in _pair_landmarks(real, made))
    return _mean_distance(real - real.mean(1, keepdims=True), made - made.mean(1, keepdims=True))


def correlate_openings(real: np.ndarray, made: np.ndarray) -> float:
    """Pearson correlation over a clip of the made lip opening [T] with the real one [T], in [-1, 1].

    0 when the made lips stand still, with a gain below 0.05 (they tell nothing of the speech); NaN when the
    real ones do not move at all or fewer than three frames are known in both.
    """
    gain = measure_opening_gain(real, made)
    if np.isnan(gain) or gain < STILL_SHARE:
        return gain * 0.0
    return float(np.corrcoef(*_known_in_both(real, made))[0, 1])


def measure_opening_gain(real: np.ndarray, made: np.ndarray) -> float:
    """How far the made lips move beside the real ones: ratio of the standard deviations of the opening [T].

    1 is the real amount, 0 a frozen mouth. It says nothing about when the lips move. NaN as in
    `correlate_openings`.
    """
    real, made = _known_in_both(real, made)
    if len(real) < 3 or np.ptp(real) == 0:
        return float("nan")
    return float(made.std() / real.std())


def measure_opening_slope(real: np.ndarray, made: np.ndarray) -> float:
    """Slope of the least-squares line from the real opening [T] to the made one: correlation times gain.

    The part of the real movement that is made, at the right moment. Beside it the gain alone would praise
    lips that flap at random, and the correlation alone lips that hardly move.
    """
    return correlate_openings(real, made) * measure_opening_gain(real, made)


def _pair_landmarks(real: np.ndarray, made: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    for points in (real, made):
        if points.ndim != 3 or points.shape[1] < FACE_POINT_COUNT or points.shape[2] < 2:
            raise ValueError(f"expected landmarks [T, 468 or more, 2 or more], got {points.shape}")
    if len(real) != len(made):
        raise ValueError(f"landmarks of {len(real)} and {len(made)} frames")
    return real[:, :FACE_POINT_COUNT, :2].astype(np.float64), made[:, :FACE_POINT_COUNT, :2].astype(np.float64)


def _mean_distance(real: np.ndarray, made: np.ndarray) -> np.ndarray:
    return np.linalg.norm(real - made, axis=-1).mean(axis=-1)


def _known_in_both(real: np.ndarray, made: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    real, made = np.asarray(real, np.float64), np.asarray(made, np.float64)
    if real.ndim != 1 or real.shape != made.shape:
        raise ValueError(f"expected two openings [T], got {real.shape} and {made.shape}")
    known = np.isfinite(real) & np.isfinite(made)
    return real[known], made[known]
