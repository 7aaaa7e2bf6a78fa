"""Head pose: a scaled-orthographic camera fitted to tracked landmarks.

Head space: x to the viewer's right, y up, z toward the viewer; the outer eye corners of the canonical face are 0.75
apart. A head point X is projected to

    u = center_u + scale * (R X)_x,   v = center_v - scale * (R X)_y,   d = scale * (R X)_z.

u and v may be in any square unit (normalized coordinates or pixels); scale and center are in the same unit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from s3dnerf.face.points import RIGID_POINTS, select_points
from s3dnerf.face.rotation import average_rotations, matrix_to_rotvec, rotvec_to_matrix

FIT_ITERATIONS = 8
CANONICAL_FILE = Path(__file__).with_name("canonical_face.npy")
_FLIP_V = np.array([1.0, -1.0, 1.0])


@dataclass(frozen=True)
class HeadPose:
    """Cameras of T frames, all ``float32``."""

    rotation: np.ndarray
    """``[T, 3, 3]`` head to camera."""
    scale: np.ndarray
    """``[T]``."""
    center: np.ndarray
    """``[T, 2]``."""

    @classmethod
    def concatenate(cls, poses: Sequence[HeadPose]) -> HeadPose:
        """Concatenate poses along time."""
        return cls(*(np.concatenate([getattr(pose, name) for pose in poses]) for name in vars(poses[0])))

    def __len__(self) -> int:
        return len(self.scale)

    def __getitem__(self, frames: slice | np.ndarray) -> HeadPose:
        return HeadPose(self.rotation[frames], self.scale[frames], self.center[frames])


@cache
def _read_canonical_face() -> np.ndarray:
    face = np.load(CANONICAL_FILE, allow_pickle=False).astype(np.float32)
    face.setflags(write=False)
    return face


def load_canonical_face() -> np.ndarray:
    """Return the mean face of the package in head space, ``float32 [478, 3]``, read-only; made by ``canonical.py``."""
    return _read_canonical_face()


def align_similarity(source: np.ndarray, target: np.ndarray, weights: np.ndarray | None = None) -> Similarity:
    """Fit the weighted least-squares similarity from source to target points (Umeyama, 1991), batched.

    Args:
        source: ``[T, N, 3]`` or ``[N, 3]``.
        target: ``[T, N, 3]`` or ``[N, 3]``, approximated by ``scale * rotation @ source + offset``.
        weights: ``[T, N]``, not negative; equal by default.
    """
    source, target = np.broadcast_arrays(np.asarray(source, np.float64), np.asarray(target, np.float64))
    weights = np.ones(target.shape[:-1]) if weights is None else weights
    weights = (weights / weights.sum(-1, keepdims=True))[..., None]
    source_mean = (weights * source).sum(-2, keepdims=True)
    target_mean = (weights * target).sum(-2, keepdims=True)
    source, target = source - source_mean, target - target_mean
    left, singular, right = np.linalg.svd(np.swapaxes(weights * target, -1, -2) @ source)
    signs = np.ones_like(singular)
    signs[..., 2] = np.sign(np.linalg.det(left @ right))
    rotation = (left * signs[..., None, :]) @ right
    scale = (singular * signs).sum(-1) / (weights * source**2).sum((-1, -2))
    moved_mean = scale[..., None] * (rotation @ source_mean[..., 0, :, None])[..., 0]
    return Similarity(rotation, scale, target_mean[..., 0, :] - moved_mean)


@dataclass(frozen=True)
class Similarity:
    """A batch of similarity transforms, all ``float64``."""

    rotation: np.ndarray
    """``[T, 3, 3]``."""
    scale: np.ndarray
    """``[T]``."""
    offset: np.ndarray
    """``[T, 3]``."""

    def apply(self, points: np.ndarray) -> np.ndarray:
        """Transform points ``[T, N, 3]`` or ``[N, 3]`` to ``[T, N, 3]``."""
        rotated = points @ np.swapaxes(self.rotation, -1, -2)
        return self.scale[..., None, None] * rotated + self.offset[..., None, :]


def fit_head_pose(landmarks: np.ndarray) -> HeadPose:
    """Fit the canonical face robustly to landmarks.

    Umeyama's closed form is iterated with Geman-McClure weights whose width follows the median residual, so a third
    of the points may be outliers. The result has no depth offset: see :func:`align_depth`.

    Args:
        landmarks: ``[T, 478 or P, 3]`` as (u, v, d), finite, in one square unit. Only ``RIGID_POINTS`` are used.

    Raises:
        ValueError: landmarks are not finite.
    """
    points = select_points(np.asarray(landmarks, np.float64), RIGID_POINTS) * _FLIP_V
    if not np.isfinite(points).all():
        raise ValueError("landmarks must be finite; fill missing frames first")
    face = load_canonical_face()[RIGID_POINTS].astype(np.float64)
    weights = np.ones(points.shape[:-1])
    for _ in range(FIT_ITERATIONS):
        fit = align_similarity(face, points, weights)
        error = np.linalg.norm(fit.apply(face) - points, axis=-1)
        width = 2.0 * np.median(error, axis=-1, keepdims=True) + 1e-9
        weights = 1.0 / (1.0 + (error / width) ** 2) ** 2
    center = fit.offset[..., :2] * _FLIP_V[:2]
    return HeadPose(*(part.astype(np.float32) for part in (fit.rotation, fit.scale, center)))


def smooth_head_pose(pose: HeadPose, sigma_frames: float) -> HeadPose:
    """Smooth poses in time with a Gaussian; the kernel is symmetric, so there is no lag.

    Rotations are smoothed as rotation vectors about the mean rotation, scales as logarithms. The first and the last
    pose are repeated beyond the ends.

    Args:
        pose: T poses.
        sigma_frames: standard deviation in frames; 0 returns the poses unchanged.
    """
    if sigma_frames <= 0 or len(pose) < 2:
        return pose
    # Rendering needs nothing of scipy.ndimage.
    from scipy.ndimage import correlate1d

    mean = average_rotations(pose.rotation)
    rotvecs = matrix_to_rotvec(pose.rotation @ mean.T)
    series = np.concatenate([rotvecs, np.log(pose.scale)[:, None], pose.center], axis=1)
    radius = int(np.ceil(4 * sigma_frames))
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma_frames) ** 2)
    series = correlate1d(series.astype(np.float64), kernel / kernel.sum(), axis=0, mode="nearest")
    rotation = rotvec_to_matrix(series[:, :3]) @ mean
    parts = (rotation, np.exp(series[:, 3]), series[:, 4:6])
    return HeadPose(*(part.astype(np.float32) for part in parts))


def project(points: np.ndarray, pose: HeadPose) -> np.ndarray:
    """Project head-space points ``[N, 3]`` or ``[T, N, 3]`` with T poses to (u, v, d) ``[T, N, 3]``."""
    moved = pose.scale[:, None, None] * (points @ np.swapaxes(pose.rotation, -1, -2))
    moved = moved * _FLIP_V.astype(moved.dtype)
    moved[..., :2] += pose.center[:, None, :]
    return moved


def to_head_space(landmarks: np.ndarray, pose: HeadPose) -> np.ndarray:
    """Transform (u, v, d) landmarks ``[T, N, 3]`` to head space; the inverse of :func:`project`.

    Depth must be measured from the head's origin, so tracked landmarks need :func:`align_depth` first.
    """
    points = np.array(landmarks)
    points[..., :2] -= pose.center[:, None, :]
    points = points * _FLIP_V.astype(points.dtype) / pose.scale[:, None, None]
    return points @ pose.rotation


def align_depth(landmarks: np.ndarray, pose: HeadPose) -> np.ndarray:
    """Shift the depth of each frame so that it is measured from the head's origin, as in :func:`project`.

    A tracker's depth has an arbitrary origin. The shift is the median difference between ``RIGID_POINTS`` and the
    projected canonical face.

    Args:
        landmarks: ``[T, 478 or P, 3]`` as (u, v, d).
        pose: T poses.

    Returns:
        A shifted copy of the landmarks.
    """
    expected = project(load_canonical_face()[RIGID_POINTS], pose)[..., 2]
    shift = np.median(expected - select_points(landmarks, RIGID_POINTS)[..., 2], axis=-1)
    aligned = np.array(landmarks)
    aligned[..., 2] += shift[:, None].astype(aligned.dtype)
    return aligned
