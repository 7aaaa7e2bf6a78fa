"""Head motion in a file, so that a driving video is tracked once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from s3dnerf.constants import FPS
from s3dnerf.errors import UserError
from s3dnerf.face.camera import HeadPose
from s3dnerf.media.files import atomic_write

SUFFIX = ".safetensors"
SHAPES = {"rotation": (3, 3), "scale": (), "center": (2,)}
TOLERANCE = 1e-3
"""Largest deviation of a rotation from orthogonality."""


def write_motion(path: str | Path, pose: HeadPose) -> None:
    """Write T head poses at 25 frames per second; the file appears when it is complete.

    Raises:
        UserError: the file cannot be written.
    """
    parts = {name: np.ascontiguousarray(getattr(pose, name), np.float32) for name in SHAPES}
    with atomic_write(path) as part:
        part.write_bytes(save(parts, {"format": "s3dnerf head motion", "fps": str(FPS)}))


def read_motion(path: str | Path) -> HeadPose:
    """Read what :func:`write_motion` wrote.

    Raises:
        UserError: the file cannot be read, or holds no head motion.
    """
    hint = "Make one with `s3dnerf extract-motion`."
    try:
        with safe_open(path, "numpy") as file:
            parts = {name: file.get_tensor(name) for name in SHAPES}
    except (OSError, SafetensorError) as error:
        raise UserError(path, f"holds no head motion ({error})", hint) from error
    frames = len(parts["scale"]) if parts["scale"].ndim else 0
    if not frames or any(part.shape != (frames, *SHAPES[name]) for name, part in parts.items()):
        raise UserError(path, "holds arrays of other shapes than a head motion", hint)
    pose = HeadPose(**{name: part.astype(np.float32) for name, part in parts.items()})
    skew = np.abs(pose.rotation @ np.swapaxes(pose.rotation, -1, -2) - np.eye(3)).max()
    is_mirrored = (np.linalg.det(pose.rotation) <= 0.0).any()
    is_finite = all(np.isfinite(part).all() for part in parts.values())
    if not is_finite or skew > TOLERANCE or is_mirrored or (pose.scale <= 0.0).any():
        raise UserError(path, "holds poses that no head has", hint)
    return pose
