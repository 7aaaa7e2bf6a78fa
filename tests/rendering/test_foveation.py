"""Foveated rays: where they lie, how they follow the head, and what they leave unchanged."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from s3dnerf.ops.image import make_pixel_grid
from s3dnerf.rendering.foveation import EYES, MOUTH, FoveatedRays, fade, place_foveated_rays
from s3dnerf.rendering.rays import project_points
from s3dnerf.structures import Camera

SIZE = 64


def make_camera(u: float = 0.0, v: float = 0.0, scale: float = 0.8) -> Camera:
    return Camera(torch.eye(3)[None], torch.tensor([scale]), torch.tensor([[u, v]]))


def read_points(values: Tensor, points: Tensor) -> Tensor:
    """Sample ``values [B, C, H, W]`` at pixel centers ``points [B, N, 2]``."""
    read = torch.nn.functional.grid_sample(values, points[:, None], mode="nearest", align_corners=False)
    return read[:, :, 0]


def place(
    camera: Camera, mouth: tuple[float, float], eye: tuple[float, float] = (0.0, 0.0), size: int = SIZE
) -> FoveatedRays:
    return place_foveated_rays(camera, size, mouth, eye)


def test_patches_lie_around_mouth_and_eyes() -> None:
    camera = make_camera(0.1, -0.05)
    fovea = place(camera, (0.25, 0.25), (0.125, 0.125))
    for center, points in zip((MOUTH, *EYES), fovea.points.split([16 * 16, 8 * 8, 8 * 8], dim=1), strict=True):
        wanted = project_points(torch.tensor([[center]]), camera)[0, 0, :2]
        # Patches move in steps of whole cells, so the error is half a cell at most.
        assert (points.mean(dim=1)[0] - wanted).abs().max() <= 1.0 / SIZE + 1e-6


def test_points_are_the_centers_of_their_cells() -> None:
    fovea = place_foveated_rays(make_camera(), SIZE)
    grid = make_pixel_grid(SIZE, SIZE).flatten(0, 1)
    torch.testing.assert_close(fovea.points[0], grid[fovea.cells[0]])


def test_patches_follow_the_head() -> None:
    first, second = (place(make_camera(shift), (0.25, 0.25)) for shift in (0.0, 2 * 5 / SIZE))
    assert first.cells.shape == (1, 16 * 16)
    assert torch.equal(second.cells, first.cells + 5)


@pytest.mark.parametrize("where", [(-3.0, 0.0), (3.0, 0.0), (0.0, -3.0), (0.0, 3.0)])
def test_patches_stay_within_the_frame(where: tuple[float, float]) -> None:
    fovea = place(make_camera(*where), (0.22, 0.28))
    assert fovea.points.abs().max() < 1.0
    assert len(fovea.cells[0].unique()) == fovea.cells.shape[1]


def test_without_patches_there_are_no_rays() -> None:
    fovea = place(make_camera(), (0.0, 0.0))
    canvas = torch.rand(1, 2, SIZE, SIZE)
    assert fovea.points.shape == (1, 0, 2)
    assert torch.equal(fovea.paste(torch.zeros(1, 2, 0), canvas), canvas)


def test_pasting_what_is_there_changes_nothing() -> None:
    fovea = place_foveated_rays(make_camera(0.07, 0.03), SIZE)
    canvas = torch.rand(1, 3, SIZE, SIZE)
    torch.testing.assert_close(fovea.paste(read_points(canvas, fovea.points), canvas), canvas)


def test_pasted_values_replace_the_middle_and_fade_at_the_border() -> None:
    # The mouth of this head is in the middle of the frame.
    fovea = place(make_camera(v=-0.42 * 0.8), (0.25, 0.25))
    pasted = fovea.paste(torch.ones(1, 1, 256), torch.zeros(1, 1, SIZE, SIZE))[0, 0]
    border = [0.25, 0.5, 0.75]
    torch.testing.assert_close(pasted[32, 22:42], torch.tensor([0, 0, *border, *[1.0] * 10, *border[::-1], 0, 0]))
    assert pasted.sum().item() == pytest.approx((10 + 2 * 1.5) ** 2)


def test_patches_that_meet_share_their_cells() -> None:
    # The head is so small that eyes and mouth lie within one patch.
    fovea = place(make_camera(scale=0.05), (0.3, 0.3), (0.3, 0.3))
    pasted = fovea.paste(torch.ones(1, 1, fovea.cells.shape[1]), torch.zeros(1, 1, SIZE, SIZE))[0, 0]
    assert pasted.max().item() == pytest.approx(1.0, abs=1e-5)
    assert (pasted > 0.99).sum() > 150


def test_gradients_reach_canvas_and_values() -> None:
    fovea = place(make_camera(), (0.1, 0.1), size=16)
    values = torch.rand(1, 2, fovea.cells.shape[1], dtype=torch.float64, requires_grad=True)
    canvas = torch.rand(1, 2, 16, 16, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *given: fovea.paste(*given), (values, canvas))


def test_a_short_side_still_fades() -> None:
    torch.testing.assert_close(fade(3, torch.device("cpu")), torch.tensor([0.25, 0.5, 0.25]))
