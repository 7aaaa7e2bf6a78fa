"""Metrics of head motion and of its agreement with speech, as pure functions on arrays at 25 frames per second.

Rotations are rotation vectors ``[T, 3]`` in radians about x (pitch), y (yaw) and z (roll); poses ``[T, 6]`` have shift
x, y in head units and log scale as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter1d
from scipy.signal import find_peaks, periodogram
from scipy.spatial.transform import Rotation

from s3dnerf.metrics.frechet import measure_gaussian_distance
from s3dnerf.metrics.motion import find_blinks

FPS = 25.0
BAND_EDGES_HZ = (0.5, 1.5)
HEAD_LEAD_FRAMES = 6
"""Frames by which the head moves ahead of the voice."""
POSE_WINDOW, POSE_STRIDE = 50, 25
"""Frames of the windows of the pose Frechet distance."""
POSE_COMPONENTS = 10
BEAT_SIGMA_SECONDS = 0.1


@dataclass(frozen=True)
class BlinkStatistics:
    """Blinks of one recording; NaN where there are too few."""

    per_minute: float
    closed_seconds: float
    """Median time below 0.65 of the usual openness."""
    pause_variation: float
    """Standard deviation of the times between blinks over their mean."""


def compute_speed(rotation: np.ndarray, fps: float = FPS) -> np.ndarray:
    """Compute the angular speed between adjacent frames in degrees per second, ``[T - 1]``."""
    turns = Rotation.from_rotvec(np.asarray(rotation, np.float64))
    return np.degrees((turns[:-1].inv() * turns[1:]).magnitude()) * fps


def measure_speed(rotation: np.ndarray, fps: float = FPS) -> float:
    """Compute the mean angular speed in degrees per second; NaN for one frame."""
    return float(compute_speed(rotation, fps).mean()) if len(rotation) > 1 else float("nan")


def measure_acceleration(rotation: np.ndarray, fps: float = FPS) -> float:
    """Compute the mean magnitude of the angular acceleration in degrees per second squared; NaN for two frames.

    Noise raises it much more than speed.
    """
    if len(rotation) < 3:
        return float("nan")
    change = np.diff(np.degrees(np.asarray(rotation, np.float64)), n=2, axis=0)
    return float(np.linalg.norm(change, axis=1).mean()) * fps**2


def measure_range(series: np.ndarray) -> np.ndarray:
    """Compute the distance from the 5th to the 95th percentile over time of ``[T, C]``, in its unit, ``[C]``."""
    low, high = np.percentile(np.asarray(series, np.float64), [5, 95], axis=0)
    return high - low


def measure_spectrum_shares(rotation: np.ndarray, fps: float = FPS) -> np.ndarray:
    """Compute the shares of power below 0.5 Hz, from 0.5 to 1.5 Hz and above, ``[3]``, summed over the axes.

    The mean is removed, and a Hann window keeps the ends from leaking. NaN for a head that does not move.
    """
    frequencies, power = periodogram(np.asarray(rotation, np.float64), fs=fps, window="hann", axis=0)
    band = np.searchsorted(BAND_EDGES_HZ, frequencies, side="right")
    shares = np.bincount(band, power.sum(axis=1), minlength=3)
    return shares / shares.sum() if shares.sum() > 0 else np.full(3, np.nan)


def measure_blinks(openness: np.ndarray, fps: float = FPS) -> BlinkStatistics:
    """Measure the blinks in the eye openness ``[T]`` or ``[T, 2]``."""
    nan = float("nan")
    if not len(openness):
        return BlinkStatistics(nan, nan, nan)
    blinks = find_blinks(openness, fps)
    pauses = np.diff(blinks[:, 0])
    return BlinkStatistics(
        len(blinks) * 60.0 * fps / len(openness),
        float(np.median(blinks[:, 1])) / fps if len(blinks) else nan,
        float(pauses.std() / pauses.mean()) if len(pauses) > 1 else nan,
    )


def correlate(first: np.ndarray, second: np.ndarray) -> float:
    """Compute the Pearson correlation of two series ``[T]``; 0 if one does not move."""
    one, other = (np.asarray(part, np.float64) - np.mean(part) for part in (first, second))
    norm = np.linalg.norm(one) * np.linalg.norm(other)
    return float(one @ other / norm) if norm > 1e-12 else 0.0


def measure_level_speed_correlation(level: np.ndarray, rotation: np.ndarray, lead: int = HEAD_LEAD_FRAMES) -> float:
    """Correlate the level of speech ``[T]`` with the angular speed ``lead`` frames earlier; NaN for too few."""
    frames = min(len(level), len(rotation) - 1)
    if frames - lead < 3:
        return float("nan")
    return correlate(level[lead:frames], compute_speed(rotation)[: frames - lead])


def measure_own_share(own: np.ndarray, others: np.ndarray) -> float:
    """Compute the AUC of paired scores: how often the own one is above the others, ties counted half; NaN for none."""
    own, others = np.broadcast_arrays(np.asarray(own, np.float64), np.asarray(others, np.float64))
    if not own.size:
        return float("nan")
    return float((own > others).mean() + 0.5 * (own == others).mean())


def cut_pose_windows(pose: np.ndarray) -> np.ndarray:
    """Cut ``[T, C]`` into windows of two seconds: mean-free pose and its velocity per second, ``[N, 99 C]``."""
    pose = np.asarray(pose, np.float64)
    starts = range(0, len(pose) - POSE_WINDOW + 1, POSE_STRIDE)
    windows = [pose[start : start + POSE_WINDOW] for start in starts]
    rows = [np.concatenate([(w - w.mean(axis=0)).ravel(), (np.diff(w, axis=0) * FPS).ravel()]) for w in windows]
    return np.array(rows).reshape(-1, (2 * POSE_WINDOW - 1) * pose.shape[1])


def measure_pose_frechet(
    target: Sequence[np.ndarray],
    generated: Sequence[np.ndarray],
    reference: Sequence[np.ndarray] | None = None,
    components: int = POSE_COMPONENTS,
) -> float:
    """Compute the squared Frechet distance of pose windows, on the principal components of a reference.

    People weigh the same. The components have unit variance in the reference.

    Args:
        target: windows ``[N, F]`` of each person.
        generated: likewise, of any people.
        reference: likewise, by which components are chosen; ``target`` by default.
        components: number of principal components.

    Returns:
        The distance; NaN if a set has no window.
    """
    sets = [[one for one in people if len(one)] for people in (target, generated, reference or target)]
    if not all(sets):
        return float("nan")
    real_mean, real = _weigh_windows(sets[2])
    _, values, axes = np.linalg.svd(real, full_matrices=False)
    kept = (values > 1e-9 * values[0]).sum() if len(values) else 0
    count = min(components, int(kept))
    if not count:
        return float("nan")
    projection = axes[:count].T / values[:count]
    moments = []
    for people in sets[:2]:
        mean, rows = _weigh_windows(people)
        scaled = rows @ projection
        moments += [(mean - real_mean) @ projection, scaled.T @ scaled]
    return measure_gaussian_distance(*moments)


def measure_seed_diversity(rotations: np.ndarray) -> float:
    """Compute the standard deviation over seeds in degrees of ``[S, T, 3]``: root mean square over time and axes."""
    if len(rotations) < 2:
        return float("nan")
    return float(np.degrees(np.sqrt(np.var(np.asarray(rotations, np.float64), axis=0, ddof=1).mean())))


def measure_join_ratio(rotation: np.ndarray, joins: np.ndarray) -> float:
    """Compute the mean angular acceleration at joins over that elsewhere; NaN without joins or motion.

    Args:
        rotation: ``[T, 3]``.
        joins: first frames of the pieces after the first. The two second differences that span a join belong to it.
    """
    bends = np.linalg.norm(np.diff(np.asarray(rotation, np.float64), n=2, axis=0), axis=1)
    at_join = np.zeros(len(bends), bool)
    near = (np.asarray(joins, np.int64)[:, None] + np.array([-2, -1])).ravel()
    at_join[near[(near >= 0) & (near < len(bends))]] = True
    if not at_join.any() or at_join.all() or bends[~at_join].mean() == 0:
        return float("nan")
    return float(bends[at_join].mean() / bends[~at_join].mean())


def measure_drift(rotation: np.ndarray, fps: float = FPS) -> float:
    """Compute how far the mean of the last minute is from that of the first in degrees; NaN below two minutes."""
    minute = round(60 * fps)
    if len(rotation) < 2 * minute:
        return float("nan")
    return float(np.degrees(np.linalg.norm(rotation[-minute:].mean(axis=0) - rotation[:minute].mean(axis=0))))


def measure_beat_alignment(level: np.ndarray, rotation: np.ndarray, fps: float = FPS) -> float:
    """Compute the beat alignment of papers: closeness of speech beats to minima of head speed, 0 to 1.

    Only for comparison with papers: it is higher for heads with more minima, so noise scores as well as real motion.
    Beats are the peaks of the rise of the level ``[T]``. NaN without beats or minima.
    """
    rise = gaussian_filter1d(np.asarray(level, np.float64), 1.0, order=1)
    beats = find_peaks(rise, height=rise.std())[0] / fps
    speed = gaussian_filter1d(compute_speed(rotation, fps), 1.0)
    minima = (find_peaks(-speed)[0] + 0.5) / fps
    if not len(beats) or not len(minima):
        return float("nan")
    distance = np.abs(beats[:, None] - minima).min(axis=1)
    return float(np.exp(-(distance**2) / (2 * BEAT_SIGMA_SECONDS**2)).mean())


def _weigh_windows(people: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return the people-balanced mean ``[F]``, and deviations ``[N, F]`` whose squares sum to the covariance."""
    weights = np.concatenate([np.full(len(one), 1.0 / (len(one) * len(people))) for one in people])
    rows = np.concatenate(list(people))
    mean = weights @ rows
    return mean, np.sqrt(weights)[:, None] * (rows - mean)
