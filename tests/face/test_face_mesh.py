"""The face mesh in PyTorch: it reads what mediapipe reads, wherever the window lies, and lets gradients through."""

from __future__ import annotations

import math

import numpy as np
import pytest
import skimage.data
import torch
from torch import Tensor

from s3dnerf.face.face_mesh import (
    POINTS,
    BlazeBlock,
    FaceMesh,
    FaceWindow,
    cut_window,
    frame_faces,
    pad_for_stride,
    place_points,
)
from s3dnerf.face.landmarks import load_mediapipe, run_graph


@pytest.fixture(scope="module")
def mesh() -> FaceMesh:
    return FaceMesh()


@pytest.fixture(scope="module")
def face() -> np.ndarray:
    """A real face, ``uint8 [256, 256, 3]``."""
    return np.ascontiguousarray(skimage.data.astronaut()[:256, 96:352])


@pytest.fixture(scope="module")
def tracked(face: np.ndarray) -> Tensor:
    """What mediapipe's plain mesh reads after it has settled, ``[1, 468, 2]`` image coordinates."""
    graph = load_mediapipe().solutions.face_mesh.FaceMesh(static_image_mode=False, refine_landmarks=False)
    with graph:
        for _ in range(8):
            (found,) = run_graph(graph, face).multi_face_landmarks
    return torch.tensor([[(2 * point.x - 1, 2 * point.y - 1) for point in found.landmark]])


def read(image: np.ndarray) -> Tensor:
    return torch.from_numpy(image).permute(2, 0, 1)[None] / 255.0


def look_around(points: Tensor) -> FaceWindow:
    return frame_faces(points, (points[:, 33], points[:, 263]))


def test_it_reads_what_mediapipe_reads(mesh: FaceMesh, face: np.ndarray, tracked: Tensor) -> None:
    seen = mesh(read(face), look_around(tracked)).points
    assert seen.shape == (1, POINTS, 2)
    # In pixels of 256; mediapipe resamples the picture a little differently.
    assert (seen - tracked).norm(dim=-1).mean() * 128 < 0.4


def test_a_turned_picture_is_read_turned(mesh: FaceMesh, face: np.ndarray, tracked: Tensor) -> None:
    angle = 0.3
    window = look_around(tracked)
    turn = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    # The picture turned about its middle: pixel p of the new one shows what the old one shows at turn^T p.
    whole = FaceWindow(torch.zeros(1, 2), torch.ones(1), torch.tensor([-angle]))
    grid = place_points(torch.stack(torch.meshgrid(*[torch.linspace(-1, 1, 256)] * 2, indexing="xy"), -1)[None], whole)
    turned = torch.nn.functional.grid_sample(read(face), grid, align_corners=True)
    moved = FaceWindow(window.center @ turn.T, window.reach, window.roll + angle)
    straight, slanted = mesh(read(face), window).points, mesh(turned, moved).points
    assert (slanted - straight @ turn.T).norm(dim=-1).mean() * 128 < 0.4


def test_the_window_is_the_box_around_the_face_and_half_of_it_more() -> None:
    points = torch.tensor([[[-0.2, -0.4], [0.4, 0.2], [0.0, 0.0], [0.3, 0.1]]])
    window = frame_faces(points, (points[:, 2], points[:, 3]))
    torch.testing.assert_close(window.center, torch.tensor([[0.1, -0.1]]))
    torch.testing.assert_close(window.reach, torch.tensor([0.45]))
    torch.testing.assert_close(window.roll, torch.tensor([math.atan2(0.1, 0.3)]))


def test_places_in_a_window_by_hand() -> None:
    window = FaceWindow(torch.tensor([[0.5, 0.1]]), torch.tensor([0.2]), torch.tensor([math.pi / 2]))
    corners = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    torch.testing.assert_close(place_points(corners, window), torch.tensor([[[0.5, 0.3], [0.3, 0.1]]]))


def test_an_upright_window_is_a_crop() -> None:
    image = torch.rand(1, 3, 384, 384, generator=torch.Generator().manual_seed(0))
    window = FaceWindow(torch.tensor([[-0.25, 0.25]]), torch.tensor([0.5]), torch.zeros(1))
    torch.testing.assert_close(cut_window(image, window), image[..., 144:336, 48:240], atol=1e-4, rtol=0)


def test_padding_goes_to_the_right_and_to_the_bottom() -> None:
    padded = pad_for_stride(torch.ones(1, 1, 2, 2), 3)
    assert padded[0, 0].tolist() == [[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 0.0]]


def test_a_halving_block_that_adds_nothing_keeps_the_largest() -> None:
    block = BlazeBlock(1, 3, halve=True)
    torch.nn.init.zeros_(block.pointwise.weight)
    torch.nn.init.zeros_(block.pointwise.bias)
    x = torch.tensor([[[[1.0, 2.0], [4.0, 3.0]]]])
    assert block(x)[0, :, 0, 0].tolist() == [4.0, 0.0, 0.0]


def test_gradients_reach_the_picture_and_no_weight(mesh: FaceMesh, face: np.ndarray, tracked: Tensor) -> None:
    image = read(face).requires_grad_(True)
    look = mesh(image, look_around(tracked))
    (look.points[:, 13, 1] - look.points[:, 14, 1]).sum().backward()
    gradient = image.grad.abs().sum(dim=1)[0]
    center = ((tracked[0, 13] + 1) * 128).long()
    beside = gradient[center[1] - 24 : center[1] + 24, center[0] - 24 : center[0] + 24].mean()
    # The gap between the lips hangs on the mouth more than on the rest of the face.
    assert beside > 4 * gradient.mean() > 0
    assert not any(parameter.requires_grad for parameter in mesh.parameters())
    assert [feature.shape[1:] for feature in look.features] == [
        (16, 96, 96), (32, 48, 48), (64, 24, 24), (128, 12, 12), (128, 6, 6), (128, 3, 3)
    ]  # fmt: skip
