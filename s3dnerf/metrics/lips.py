"""Motion accuracy of face and lips: landmark distances, and the lip opening over time.

Landmarks are numbered as in the MediaPipe face mesh. Frames without a face are rows of NaN: their distance is NaN, and
correlation and gain ignore them.
"""

from __future__ import annotations

import numpy as np

FACE_POINT_COUNT = 468
"""Points of the mesh without the ten iris points that some trackers append."""

MOUTH_POINTS = (
    *(61, 146, 91, 181, 84, 17, 314, 405, 321, 375, 291, 409, 270, 269, 267, 0, 37, 39, 40, 185),
    *(78, 95, 88, 178, 87, 14, 317, 402, 318, 324, 308, 415, 310, 311, 312, 13, 82, 81, 80, 191),
)
"""Outer and inner contour of the lips, twenty points each."""

STILL_GAIN = 0.05
"""Gain below which lips count as still; tracking noise reaches it."""


def measure_f_lmd(target: np.ndarray, generated: np.ndarray) -> np.ndarray:
    """Compute the face landmark distance (F-LMD) of each frame: the mean over the 468 mesh points, not aligned.

    Args:
        target: ``[T, 468 or 478, 2 or more]``; only x and y count. The usual unit is pixels of a 256 x 256 frame.
        generated: the same.

    Returns:
        ``float64 [T]`` in the unit of the landmarks.
    """
    target, generated = _pair_landmarks(target, generated)
    return _mean_distance(target[:, :FACE_POINT_COUNT], generated[:, :FACE_POINT_COUNT])


def measure_m_lmd(target: np.ndarray, generated: np.ndarray) -> np.ndarray:
    """Compute the mouth landmark distance (M-LMD) of each frame over the 40 lip points, each mouth centered.

    It measures the shape, size and tilt of the mouth but not its position (Chen et al., 2018, align mouths in the same
    way). Arguments, unit and result are those of ``measure_f_lmd``.
    """
    target, generated = (points[:, MOUTH_POINTS] for points in _pair_landmarks(target, generated))
    return _mean_distance(target - target.mean(1, keepdims=True), generated - generated.mean(1, keepdims=True))


def measure_opening_correlation(target: np.ndarray, generated: np.ndarray) -> float:
    """Compute the Pearson correlation of the generated lip opening ``[T]`` with the target one, in [-1, 1].

    It is 0 if the generated lips are still (a gain below 0.05), and NaN if the target lips do not move or fewer than
    three frames are known in both.
    """
    gain = measure_opening_gain(target, generated)
    if np.isnan(gain) or gain < STILL_GAIN:
        return gain * 0.0
    return float(np.corrcoef(*select_known(target, generated))[0, 1])


def measure_opening_gain(target: np.ndarray, generated: np.ndarray) -> float:
    """Compute the gain of lip motion: the ratio of the standard deviations of the generated and target opening.

    It is 1 for the same amount of motion and 0 for a frozen mouth, whatever the timing. It is NaN as in
    ``measure_opening_correlation``.
    """
    target, generated = select_known(target, generated)
    if len(target) < 3 or np.ptp(target) == 0:
        return float("nan")
    return float(generated.std() / target.std())


def measure_opening_slope(target: np.ndarray, generated: np.ndarray) -> float:
    """Compute the least-squares slope from the target opening ``[T]`` to the generated one: correlation times gain.

    It is the fraction of the target motion that is reproduced at the right time. The gain alone would reward random
    motion, and the correlation alone lips that barely move.
    """
    return measure_opening_correlation(target, generated) * measure_opening_gain(target, generated)


def align_openings(target: np.ndarray, generated: np.ndarray, offset: int) -> tuple[np.ndarray, np.ndarray]:
    """Pair the target opening ``[T]`` at t with the generated one at t + offset.

    Generated lips follow the sound. If the sound of a clip is ``offset`` frames late, so are they, and this pairs them
    with the target lips that the sound belongs to.

    Returns:
        Both openings, ``[T - abs(offset)]``; empty if the offset is larger than the clip.
    """
    target, generated = np.asarray(target), np.asarray(generated)
    if target.ndim != 1 or target.shape != generated.shape:
        raise ValueError(f"expected two openings [T], got {target.shape} and {generated.shape}")
    count = max(len(target) - abs(offset), 0)
    return target[max(-offset, 0) :][:count], generated[max(offset, 0) :][:count]


def select_known(target: np.ndarray, generated: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the values of two openings ``[T]`` in the frames known in both, ``float64 [N]`` each."""
    target, generated = np.asarray(target, np.float64), np.asarray(generated, np.float64)
    if target.ndim != 1 or target.shape != generated.shape:
        raise ValueError(f"expected two openings [T], got {target.shape} and {generated.shape}")
    known = np.isfinite(target) & np.isfinite(generated)
    return target[known], generated[known]


def _pair_landmarks(target: np.ndarray, generated: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    for points in (target, generated):
        if points.ndim != 3 or points.shape[1] < FACE_POINT_COUNT or points.shape[2] < 2:
            raise ValueError(f"expected landmarks [T, 468 or more, 2 or more], got {points.shape}")
    if len(target) != len(generated):
        raise ValueError(f"landmarks of {len(target)} and {len(generated)} frames")
    return target[:, :FACE_POINT_COUNT, :2].astype(np.float64), generated[:, :FACE_POINT_COUNT, :2].astype(np.float64)


def _mean_distance(target: np.ndarray, generated: np.ndarray) -> np.ndarray:
    return np.linalg.norm(target - generated, axis=-1).mean(axis=-1)
