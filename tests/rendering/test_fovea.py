"""Denser rays: where they lie, how they follow the head, and what they leave untouched."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from s3dnerf.rendering.fovea import EYES, MOUTH, FoveaConfig, fade, place_fovea, place_patch
from s3dnerf.rendering.rays import Camera, make_pixel_grid, project_points

SIZE = 64


def make_camera(u: float = 0.0, v: float = 0.0, scale: float = 0.8) -> Camera:
    return Camera(torch.eye(3)[None], torch.tensor([scale]), torch.tensor([[u, v]]))


def read_points(values: Tensor, points: Tensor) -> Tensor:
    """Read ``values [B, C, H, W]`` at pixel centers ``points [B, N, 2]``."""
    read = torch.nn.functional.grid_sample(values, points[:, None], mode="nearest", align_corners=False)
    return read[:, :, 0]


def test_patches_lie_around_mouth_and_eyes() -> None:
    camera = make_camera(0.1, -0.05)
    fovea = place_fovea(camera, FoveaConfig(mouth=(0.25, 0.25), eye=(0.125, 0.125)), SIZE)
    counts = [patch.cells.shape[1] for patch in fovea.patches]
    assert counts == [16 * 16, 8 * 8, 8 * 8]
    for center, points in zip((MOUTH, *EYES), fovea.points.split(counts, dim=1), strict=True):
        wanted = project_points(torch.tensor([[center]]), camera)[0, 0, :2]
        # In steps of whole cells, so half a cell off at most.
        assert (points.mean(dim=1)[0] - wanted).abs().max() <= 1.0 / SIZE + 1e-6


def test_points_are_the_centers_of_their_cells() -> None:
    fovea = place_fovea(make_camera(), FoveaConfig(), SIZE)
    grid = make_pixel_grid(SIZE, SIZE).flatten(0, 1)
    cells = torch.cat([patch.cells for patch in fovea.patches], dim=1)
    torch.testing.assert_close(fovea.points[0], grid[cells[0]])


def test_patches_follow_the_head() -> None:
    config = FoveaConfig(mouth=(0.25, 0.25), eye=(0.0, 0.0))
    first, second = (place_fovea(make_camera(shift), config, SIZE) for shift in (0.0, 2 * 5 / SIZE))
    assert len(first.patches) == 1
    assert torch.equal(second.patches[0].cells, first.patches[0].cells + 5)


@pytest.mark.parametrize("place", [(-3.0, 0.0), (3.0, 0.0), (0.0, -3.0), (0.0, 3.0)])
def test_patches_stay_within_the_frame(place: tuple[float, float]) -> None:
    fovea = place_fovea(make_camera(*place), FoveaConfig(), SIZE)
    assert fovea.points.abs().max() < 1.0
    for patch in fovea.patches:
        assert len(patch.cells[0].unique()) == patch.cells.shape[1]


def test_without_patches_there_are_no_rays() -> None:
    fovea = place_fovea(make_camera(), FoveaConfig(mouth=(0.0, 0.0), eye=(0.0, 0.0)), SIZE)
    canvas = torch.rand(1, 2, SIZE, SIZE)
    assert fovea.points.shape == (1, 0, 2)
    assert torch.equal(fovea.paste(torch.zeros(1, 2, 0), canvas), canvas)


def test_pasting_what_is_there_changes_nothing() -> None:
    fovea = place_fovea(make_camera(0.07, 0.03), FoveaConfig(), SIZE)
    canvas = torch.rand(1, 3, SIZE, SIZE)
    torch.testing.assert_close(fovea.paste(read_points(canvas, fovea.points), canvas), canvas)


def test_pasted_values_replace_the_middle_and_fade_at_the_border() -> None:
    patch = place_patch(make_camera(), (0.0, 0.0, 0.0), (0.25, 0.25), SIZE)
    pasted = patch.paste(torch.ones(1, 1, 256), torch.zeros(1, 1, SIZE, SIZE))[0, 0]
    torch.testing.assert_close(
        pasted[32, 22:42], torch.tensor([0, 0, 0.25, 0.5, 0.75, *[1.0] * 10, 0.75, 0.5, 0.25, 0, 0])
    )
    assert pasted.sum().item() == pytest.approx((10 + 2 * 1.5) ** 2)


def test_gradients_reach_canvas_and_values() -> None:
    patch = place_patch(make_camera(), (0.0, 0.0, 0.0), (0.1, 0.1), 16)
    values = torch.rand(1, 2, patch.cells.shape[1], dtype=torch.float64, requires_grad=True)
    canvas = torch.rand(1, 2, 16, 16, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(patch.paste, (values, canvas))


def test_a_short_side_still_fades() -> None:
    torch.testing.assert_close(fade(3, torch.device("cpu")), torch.tensor([0.25, 0.5, 0.25]))
