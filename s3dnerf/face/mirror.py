"""Mirror images of poses and landmarks, left to right."""

from __future__ import annotations

from functools import cache

import numpy as np

from s3dnerf.face.camera import load_canonical_face
from s3dnerf.face.points import KEPT_POINTS

MIRROR = np.diag([-1.0, 1.0, 1.0]).astype(np.float32)


@cache
def point_mirrors() -> np.ndarray:
    """Return the number of the mirror image of each landmark, ``int [478]``."""
    # The canonical face is exactly symmetric, so the nearest mirrored point is the pair.
    face = load_canonical_face()
    return np.square((face @ MIRROR)[:, None] - face).sum(axis=-1).argmin(axis=1)


@cache
def kept_point_mirrors() -> np.ndarray:
    """Return the row of the mirror image of each kept landmark, ``int [P]``."""
    return np.searchsorted(KEPT_POINTS, point_mirrors()[KEPT_POINTS])


def mirror_pose(
    rotation: np.ndarray, center: np.ndarray, eyes: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mirror head poses (``rotation [T, 3, 3]``, ``center [T, 2]``) and eye openness ``[T, 2]`` left to right."""
    return MIRROR @ rotation @ MIRROR, center * np.array([-1, 1], np.float32), eyes[:, ::-1]


def mirror_landmarks(points: np.ndarray) -> np.ndarray:
    """Mirror kept landmarks or their displacements ``[T, P, 3]`` in head space."""
    return points[:, kept_point_mirrors()] * np.array([-1, 1, 1], np.float32)
