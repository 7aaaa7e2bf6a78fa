"""Soft limits that keep head motion within what one source image can show.

A limit leaves small motion unchanged and compresses large motion smoothly toward a bound that it never reaches, so the
head neither stops abruptly nor leaves the frame.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from s3dnerf.face.camera import HeadPose
from s3dnerf.face.crop import CROP_CENTER_Y, HEAD_HALF_SIZE
from s3dnerf.face.rotation import matrix_to_rotvec, rotvec_to_matrix

SOFT_CLIP_KNEE = 0.5
"""Fraction of a bound up to which values are unchanged."""
MAX_ROTATION_DEGREES = 42.0
"""Bound of the rotation from the source pose; beyond it, most of what becomes visible is not in the source image."""
MAX_ZOOM = 0.25
"""Bound of the log scale change in either direction: larger heads hide the background, smaller ones uncover inpainted
background."""
MAX_SHIFT = 0.35
"""Bound of the shift in head units. Shoulders follow only in part, so a larger shift would detach the head from the
neck."""
MIN_SHIFT_LIMIT, MIN_ZOOM_LIMIT = 0.06, 0.05
"""Bounds for a source head that fills the crop: about twice the shift and zoom of idle motion."""
START_MARGIN = 1.1
"""A motion that starts near or beyond a bound gets a bound that is larger than its start by this factor."""
REPORT_THRESHOLDS = (3.0, 0.05, 0.03)
"""Reductions in degrees, head units and log scale from which on a limit is reported to the user."""


def soft_clip(values: np.ndarray, bound: np.ndarray | float) -> np.ndarray:
    """Compress values toward +-bound: unchanged up to ``SOFT_CLIP_KNEE * bound``, twice continuously differentiable.

    Args:
        values: of any shape.
        bound: positive, broadcast to ``values``.
    """
    knee = SOFT_CLIP_KNEE * np.asarray(bound, np.float64)
    beyond = np.maximum(np.abs(values) - knee, 0.0)
    width = bound - knee
    return np.where(beyond > 0.0, np.sign(values) * (knee + width * np.tanh(beyond / width)), values)


def invert_soft_clip(values: np.ndarray | float, bound: np.ndarray | float) -> np.ndarray:
    """Invert :func:`soft_clip`; values must lie within +-bound."""
    knee = SOFT_CLIP_KNEE * np.asarray(bound, np.float64)
    beyond = np.maximum(np.abs(values) - knee, 0.0)
    width = bound - knee
    return np.where(beyond > 0.0, np.sign(values) * (knee + width * np.arctanh(beyond / width)), values)


@dataclass(frozen=True)
class LimitedMotion:
    """Motion within its limits, with its largest rotation, shift and zoom before and after limiting."""

    motion: HeadPose
    requested: tuple[float, float, float]
    """Degrees, head units and log scale relative to the source pose, before limiting."""
    applied: tuple[float, float, float]
    """The same after limiting."""

    def describe(self) -> str:
        """Describe what was limited noticeably; empty if nothing was."""
        names = ("turn of {:.0f} to {:.0f} degrees", "shift of {:.2f} to {:.2f} head units", "size x{:.2f} to x{:.2f}")
        parts = []
        for name, requested, applied, threshold in zip(
            names, self.requested, self.applied, REPORT_THRESHOLDS, strict=True
        ):
            if abs(requested - applied) > threshold:
                pair = (np.exp(requested), np.exp(applied)) if name.startswith("size") else (requested, applied)
                parts.append(name.format(*pair))
        return ", ".join(parts)


def limit_motion(source: HeadPose, motion: HeadPose) -> LimitedMotion:
    """Limit motion to what the source image shows; the first pose of the motion stays exactly as it is.

    Args:
        source: the pose in the source image, one frame, crop-normalized.
        motion: T poses in that crop.
    """
    rotvecs = _relative_rotvecs(source, motion)
    zooms = np.log(motion.scale.astype(np.float64) / float(source.scale[0]))
    shifts = (motion.center - source.center).astype(np.float64) / float(source.scale[0])

    limited_rotvecs = _limit_rotation(source, motion, rotvecs)
    fitting = (1.0 - np.abs(_head_box_center(source)).max()) / (HEAD_HALF_SIZE * float(source.scale[0]))
    max_enlargement = np.clip(np.log(max(fitting, 1.0)), MIN_ZOOM_LIMIT, MAX_ZOOM)
    limited_zooms = _limit_from_start(zooms, np.where(zooms > 0.0, max_enlargement, MAX_ZOOM))
    limited_shifts = _limit_from_start(shifts, _shift_bounds(source, np.exp(limited_zooms), shifts))

    rotation = source.rotation[0].astype(np.float64) @ rotvec_to_matrix(limited_rotvecs)
    scale = source.scale[0] * np.exp(limited_zooms)
    center = source.center[0] + source.scale[0] * limited_shifts
    limited = HeadPose(*(part.astype(np.float32) for part in (rotation, scale, center)))
    requested, applied = (
        (_peak(np.degrees(np.linalg.norm(rotvec, axis=1))), _peak(np.linalg.norm(shift, axis=1)), _peak(zoom))
        for rotvec, shift, zoom in ((rotvecs, shifts, zooms), (limited_rotvecs, limited_shifts, limited_zooms))
    )
    return LimitedMotion(limited, requested, applied)


def _relative_rotvecs(source: HeadPose, motion: HeadPose) -> np.ndarray:
    """Return rotation vectors ``[T, 3]`` relative to the source pose, about the head's own axes, in radians."""
    start = source.rotation[0].astype(np.float64)
    return matrix_to_rotvec(start.T @ motion.rotation)


def _limit_rotation(source: HeadPose, motion: HeadPose, rotvecs: np.ndarray) -> np.ndarray:
    """Limit the angles of rotation vectors ``[T, 3]`` and keep their axes.

    The start may be rotated on purpose. The limit is inverted for it, and the motion continues from the inverted start,
    so that limiting reproduces the start exactly.
    """
    start = float(np.linalg.norm(rotvecs[0]))
    bound = max(np.radians(MAX_ROTATION_DEGREES), START_MARGIN * start)
    if start > SOFT_CLIP_KNEE * bound:
        unlimited_start = rotvec_to_matrix(rotvecs[0] * invert_soft_clip(start, bound) / start)
        since = motion.rotation[0].astype(np.float64).T @ motion.rotation
        rotvecs = matrix_to_rotvec(unlimited_start @ since)
    angles = np.linalg.norm(rotvecs, axis=1, keepdims=True)
    return rotvecs * soft_clip(angles, bound) / np.maximum(angles, 1e-12)


def _limit_from_start(values: np.ndarray, bound: np.ndarray) -> np.ndarray:
    """Limit values ``[T, ...]`` to bounds of that shape such that the first value does not change."""
    bound = np.maximum(bound, START_MARGIN * np.abs(values[0]))
    unlimited_start = invert_soft_clip(values[0], bound[0])
    return soft_clip(unlimited_start + (values - values[0]), bound)


def _head_box_center(source: HeadPose) -> np.ndarray:
    """Return the center of the box around the head ``[2]``, crop-normalized."""
    up = source.rotation[0, :2, 1].astype(np.float64) * np.array([1.0, -1.0])
    return source.center[0] + float(source.scale[0]) * CROP_CENTER_Y * up


def _shift_bounds(source: HeadPose, sizes: np.ndarray, shifts: np.ndarray) -> np.ndarray:
    """Return how far the head may shift so that its box stays inside the crop.

    Args:
        source: the pose in the source image.
        sizes: ``[T]`` relative sizes of the head.
        shifts: ``[T, 2]`` in the directions of which the bounds hold.

    Returns:
        ``[T, 2]`` head units.
    """
    scale = float(source.scale[0])
    side = np.where(shifts >= 0.0, 1.0, -1.0)
    gap = (1.0 - side * _head_box_center(source) - HEAD_HALF_SIZE * scale * sizes[:, None]) / scale
    # A smooth maximum, so that the motion of a growing head has no kink where the gap closes.
    mean, half = (gap + MIN_SHIFT_LIMIT) / 2, (gap - MIN_SHIFT_LIMIT) / 2
    return np.minimum(mean + np.sqrt(half**2 + 1e-4), MAX_SHIFT)


def _peak(values: np.ndarray) -> float:
    """Return the value of largest magnitude."""
    return float(values[np.abs(values).argmax()])
