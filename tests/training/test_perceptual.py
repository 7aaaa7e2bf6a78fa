"""Perceptual losses: zero for equal faces, known values for known shifts, larger for less similar faces."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import skimage.data
import torch
from torch import Tensor

from s3dnerf.data.batch import Frames
from s3dnerf.face.camera import fit_head_pose, to_head_space
from s3dnerf.face.crop import choose_crop, crop_landmarks, crop_pose
from s3dnerf.face.face_mesh import MESH_POINT_COUNT, FaceMesh, FaceMeshOutput, FaceWindow
from s3dnerf.face.landmarks import to_pixels
from s3dnerf.face.points import KEPT_POINTS
from s3dnerf.face.search import detect_faces
from s3dnerf.metrics.lips import MOUTH_POINTS
from s3dnerf.structures import Camera
from s3dnerf.training.perceptual import (
    LIP_SIDES,
    feature_loss,
    find_windows,
    measure_distance,
    perceptual_losses,
    seen_landmark_losses,
)

UPRIGHT = FaceWindow(torch.zeros(1, 2), torch.tensor([0.5]), torch.zeros(1))


@pytest.fixture(scope="module")
def mesh() -> FaceMesh:
    return FaceMesh()


@pytest.fixture(scope="module")
def frames() -> Frames:
    """Return one real face with its landmarks and its pose."""
    face = np.ascontiguousarray(skimage.data.astronaut()[:256, 96:352])
    pixels = to_pixels(detect_faces(face)[0], face.shape[:2])[None]
    pose = fit_head_pose(pixels)
    box = replace(choose_crop(pose, face.shape[:2]), x=0.0, y=0.0, side=256.0)
    pose = crop_pose(pose, box)
    landmarks = to_head_space(crop_landmarks(pixels, box), pose)[:, KEPT_POINTS]
    camera = Camera(
        *(torch.from_numpy(np.asarray(part, np.float32)) for part in (pose.rotation, pose.scale, pose.center))
    )
    image = torch.from_numpy(face).permute(2, 0, 1)[None] / 255.0
    tensor = torch.from_numpy(landmarks.astype(np.float32))
    return Frames(image, camera, tensor, tensor, torch.ones(1, 2), torch.zeros(1, 8), torch.ones(1))


def make_mesh_output(points: Tensor, *features: Tensor) -> FaceMeshOutput:
    return FaceMeshOutput(points, list(features))


def test_equal_pictures_differ_in_nothing(mesh: FaceMesh, frames: Frames) -> None:
    losses = perceptual_losses(mesh, frames.image.clone(), frames)
    assert losses.keys() == {"perceptual", "seen", "seen_gap"}
    assert all(value.item() == pytest.approx(0.0, abs=1e-6) for value in losses.values())


def test_the_window_lies_around_the_face(frames: Frames, mesh: FaceMesh) -> None:
    window = find_windows(frames)
    seen = mesh(frames.image, window).points
    middle = 0.5 * (seen.amin(1) + seen.amax(1))
    assert (middle - window.center).abs().max() < 0.05
    assert window.half_size.item() == pytest.approx(0.75 * (seen.amax(1) - seen.amin(1)).max().item(), rel=0.1)


def test_blur_is_seen_and_more_of_it_more(mesh: FaceMesh, frames: Frames) -> None:
    found = []
    for width in (3, 7, 15):
        blurred = torch.nn.functional.avg_pool2d(frames.image, width, 1, width // 2, count_include_pad=False)
        found.append(perceptual_losses(mesh, blurred, frames)["perceptual"].item())
    assert 0.02 < found[0] < found[1] < found[2]


def test_a_painted_mouth_is_seen_to_open(mesh: FaceMesh, frames: Frames) -> None:
    image = frames.image.clone()
    window = find_windows(frames)
    points = mesh(frames.image, window).points[0]
    left, right, low = ((points[number] + 1) * 128 for number in (78, 308, 17))
    rows, columns = torch.meshgrid(torch.arange(256), torch.arange(256), indexing="ij")
    middle = 0.5 * (left + right)
    inside = ((columns - middle[0]) / (right - left)[0] * 2.2) ** 2 + ((rows - low[1]) / 9) ** 2 < 1
    image[0, :, inside] = 0.08
    losses = perceptual_losses(mesh, image, frames)
    before, after = (mesh(one, window).points[0] for one in (frames.image, image))
    gaps = [(one[LIP_SIDES[1], 1] - one[LIP_SIDES[0], 1]).mean() for one in (before, after)]
    assert gaps[1] > gaps[0] + 0.02
    assert losses["seen_gap"] > 0.02


def test_features_are_compared_by_their_share() -> None:
    nothing = torch.zeros(1, MESH_POINT_COUNT, 2)
    real = make_mesh_output(nothing, torch.full((1, 2, 4, 4), 2.0), torch.full((1, 4, 2, 2), -10.0))
    made = make_mesh_output(nothing, torch.full((1, 2, 4, 4), 3.0), torch.full((1, 4, 2, 2), -9.0))
    assert feature_loss(made, real).item() == pytest.approx((0.5 + 0.1) / 2)


def test_a_moved_face_by_hand() -> None:
    real = torch.rand(1, MESH_POINT_COUNT, 2, generator=torch.Generator().manual_seed(0))
    moved = real + torch.tensor([0.03, 0.04])
    losses = seen_landmark_losses(make_mesh_output(moved), make_mesh_output(real), UPRIGHT)
    # 0.05 image units are a tenth of the window's half side; the mouth about its mean and all gaps are unchanged.
    assert losses["seen"].item() == pytest.approx(0.1 + 0.1, abs=2e-3)
    assert losses["seen_gap"].item() == pytest.approx(0.0, abs=1e-6)


def test_parted_lips_by_hand() -> None:
    real = torch.rand(1, MESH_POINT_COUNT, 2, generator=torch.Generator().manual_seed(0))
    made = real.clone()
    made[:, LIP_SIDES[1], 1] += 0.05
    losses = seen_landmark_losses(make_mesh_output(made), make_mesh_output(real), UPRIGHT)
    assert losses["seen_gap"].item() == pytest.approx(0.1, abs=1e-5)
    # Three of the forty points of the mouth move by 0.1, so its mean moves by 0.0075.
    mouth = (3 * 0.0925 + (len(MOUTH_POINTS) - 3) * 0.0075) / len(MOUTH_POINTS)
    assert losses["seen"].item() == pytest.approx(3 * 0.1 / MESH_POINT_COUNT + 2 * mouth, rel=0.1)


def test_distance_is_smooth_where_points_meet() -> None:
    points = torch.zeros(1, 3, 2, requires_grad=True)
    distance = measure_distance(points, torch.zeros(1, 3, 2))
    distance.backward()
    assert distance.item() == pytest.approx(0.0, abs=1e-7)
    assert torch.equal(points.grad, torch.zeros(1, 3, 2))
    assert measure_distance(torch.tensor([[[3.0, 4.0]]]), torch.zeros(1, 1, 2)).item() == pytest.approx(5.0, abs=2e-3)
