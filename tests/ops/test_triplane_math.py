"""Tri-planes against bilinear values computed by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from s3dnerf.ops.layout import PLANE_AXES
from s3dnerf.ops.triplane import sample_triplane


def read_bilinearly(plane: np.ndarray, u: float, v: float) -> np.ndarray:
    """Interpolate ``plane [C, H, W]`` at one point in image coordinates, in float64."""
    height, width = plane.shape[1:]
    x = min(max((u + 1) * width / 2 - 0.5, 0.0), width - 1.0)
    y = min(max((v + 1) * height / 2 - 0.5, 0.0), height - 1.0)
    left, top = min(int(x), width - 2), min(int(y), height - 2)
    a, b = x - left, y - top
    upper = (1 - a) * plane[:, top, left] + a * plane[:, top, left + 1]
    lower = (1 - a) * plane[:, top + 1, left] + a * plane[:, top + 1, left + 1]
    return (1 - b) * upper + b * lower


def test_middle_of_four_pixels_is_their_mean() -> None:
    planes = torch.zeros(1, 3, 1, 2, 2)
    planes[0, 0, 0] = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    values = sample_triplane(planes, torch.tensor([[[0.0, 0.0, 0.0], [-0.5, -0.5, 0.9], [0.5, 0.0, 0.0]]]))
    # The mean over three planes of which two are empty: 2.5 / 3, then pixel (0, 0), then between 2 and 4.
    torch.testing.assert_close(values[0, :, 0], torch.tensor([2.5, 1.0, 3.0]) / 3)


@pytest.mark.parametrize("plane", [0, 1, 2])
def test_each_plane_is_addressed_by_its_own_axes(plane: int) -> None:
    # A ramp along the width, and a ramp ten times as steep along the height.
    across, down = torch.meshgrid(torch.arange(4.0), 10 * torch.arange(4.0), indexing="xy")
    planes = torch.zeros(1, 3, 1, 4, 4)
    planes[0, plane, 0] = 3 * (across + down)
    position = torch.tensor([0.25, -0.25, 0.5])
    first, second = (position[axis].item() for axis in PLANE_AXES[plane])
    expected = (2 * first + 1.5) + 10 * (2 * second + 1.5)
    assert sample_triplane(planes, position.expand(1, 1, 3)).item() == pytest.approx(expected, rel=1e-6)


def test_axes_are_xy_yz_xz() -> None:
    assert PLANE_AXES == ((0, 1), (1, 2), (0, 2))


def test_random_positions_agree_with_the_reference() -> None:
    rng = np.random.default_rng(0)
    planes = rng.standard_normal((2, 3, 5, 6, 7))
    positions = rng.uniform(-1.4, 1.4, (2, 40, 3))
    got = sample_triplane(torch.from_numpy(planes).float(), torch.from_numpy(positions).float()).numpy()
    assert got.shape == (2, 40, 5)
    for batch in range(2):
        for index in range(40):
            read = [
                read_bilinearly(planes[batch, plane], *positions[batch, index, list(axes)])
                for plane, axes in enumerate(PLANE_AXES)
            ]
            np.testing.assert_allclose(got[batch, index], np.mean(read, axis=0), atol=2e-5)


def test_outside_reads_the_border() -> None:
    planes = torch.randn(1, 3, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    edge = sample_triplane(planes, torch.tensor([[[1.0, -1.0, 0.75], [-1.0, 1.0, 1.0]]]))
    beyond = sample_triplane(planes, torch.tensor([[[3.0, -1.2, 0.75], [-7.0, 2.0, 5.0]]]))
    torch.testing.assert_close(beyond, edge)


def test_gradient_of_planes_is_the_share_of_each_pixel() -> None:
    planes = torch.zeros(1, 3, 1, 2, 2, requires_grad=True)
    sample_triplane(planes, torch.tensor([[[0.25, -0.25, 0.5]]])).sum().backward()
    # x = 0.75 and y = 0.25 pixels: weights within the xy plane, divided by three because planes are averaged.
    expected = torch.tensor([[0.25 * 0.75, 0.75 * 0.75], [0.25 * 0.25, 0.75 * 0.25]]) / 3
    torch.testing.assert_close(planes.grad[0, 0, 0], expected)
    torch.testing.assert_close(planes.grad.sum(), torch.tensor(1.0))


def test_gradient_of_positions_is_the_slope() -> None:
    planes = torch.zeros(1, 3, 1, 4, 4)
    planes[0, 0, 0] = torch.arange(4.0)  # increases by 1 per pixel along x, 2 per unit
    positions = torch.tensor([[[0.1, 0.2, 0.3], [5.0, 0.0, 0.0]]], requires_grad=True)
    sample_triplane(planes, positions).sum().backward()
    torch.testing.assert_close(positions.grad[0, 0], torch.tensor([2.0 / 3, 0.0, 0.0]))
    assert (positions.grad[0, 1] == 0).all()
