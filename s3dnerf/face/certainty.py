"""How sure the face networks are of a face, so that what is no human face is not animated without a word.

Animals, masks and chance patterns are found as faces now and then. Three things give them away: the rigid part of the
mesh does not have the shape of a human face, the plain and the refined mesh disagree, or the plain mesh reads the
mirrored picture differently.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass
from functools import cache

import numpy as np
import torch

from s3dnerf.face.camera import fit_head_pose, load_canonical_face, project
from s3dnerf.face.canonical import OUTER_CORNERS, find_mirror_pairs
from s3dnerf.face.face_mesh import POINTS, FaceMesh, frame_faces
from s3dnerf.face.lips import SEEN
from s3dnerf.face.points import RIGID_POINTS

LARGEST = (0.05, 0.05, 0.05)
"""Doubts, in the order of :class:`FaceDoubts`, that no real face should reach."""


@dataclass(frozen=True)
class FaceDoubts:
    """Mean distances of landmarks, in head units (the outer corners of the eyes are 0.75 apart)."""

    shape: float
    """Between the rigid points and those of the canonical face, posed alike."""
    networks: float
    """Between the plain and the refined mesh."""
    mirror: float
    """Between what the plain mesh reads in the picture and in its mirror image."""

    def __str__(self) -> str:
        return f"shape {self.shape:.3f}, networks {self.networks:.3f}, mirror image {self.mirror:.3f} of 0.050"

    @property
    def is_unsure(self) -> bool:
        """Whether any of them is larger than on real faces."""
        return any(doubt > largest for doubt, largest in zip(astuple(self), LARGEST, strict=True))


def measure_doubts(mesh: FaceMesh, image: np.ndarray, landmarks: np.ndarray) -> FaceDoubts:
    """Measure how far the readings of a face disagree.

    Args:
        mesh: the plain mesh.
        image: ``uint8 [S, S, 3]``, a crop of the head.
        landmarks: ``float32 [1, 478, 3]`` of the refined mesh in it, crop-normalized (u, v, d).
    """
    pose = fit_head_pose(landmarks)
    expected = project(load_canonical_face()[RIGID_POINTS], pose)[..., :2]
    picture = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255.0
    plain = _read(mesh, picture, landmarks[..., :2])
    mirror = np.array([-1.0, 1.0], np.float32)
    pairs = _find_pairs()
    mirrored = _read(mesh, picture.flip(-1), landmarks[:, pairs, :2] * mirror)[:, pairs[:POINTS]] * mirror
    distances = (
        expected - landmarks[:, RIGID_POINTS, :2],
        plain - landmarks[:, :POINTS, :2],
        mirrored - plain,
    )
    return FaceDoubts(*(float(np.linalg.norm(part, axis=-1).mean() / pose.scale[0]) for part in distances))


@cache
def _find_pairs() -> np.ndarray:
    return find_mirror_pairs(load_canonical_face())


def _read(mesh: FaceMesh, picture: torch.Tensor, landmarks: np.ndarray) -> np.ndarray:
    """The plain mesh's landmarks [1, 468, 2] where the refined one sees a face [1, 478, 2]."""
    span, corners = (torch.from_numpy(landmarks[:, rows].copy()) for rows in (SEEN, list(OUTER_CORNERS)))
    with torch.inference_mode():
        return mesh(picture, frame_faces(span, corners.unbind(1))).points.numpy()
