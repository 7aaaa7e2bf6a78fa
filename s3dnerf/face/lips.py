"""Lip landmarks fused from two networks of the face tracker.

The refined mesh resolves lips finely but takes parted lips for closed ones in a blurred image. The plain mesh, which
looks at the whole face, does not, and resolves less of the lips' motion. Their errors differ: lips trained and driven
with the mean of both come closer to the real ones, whichever network they are evaluated with.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

import numpy as np
import torch

from s3dnerf.face.face_mesh import (
    MESH_INPUT_SIZE,
    MESH_POINT_COUNT,
    FaceMesh,
    compute_face_window,
    crop_pixels,
    load_face_mesh,
    window_to_image,
)
from s3dnerf.face.points import KEPT_POINTS, LIPS_INNER, LIPS_OUTER, OUTER_EYE_CORNERS, select_points

LIP_POINTS = np.array((*LIPS_OUTER, *LIPS_INNER))
"""Mesh points of both lips."""
SHARED_POINTS = KEPT_POINTS[KEPT_POINTS < MESH_POINT_COUNT]
"""Kept points that the plain mesh has too; they span the face."""
LIP_BATCH_FRAMES = 8
"""Batch size of the plain mesh; larger batches are slower, because they do not fit into the cache."""


def fuse_lip_landmarks(mesh: FaceMesh, images: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    """Average the lips of the refined mesh with those of the plain mesh.

    Args:
        mesh: the plain mesh.
        images: ``uint8 [T, S, S, 3]`` crops.
        landmarks: ``float32 [T, 478, 3]`` of the refined mesh in these crops, crop-normalized (u, v, d).

    Returns:
        A copy of ``landmarks`` in which the lips have the mean shape of both meshes. The center and the depth of each
        mouth are kept.
    """
    groups = (SHARED_POINTS, OUTER_EYE_CORNERS)
    face, corners = (torch.from_numpy(select_points(landmarks, numbers)[..., :2]).float() for numbers in groups)
    left, right = corners.unbind(1)
    window = compute_face_window(face, (left, right))
    with torch.inference_mode(), torch.autocast("cpu", enabled=False):
        points = mesh.locate(crop_pixels(images, window)).points[..., :2]
        plain = window_to_image(2.0 * points / MESH_INPUT_SIZE - 1.0, window).numpy()[:, LIP_POINTS]
    refined = landmarks[:, LIP_POINTS, :2]
    fused = landmarks.copy()
    fused[:, LIP_POINTS, :2] = (refined + plain + (refined - plain).mean(axis=1, keepdims=True)) / 2
    return fused


def fuse_video_lips(frames: Iterable[np.ndarray], landmarks: np.ndarray) -> np.ndarray:
    """Apply :func:`fuse_lip_landmarks` to a video, ``LIP_BATCH_FRAMES`` frames at a time.

    Args:
        frames: T crops ``uint8 [S, S, 3]``.
        landmarks: ``float32 [T, 478, 3]`` in them, crop-normalized.
    """
    mesh, stream = load_face_mesh(), iter(frames)
    batches = np.split(landmarks, range(LIP_BATCH_FRAMES, len(landmarks), LIP_BATCH_FRAMES))
    return np.concatenate(
        [fuse_lip_landmarks(mesh, np.stack(list(islice(stream, len(some)))), some) for some in batches]
    )
