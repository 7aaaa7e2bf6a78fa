"""Fused lip landmarks: the mean by hand and on a real face."""

from __future__ import annotations

import numpy as np
import pytest
import skimage.data
import torch
from torch import Tensor

from s3dnerf.face import lips
from s3dnerf.face.camera import fit_head_pose
from s3dnerf.face.crop import apply_crop, choose_crop, crop_landmarks
from s3dnerf.face.face_mesh import MESH_INPUT_SIZE, MESH_POINT_COUNT, FaceMesh, MeshPoints
from s3dnerf.face.landmarks import to_pixels
from s3dnerf.face.lips import LIP_POINTS, SHARED_POINTS, fuse_lip_landmarks, fuse_video_lips
from s3dnerf.face.points import POINT_COUNT
from s3dnerf.face.search import detect_faces


class Witness:
    """A face mesh that finds given points, in pixels of its input, and records its input."""

    def __init__(self, points: np.ndarray) -> None:
        self.points = torch.from_numpy(points)

    def locate(self, crop: Tensor) -> MeshPoints:
        self.crop = crop
        return MeshPoints(self.points, torch.ones(len(crop)))


def move_to_input(points: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    """Map image coordinates ``[T, P, 2]`` to pixels ``[T, P, 3]`` of the window around faces with ``landmarks``."""
    shared = landmarks[:, SHARED_POINTS, :2]
    low, high = shared.min(1), shared.max(1)
    across = landmarks[:, 263, :2] - landmarks[:, 33, :2]
    cos, sin = (across / np.linalg.norm(across, axis=-1, keepdims=True)).T
    turn = np.stack([np.stack([cos, -sin]), np.stack([sin, cos])]).transpose(2, 0, 1)
    half = 0.75 * (high - low).max(-1)[:, None, None]
    inside = (points - (low + high)[:, None] / 2) @ turn / half
    return np.concatenate([(inside + 1) * (MESH_INPUT_SIZE / 2), 0 * inside[..., :1]], axis=-1).astype(np.float32)


@pytest.fixture(scope="module")
def face() -> tuple[np.ndarray, np.ndarray]:
    """A real face: its crop ``uint8 [1, 256, 256, 3]`` and landmarks ``[1, 478, 3]`` in it."""
    picture = skimage.data.astronaut()
    points = to_pixels(detect_faces(picture)[0], picture.shape[:2])[None]
    box = choose_crop(fit_head_pose(points), picture.shape[:2])
    return apply_crop(picture, box, 256)[None], crop_landmarks(points, box)


def test_lips_are_averaged_about_their_own_centers() -> None:
    rng = np.random.default_rng(0)
    landmarks = rng.uniform(-0.5, 0.5, (2, POINT_COUNT, 3)).astype(np.float32)
    seen = rng.uniform(-0.5, 0.5, (2, MESH_POINT_COUNT, 2)).astype(np.float32)
    before = landmarks.copy()
    witness = Witness(move_to_input(seen, landmarks))
    averaged = fuse_lip_landmarks(witness, np.zeros((2, 8, 8, 3), np.uint8), landmarks)
    assert np.array_equal(landmarks, before)
    others = np.setdiff1d(np.arange(POINT_COUNT), LIP_POINTS)
    assert np.array_equal(averaged[:, others], landmarks[:, others])
    assert np.array_equal(averaged[..., 2], landmarks[..., 2])
    for frame in range(2):
        middle, other = landmarks[frame, LIP_POINTS, :2].mean(0), seen[frame, LIP_POINTS].mean(0)
        for number in LIP_POINTS:
            shape = landmarks[frame, number, :2] - middle, seen[frame, number] - other
            np.testing.assert_allclose(averaged[frame, number, :2], middle + (shape[0] + shape[1]) / 2, atol=1e-6)


def test_plain_mesh_sees_the_face_in_the_middle_with_level_eyes(face: tuple[np.ndarray, np.ndarray]) -> None:
    image, landmarks = face
    witness = Witness(np.zeros((1, MESH_POINT_COUNT, 3), np.float32))
    fuse_lip_landmarks(witness, image, landmarks)
    assert witness.crop.shape == (1, 3, MESH_INPUT_SIZE, MESH_INPUT_SIZE) and 0.5 < witness.crop.max() <= 1.0
    points = FaceMesh().locate(witness.crop).points[0, :, :2]
    middle = (points.amin(0) + points.amax(0)) / 2
    assert (middle - MESH_INPUT_SIZE / 2).abs().max() < 4
    assert (points[263] - points[33])[1].abs() < 0.03 * (points[263] - points[33])[0]


def test_both_networks_nearly_agree_on_a_real_face(face: tuple[np.ndarray, np.ndarray]) -> None:
    image, landmarks = face
    change = (
        np.linalg.norm((fuse_lip_landmarks(FaceMesh(), image, landmarks) - landmarks)[0, LIP_POINTS, :2], axis=-1) * 128
    )
    # In pixels of 256; this mouth is about 40 pixels wide.
    assert 0.05 < change.mean() < 1.5


def test_lips_move_with_the_image(face: tuple[np.ndarray, np.ndarray]) -> None:
    image, landmarks = face
    shifted = landmarks + np.float32([16 / 128, 0, 0])
    moved = fuse_lip_landmarks(FaceMesh(), np.roll(image, 16, axis=2), shifted) - fuse_lip_landmarks(
        FaceMesh(), image, landmarks
    )
    np.testing.assert_allclose(moved[0, LIP_POINTS, 0], 16 / 128, atol=2e-3)
    np.testing.assert_allclose(moved[0, LIP_POINTS, 1], 0.0, atol=2e-3)


def test_long_videos_are_fused_in_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (5, 64, 64, 3), dtype=np.uint8)
    landmarks = rng.uniform(-0.5, 0.5, (5, POINT_COUNT, 3)).astype(np.float32)
    monkeypatch.setattr(lips, "LIP_BATCH_FRAMES", 2)
    expected = fuse_lip_landmarks(FaceMesh(), frames, landmarks)
    np.testing.assert_allclose(fuse_video_lips(iter(frames), landmarks), expected, atol=1e-5)
