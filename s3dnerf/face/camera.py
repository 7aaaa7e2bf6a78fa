"""Head pose: a scaled-orthographic camera fitted to tracked landmarks.

Head space: x to the viewer's right, y up, z toward the viewer; the outer eye corners of the canonical
face are 0.75 apart. A head point X lands in the image at

    u = center_u + scale * (R X)_x,   v = center_v - scale * (R X)_y,   d = scale * (R X)_z.

u and v may be in any square unit (normalized coordinates or pixels); scale and center are in the same unit.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from scipy.ndimage import correlate1d
from scipy.spatial.transform import Rotation

from s3dnerf.face.points import RIGID_POINTS, select_points

FIT_ROUNDS = 8
CANONICAL_FILE = Path(__file__).with_name("canonical_face.npy")
_FLIP_V = np.array([1.0, -1.0, 1.0])


@dataclass(frozen=True)
class HeadPose:
    """Camera of each frame: rotation [T, 3, 3] head to camera, scale [T], center [T, 2], all float32."""

    rotation: np.ndarray
    scale: np.ndarray
    center: np.ndarray

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
    """Mean face of the package in head space, float32 [478, 3], read-only. Made by canonical.py."""
    return _read_canonical_face()


def align_similarity(source: np.ndarray, target: np.ndarray, weights: np.ndarray | None = None) -> Similarity:
    """Weighted least-squares similarity from source to target points (Umeyama 1991), batched.

    source, target [T, N, 3] (or [N, 3], broadcast); weights [T, N] not negative, default equal.
    target ~ scale * rotation @ source + offset.
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
    """A similarity: rotation [T, 3, 3], scale [T], offset [T, 3], float64."""

    rotation: np.ndarray
    scale: np.ndarray
    offset: np.ndarray

    def move(self, points: np.ndarray) -> np.ndarray:
        """Apply to points [T, N, 3] (or [N, 3]). Returns [T, N, 3]."""
        turned = points @ np.swapaxes(self.rotation, -1, -2)
        return self.scale[..., None, None] * turned + self.offset[..., None, :]


def fit_head_pose(landmarks: np.ndarray) -> HeadPose:
    """Fit the canonical face to landmarks, robustly.

    landmarks [T, 478 or P, 3] as (u, v, d), finite, in one square unit. Only RIGID_POINTS are used.
    Umeyama's closed form is repeated with Geman-McClure weights, whose width follows the median residual,
    so a third of the points may be wrong. The result has no depth offset: see align_depth.
    Raises ValueError for landmarks that are not finite.
    """
    points = select_points(np.asarray(landmarks, np.float64), RIGID_POINTS) * _FLIP_V
    if not np.isfinite(points).all():
        raise ValueError("landmarks must be finite; fill missing frames first")
    face = load_canonical_face()[RIGID_POINTS].astype(np.float64)
    weights = np.ones(points.shape[:-1])
    for _ in range(FIT_ROUNDS):
        fit = align_similarity(face, points, weights)
        error = np.linalg.norm(fit.move(face) - points, axis=-1)
        width = 2.0 * np.median(error, axis=-1, keepdims=True) + 1e-9
        weights = 1.0 / (1.0 + (error / width) ** 2) ** 2
    center = fit.offset[..., :2] * _FLIP_V[:2]
    return HeadPose(*(part.astype(np.float32) for part in (fit.rotation, fit.scale, center)))


def smooth_head_pose(pose: HeadPose, sigma_frames: float) -> HeadPose:
    """Smooth a pose track in time with a Gaussian, without lag (the kernel is symmetric).

    Rotations are smoothed as rotation vectors about the track's mean rotation, scales as logarithms.
    sigma_frames is the standard deviation in frames; 0 returns the pose unchanged. Ends are held.
    """
    if sigma_frames <= 0 or len(pose) < 2:
        return pose
    middle = Rotation.from_matrix(pose.rotation.astype(np.float64)).mean()
    turns = (Rotation.from_matrix(pose.rotation.astype(np.float64)) * middle.inv()).as_rotvec()
    track = np.concatenate([turns, np.log(pose.scale)[:, None], pose.center], axis=1)
    radius = int(np.ceil(4 * sigma_frames))
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma_frames) ** 2)
    track = correlate1d(track.astype(np.float64), kernel / kernel.sum(), axis=0, mode="nearest")
    rotation = (Rotation.from_rotvec(track[:, :3]) * middle).as_matrix()
    parts = (rotation, np.exp(track[:, 3]), track[:, 4:6])
    return HeadPose(*(part.astype(np.float32) for part in parts))


def project(points: np.ndarray, pose: HeadPose) -> np.ndarray:
    """Project head-space points [N, 3] or [T, N, 3] with pose [T]. Returns (u, v, d) [T, N, 3]."""
    moved = pose.scale[:, None, None] * (points @ np.swapaxes(pose.rotation, -1, -2))
    moved = moved * _FLIP_V.astype(moved.dtype)
    moved[..., :2] += pose.center[:, None, :]
    return moved


def to_head(landmarks: np.ndarray, pose: HeadPose) -> np.ndarray:
    """Take (u, v, d) landmarks [T, N, 3] to head space, the inverse of project. Returns [T, N, 3].

    The depth must be measured from the head's origin: align tracked landmarks first (align_depth).
    """
    points = np.array(landmarks)
    points[..., :2] -= pose.center[:, None, :]
    points = points * _FLIP_V.astype(points.dtype) / pose.scale[:, None, None]
    return points @ pose.rotation


def align_depth(landmarks: np.ndarray, pose: HeadPose) -> np.ndarray:
    """Shift each frame's d so that it is measured from the head's origin, as project does.

    landmarks [T, 478 or P, 3]. A tracker's depth has an origin of its own; the shift is the median over
    RIGID_POINTS of the difference from the projected canonical face. Returns a new array of that shape.
    """
    expected = project(load_canonical_face()[RIGID_POINTS], pose)[..., 2]
    shift = np.median(expected - select_points(landmarks, RIGID_POINTS)[..., 2], axis=-1)
    aligned = np.array(landmarks)
    aligned[..., 2] += shift[:, None].astype(aligned.dtype)
    return aligned
