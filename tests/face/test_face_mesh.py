"""The face mesh in PyTorch: it matches mediapipe for any window and is differentiable."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from torch import Tensor

from s3dnerf.face.face_mesh import (
    MESH_POINT_COUNT,
    BlazeBlock,
    FaceMesh,
    FaceWindow,
    compute_face_window,
    crop_face_window,
    crop_pixels,
    load_face_mesh,
    pad_for_stride,
    window_to_image,
)

REFERENCES = Path(__file__).with_name("references.npz")
"""Made by tools/make_face_references.py."""


@pytest.fixture(scope="module")
def mesh() -> FaceMesh:
    return FaceMesh()


@pytest.fixture(scope="module")
def face() -> np.ndarray:
    """A real face, ``uint8 [256, 256, 3]``."""
    return np.ascontiguousarray(skimage.data.astronaut()[:256, 96:352])


@pytest.fixture(scope="module")
def tracked() -> Tensor:
    """Landmarks of mediapipe's plain mesh after it has settled, ``[1, 468, 2]`` image coordinates."""
    with np.load(REFERENCES) as stored:
        return torch.from_numpy(stored["plain"])[None]


def read(image: np.ndarray) -> Tensor:
    return torch.from_numpy(image).permute(2, 0, 1)[None] / 255.0


def make_window(points: Tensor) -> FaceWindow:
    return compute_face_window(points, (points[:, 33], points[:, 263]))


def test_landmarks_match_mediapipe(mesh: FaceMesh, face: np.ndarray, tracked: Tensor) -> None:
    seen = mesh(read(face), make_window(tracked)).points
    assert seen.shape == (1, MESH_POINT_COUNT, 2)
    # In pixels of 256; mediapipe resamples the image slightly differently.
    assert (seen - tracked).norm(dim=-1).mean() * 128 < 0.4


def test_landmarks_rotate_with_the_image(mesh: FaceMesh, face: np.ndarray, tracked: Tensor) -> None:
    angle = 0.3
    window = make_window(tracked)
    turn = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    # The image rotated about its center: pixel p of the new image is pixel turn^T p of the old one.
    whole = FaceWindow(torch.zeros(1, 2), torch.ones(1), torch.tensor([-angle]))
    grid = window_to_image(
        torch.stack(torch.meshgrid(*[torch.linspace(-1, 1, 256)] * 2, indexing="xy"), -1)[None], whole
    )
    turned = torch.nn.functional.grid_sample(read(face), grid, align_corners=True)
    moved = FaceWindow(window.center @ turn.T, window.half_size, window.roll + angle)
    straight, slanted = mesh(read(face), window).points, mesh(turned, moved).points
    assert (slanted - straight @ turn.T).norm(dim=-1).mean() * 128 < 0.4


def test_window_is_the_enlarged_bounding_box() -> None:
    points = torch.tensor([[[-0.2, -0.4], [0.4, 0.2], [0.0, 0.0], [0.3, 0.1]]])
    window = compute_face_window(points, (points[:, 2], points[:, 3]))
    torch.testing.assert_close(window.center, torch.tensor([[0.1, -0.1]]))
    torch.testing.assert_close(window.half_size, torch.tensor([0.45]))
    torch.testing.assert_close(window.roll, torch.tensor([math.atan2(0.1, 0.3)]))


def test_window_coordinates_by_hand() -> None:
    window = FaceWindow(torch.tensor([[0.5, 0.1]]), torch.tensor([0.2]), torch.tensor([math.pi / 2]))
    corners = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    torch.testing.assert_close(window_to_image(corners, window), torch.tensor([[[0.5, 0.3], [0.3, 0.1]]]))


def test_upright_window_is_a_crop() -> None:
    image = torch.rand(1, 3, 384, 384, generator=torch.Generator().manual_seed(0))
    window = FaceWindow(torch.tensor([[-0.25, 0.25]]), torch.tensor([0.5]), torch.zeros(1))
    torch.testing.assert_close(crop_face_window(image, window), image[..., 144:336, 48:240], atol=1e-4, rtol=0)


def test_padding_is_on_the_right_and_at_the_bottom() -> None:
    padded = pad_for_stride(torch.ones(1, 1, 2, 2), 3)
    assert padded[0, 0].tolist() == [[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 0.0]]


def test_downsampling_block_with_zero_weights_is_max_pooling() -> None:
    block = BlazeBlock(1, 3, downsample=True)
    torch.nn.init.zeros_(block.pointwise.weight)
    torch.nn.init.zeros_(block.pointwise.bias)
    x = torch.tensor([[[[1.0, 2.0], [4.0, 3.0]]]])
    assert block(x)[0, :, 0, 0].tolist() == [4.0, 0.0, 0.0]


def test_gradients_reach_the_image_and_no_weight(mesh: FaceMesh, face: np.ndarray, tracked: Tensor) -> None:
    image = read(face).requires_grad_(True)
    look = mesh(image, make_window(tracked))
    (look.points[:, 13, 1] - look.points[:, 14, 1]).sum().backward()
    gradient = image.grad.abs().sum(dim=1)[0]
    center = ((tracked[0, 13] + 1) * 128).long()
    beside = gradient[center[1] - 24 : center[1] + 24, center[0] - 24 : center[0] + 24].mean()
    # The gap between the lips depends on the mouth more than on the rest of the face.
    assert beside > 4 * gradient.mean() > 0
    assert not any(parameter.requires_grad for parameter in mesh.parameters())
    assert [feature.shape[1:] for feature in look.features] == [
        (16, 96, 96), (32, 48, 48), (64, 24, 24), (128, 12, 12), (128, 6, 6), (128, 3, 3)
    ]  # fmt: skip


def test_pixels_are_cropped_as_by_pytorch(face: np.ndarray) -> None:
    images = np.stack([face, np.ascontiguousarray(face[::-1])])
    window = FaceWindow(torch.tensor([[0.1, -0.2], [0.6, 0.9]]), torch.tensor([0.7, 0.4]), torch.tensor([0.3, -1.2]))
    expected = crop_face_window(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255.0, window)
    found = crop_pixels(images, window)
    assert found.shape == expected.shape == (2, 3, 192, 192) and found.dtype == torch.float32
    # Rounding of positions and colors.
    error = 255.0 * (found - expected).abs()
    assert error.mean() < 0.6 and error.max() < 8
    assert expected[1].eq(0).any() and found[1, expected[1] == 0].eq(0).float().mean() > 0.99


def test_networks_are_loaded_once() -> None:
    assert load_face_mesh() is load_face_mesh()
    assert not any(parameter.requires_grad for parameter in load_face_mesh().parameters())
