"""Consistency checks on a detected face, so that the user is warned before something that is no human face is animated.

Detectors sometimes find faces in animals, masks and random patterns. Three signs reveal them: the rigid part of the
mesh does not have the shape of a human face, the plain and the refined mesh disagree, or the plain mesh differs between
an image and its mirror image.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass

import numpy as np
import torch

from s3dnerf.face.camera import fit_head_pose, load_canonical_face, project
from s3dnerf.face.face_mesh import MESH_POINT_COUNT, FaceMesh, compute_face_window
from s3dnerf.face.lips import SHARED_POINTS
from s3dnerf.face.mirror import point_mirrors
from s3dnerf.face.points import OUTER_EYE_CORNERS, RIGID_POINTS

MAX_INCONSISTENCY = (0.05, 0.05, 0.05)
"""Largest values of :class:`LandmarkInconsistency`, in its order, that real faces reach."""


@dataclass(frozen=True)
class LandmarkInconsistency:
    """Mean distances between landmarks, in head units (the outer eye corners are 0.75 apart)."""

    shape: float
    """Between the rigid points and those of the canonical face in the same pose."""
    networks: float
    """Between the plain and the refined mesh."""
    mirror: float
    """Between the plain mesh of the image and that of its mirror image."""

    def __str__(self) -> str:
        return f"shape {self.shape:.3f}, networks {self.networks:.3f}, mirror image {self.mirror:.3f} of 0.050"

    @property
    def is_implausible(self) -> bool:
        """Whether any value is larger than on real faces."""
        return any(value > limit for value, limit in zip(astuple(self), MAX_INCONSISTENCY, strict=True))


def measure_inconsistency(mesh: FaceMesh, image: np.ndarray, landmarks: np.ndarray) -> LandmarkInconsistency:
    """Measure how far the landmarks of a face contradict each other.

    Args:
        mesh: the plain mesh.
        image: ``uint8 [S, S, 3]``, a crop of the head.
        landmarks: ``float32 [1, 478, 3]`` of the refined mesh in it, crop-normalized (u, v, d).
    """
    pose = fit_head_pose(landmarks)
    expected = project(load_canonical_face()[RIGID_POINTS], pose)[..., :2]
    batch = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255.0
    plain = _detect_plain(mesh, batch, landmarks[..., :2])
    mirror = np.array([-1.0, 1.0], np.float32)
    pairs = point_mirrors()
    mirrored = _detect_plain(mesh, batch.flip(-1), landmarks[:, pairs, :2] * mirror)
    mirrored = mirrored[:, pairs[:MESH_POINT_COUNT]] * mirror
    differences = (
        expected - landmarks[:, RIGID_POINTS, :2],
        plain - landmarks[:, :MESH_POINT_COUNT, :2],
        mirrored - plain,
    )
    return LandmarkInconsistency(*(float(np.linalg.norm(part, axis=-1).mean() / pose.scale[0]) for part in differences))


def _detect_plain(mesh: FaceMesh, image: torch.Tensor, landmarks: np.ndarray) -> np.ndarray:
    """Return landmarks ``[1, 468, 2]`` of the plain mesh for a face with refined landmarks ``[1, 478, 2]``."""
    groups = (SHARED_POINTS, list(OUTER_EYE_CORNERS))
    face, corners = (torch.from_numpy(landmarks[:, numbers].copy()) for numbers in groups)
    left, right = corners.unbind(1)
    with torch.inference_mode():
        return mesh(image, compute_face_window(face, (left, right))).points.numpy()
