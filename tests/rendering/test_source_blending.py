"""Weights of several images of one person, on flows and poses computed by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from s3dnerf.ops.image import make_pixel_grid
from s3dnerf.rendering.source_blending import (
    CLOSED_PENALTY,
    LOWEST_RESOLUTION,
    SourceView,
    blend_images,
    blend_views,
    measure_deficit,
    measure_resolution,
    measure_turn,
    weigh_views,
)
from s3dnerf.structures import Camera

SIZE = 64
OPEN_EYES, CLOSED_EYES = torch.tensor([[1.0, 1.0]]), torch.tensor([[-0.1, 1.0]])
CLOSED_LIPS, TEETH = torch.tensor([0.0]), torch.tensor([0.1])


def make_camera(yaw: float = 0.0, roll: float = 0.0) -> Camera:
    """Return a camera of a head in the middle, turned by degrees."""
    yaw, roll = math.radians(yaw), math.radians(roll)
    turn = [[math.cos(yaw), 0.0, math.sin(yaw)], [0.0, 1.0, 0.0], [-math.sin(yaw), 0.0, math.cos(yaw)]]
    tilt = [[math.cos(roll), -math.sin(roll), 0.0], [math.sin(roll), math.cos(roll), 0.0], [0.0, 0.0, 1.0]]
    return Camera(torch.tensor(tilt)[None] @ torch.tensor(turn)[None], torch.tensor([0.5]), torch.zeros(1, 2))


def make_view(
    flow: Tensor | None = None,
    *,
    camera: Camera | None = None,
    alpha: float = 1.0,
    value: float = 0.0,
    eyes: Tensor = OPEN_EYES,
    opening: Tensor = CLOSED_LIPS,
    resolution: float = 1.0,
) -> SourceView:
    """Return a view of one color and opacity, by default of an image that nothing stretches."""
    flow = torch.zeros(1, 2, SIZE, SIZE) if flow is None else flow
    fine = torch.cat([torch.full((1, 4, SIZE, SIZE), value), torch.full((1, 1, SIZE, SIZE), alpha), flow], dim=1)
    return SourceView(
        camera=camera or make_camera(),
        resolution=torch.tensor([resolution]),
        eyes=eyes,
        opening=opening,
        coarse=fine[..., ::2, ::2],
        fine=fine,
        warped=torch.full((1, 3, 2 * SIZE, 2 * SIZE), value),
        inputs=torch.full((1, 20, SIZE, SIZE), value),
    )


def scale_flow(along_u: float, along_v: float) -> Tensor:
    """Return a flow by which pixels of the frame are so much apart in the source."""
    grid = make_pixel_grid(SIZE, SIZE).permute(2, 0, 1)[None]
    return grid * torch.tensor([along_u - 1.0, along_v - 1.0]).view(1, 2, 1, 1)


def weigh(*views: SourceView, eyes: Tensor = OPEN_EYES, opening: Tensor = CLOSED_LIPS) -> list[float]:
    """Return the weight of each view in the middle of the face."""
    weights = weigh_views(views, make_camera(), [eyes] * len(views), opening)
    torch.testing.assert_close(weights.sum(0), torch.ones(1, 1, SIZE, SIZE))
    return weights[:, 0, 0, SIZE // 2, SIZE // 2].tolist()


@pytest.mark.parametrize(("u", "v"), [(1.0, 1.0), (0.5, 1.0), (0.6, 0.9), (2.0, 1.0)])
def test_resolution_is_the_root_of_the_stretched_area(u: float, v: float) -> None:
    expected = torch.full((1, 1, SIZE, SIZE), math.sqrt(u * v))
    torch.testing.assert_close(measure_resolution(scale_flow(u, v)), expected, atol=1e-4, rtol=0)


def test_surfaces_that_face_away_have_the_lowest_resolution() -> None:
    lowest = torch.full((1, 1, SIZE, SIZE), LOWEST_RESOLUTION)
    torch.testing.assert_close(measure_resolution(scale_flow(-1.0, 1.0)), lowest)


def test_turns_are_angles_between_directions_without_roll() -> None:
    turn = measure_turn(make_camera(30.0), make_camera(-10.0))
    torch.testing.assert_close(turn, torch.tensor([math.radians(40.0)]), atol=1e-3, rtol=0)
    assert measure_turn(make_camera(20.0, roll=50.0), make_camera(20.0)).item() == pytest.approx(0.0, abs=2e-3)


def test_one_image_has_all_weight() -> None:
    view = make_view(value=0.3)
    weights = weigh_views([view], make_camera(), [OPEN_EYES], CLOSED_LIPS)
    assert weights.shape == (1, 1, 1, SIZE, SIZE) and bool((weights == 1.0).all())
    assert blend_views([view], weights) is view


def test_of_equal_images_the_first_one_is_taken() -> None:
    first, second = weigh(make_view(), make_view())
    assert first > 0.85 and first + second == pytest.approx(1.0)


def test_the_image_that_shows_a_region_from_the_front_is_taken() -> None:
    stretched = make_view(scale_flow(0.4, 1.0))
    assert weigh(stretched, make_view())[1] > 0.9
    assert weigh(make_view(), stretched)[1] < 0.01


def test_the_image_whose_head_is_turned_as_the_frame_is_taken() -> None:
    assert weigh(make_view(camera=make_camera(40.0)), make_view(camera=make_camera(2.0)))[1] > 0.95


def test_a_small_photograph_counts_less() -> None:
    turned = make_view(camera=make_camera(25.0))
    large, small = (weigh(turned, make_view(resolution=resolution))[1] for resolution in (1.0, 0.3))
    assert large > 0.8 and small < 0.1


def test_hair_and_shoulders_come_from_another_image_only_if_it_is_nearer() -> None:
    empty = make_view(alpha=0.0)
    assert weigh(make_view(), empty)[1] < 1e-4
    views = [make_view(camera=make_camera(40.0)), empty]
    weights = weigh_views(views, make_camera(), [OPEN_EYES] * 2, CLOSED_LIPS)[1, 0, 0]
    assert weights.min() > 0.9


def test_closed_eyes_and_hidden_teeth_are_missing_where_they_are() -> None:
    view, frame = make_view(eyes=CLOSED_EYES), make_camera()
    missing = measure_deficit(view, frame, OPEN_EYES, CLOSED_LIPS)[0, 0]
    # The eye on the viewer's left lies at (-0.26, 0.2) of the head, half a unit of the image each.
    row, left, right = round((1 - 0.1) * SIZE / 2), round((1 - 0.13) * SIZE / 2), round((1 + 0.13) * SIZE / 2)
    assert missing[row, left].item() == pytest.approx(CLOSED_PENALTY)
    assert missing[row, right].item() == 0.0 and missing[-8:].abs().max() == 0.0
    assert measure_deficit(view, frame, CLOSED_EYES, CLOSED_LIPS).abs().max() == 0.0
    mouth = round((1 + 0.21) * SIZE / 2)
    teeth = measure_deficit(make_view(), frame, OPEN_EYES, TEETH)[0, 0]
    assert teeth[mouth, SIZE // 2].item() == pytest.approx(CLOSED_PENALTY) and teeth[: SIZE // 3].abs().max() == 0.0
    assert measure_deficit(make_view(opening=TEETH), frame, OPEN_EYES, TEETH).abs().max() == 0.0


def test_all_parts_are_blended_by_the_same_weights_but_for_the_flow() -> None:
    weights = torch.zeros(2, 1, 1, SIZE, SIZE)
    weights[0], weights[1] = 0.25, 0.75
    views = make_view(value=0.0), make_view(scale_flow(0.5, 0.5), value=1.0, alpha=0.2)
    blended = blend_views(views, weights)
    for part in (blended.warped, blended.inputs, blended.coarse[:, :4], blended.fine[:, :4]):
        torch.testing.assert_close(part, torch.full_like(part, 0.75))
    torch.testing.assert_close(blended.alpha, torch.full((1, 1, SIZE // 2, SIZE // 2), 0.25 + 0.75 * 0.2))
    assert torch.equal(blended.flow, views[0].flow)


def test_the_blended_source_is_the_same_in_both_inputs_of_super_resolution() -> None:
    generator = torch.Generator().manual_seed(0)
    weights = torch.rand(2, 1, 1, SIZE, SIZE, generator=generator)
    weights = weights / weights.sum(0)
    images = torch.rand(2, 1, 3, 2 * SIZE, 2 * SIZE, generator=generator)
    unshuffled = torch.nn.functional.pixel_unshuffle
    views = [
        replace(make_view(), warped=image, inputs=torch.cat([unshuffled(image, 2), torch.zeros(1, 8, SIZE, SIZE)], 1))
        for image in images
    ]
    blended = blend_views(views, weights)
    torch.testing.assert_close(blended.inputs[:, :12], unshuffled(blended.warped, 2))


def test_images_are_blended_in_their_own_precision() -> None:
    weights = torch.full((2, 1, 1, 4, 4), 0.5)
    blended = blend_images([torch.ones(1, 3, 8, 8, dtype=torch.bfloat16), torch.zeros(1, 3, 8, 8)], weights)
    assert blended.dtype == torch.bfloat16 and bool((blended == 0.5).all())
