"""Where lips are: what two networks of the face tracker say of it, averaged.

The refined mesh looks closely at lips, and in a blurred picture takes parted lips for closed ones; the plain mesh,
which looks at the whole face, does not, and sees less of what they do. Their errors differ: trained and driven by the
mean of both, lips come nearer to the real ones, whichever network judges.
"""

from __future__ import annotations

import numpy as np
import torch

from s3dnerf.face.canonical import OUTER_CORNERS
from s3dnerf.face.face_mesh import POINTS, FaceMesh, frame_faces
from s3dnerf.face.points import KEPT_POINTS, LIPS_INNER, LIPS_OUTER, select_points

LIPS = np.array((*LIPS_OUTER, *LIPS_INNER))
SEEN = KEPT_POINTS[KEPT_POINTS < POINTS]
"""Points that span the face, of those that the plain mesh has too."""


def average_lips(mesh: FaceMesh, images: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    """Average the lips of the refined mesh with those that the plain one sees.

    Args:
        mesh: the plain mesh.
        images: ``uint8 [T, S, S, 3]`` crops.
        landmarks: ``float32 [T, 478, 3]`` of the refined mesh in them, crop-normalized (u, v, d).

    Returns a copy of the landmarks in which the shape of the lips is the mean of both; each mouth keeps its middle and
    its depth.
    """
    numbers = (SEEN, OUTER_CORNERS)
    span, corners = (torch.from_numpy(select_points(landmarks, rows)[..., :2]).float() for rows in numbers)
    pictures = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255.0
    with torch.inference_mode():
        seen = mesh(pictures, frame_faces(span, corners.unbind(1))).points.numpy()[:, LIPS]
    lips = landmarks[:, LIPS, :2]
    averaged = landmarks.copy()
    averaged[:, LIPS, :2] = (lips + seen + (lips - seen).mean(axis=1, keepdims=True)) / 2
    return averaged
