"""Hair moves like a plane through the head, shoulders with the neck."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from s3dnerf.ops.compose_layers import HEAD_FROM
from s3dnerf.ops.image import make_pixel_grid
from s3dnerf.rendering.body_motion import SHARE, measure_body_flow
from s3dnerf.rendering.person_layer import (
    DEPTH,
    composite_person_layer,
    compute_layer_flow,
    measure_layer_motion,
    render_person_layer,
    resize_matte,
)
from s3dnerf.structures import Camera

from .conftest import make_turned_camera

SIZE = 32
SCALE = 0.7


def make_camera(yaw: float = 0.0, center: tuple[float, float] = (0.0, 0.0), scale: float = SCALE) -> Camera:
    return make_turned_camera(yaw, center, scale)


def compute_flow(frame: Camera, source: Camera) -> Tensor:
    return compute_layer_flow(measure_layer_motion(frame, source), SIZE)


def find_heights() -> Tensor:
    """Return the height on the plane of each row of a frontal frame."""
    return -make_pixel_grid(SIZE, SIZE)[:, 0, 1].double() / SCALE


def test_a_head_that_does_not_move_has_no_flow() -> None:
    flow = compute_flow(make_camera(0.3), make_camera(0.3))
    assert flow.shape == (1, 2, SIZE, SIZE) and flow.abs().max() < 1e-12


def test_a_shifted_head_has_the_shift_back_as_flow_and_the_body_a_part_of_it() -> None:
    flow = compute_flow(make_camera(center=(0.2, -0.1)), make_camera())
    # The frame shows the plane 0.1 / SCALE higher.
    heights = find_heights() - 0.1 / SCALE
    shift = torch.tensor([-0.2, 0.1], dtype=torch.float64)
    head, body = flow[0, :, heights > HEAD_FROM[1]], flow[0, :, heights < HEAD_FROM[0]]
    assert head.shape[1] > 9 and body.shape[1] > 1
    torch.testing.assert_close(head, shift[:, None, None].expand_as(head))
    torch.testing.assert_close(body, (shift * torch.tensor(SHARE))[:, None, None].expand_as(body))
    between = flow[0, 0, (heights > HEAD_FROM[0]) & (heights < HEAD_FROM[1]), 4]
    assert len(between) > 2 and (between.diff() > 0.0).all()


def test_the_flow_of_a_turn_is_that_of_points_at_its_depth() -> None:
    # A head turned by yaw projects to u = scale (x cos + z sin); the source is frontal, with u = scale x.
    yaw = 0.4
    flow = compute_flow(make_camera(yaw), make_camera())
    u = make_pixel_grid(SIZE, SIZE)[0, :, 0].double()
    x = (u / SCALE - DEPTH * math.sin(yaw)) / math.cos(yaw)
    torch.testing.assert_close(flow[0, 0, 7], SCALE * x - u)
    body = measure_body_flow(make_camera(yaw), make_camera())
    torch.testing.assert_close(flow[0, :, -1], body[0, :, None].expand(-1, SIZE))


def test_a_head_seen_edge_on_stays_finite() -> None:
    assert compute_flow(make_camera(math.pi / 2), make_camera()).isfinite().all()


def test_mattes_of_any_size_cover_the_same_part() -> None:
    matte = torch.zeros(1, 1, 2 * SIZE, 2 * SIZE)
    matte[..., :16] = 1.0
    resized = resize_matte(matte, SIZE)
    assert resized[0, 0, 5].tolist() == pytest.approx([1.0] * 7 + [0.875, 0.125] + [0.0] * (SIZE - 9), abs=1e-6)


@pytest.fixture
def scene() -> tuple[Tensor, Tensor]:
    """Return a dark image with white hair in the upper left and a white shirt below."""
    image = torch.zeros(1, 3, SIZE, SIZE, dtype=torch.float64)
    image[:, :, 4:10, 4:10] = 1.0
    hair = image[:, :1].clone()
    image[:, :, 26:30, 4:10] = 1.0
    return image, hair


def test_hair_moves_with_the_head_and_the_rest_stays(scene: tuple[Tensor, Tensor]) -> None:
    image, hair = scene
    cells = 5
    behind = render_person_layer(
        image, hair, measure_layer_motion(make_camera(center=(cells * 2 / SIZE, 0.0)), make_camera())
    )
    assert behind.shape == (1, 6, SIZE, SIZE)
    share = torch.zeros(SIZE, SIZE, dtype=torch.float64)
    share[4:10, 4 + cells : 10 + cells] = 1.0
    torch.testing.assert_close(behind[0, 3], share)
    torch.testing.assert_close(behind[0, 0, :, 9:], torch.maximum(share, image[0, 0])[:, 9:])
    torch.testing.assert_close(behind[0, 4], -cells * 2 / SIZE * share)
    # The content behind hair that moved away is unknown here, so it stays as it was.
    assert behind[0, 0, 5, 4:8].tolist() == [1.0] * 4


def test_rays_that_stop_hide_what_lies_behind(scene: tuple[Tensor, Tensor]) -> None:
    behind = render_person_layer(*scene, measure_layer_motion(make_camera(center=(0.2, 0.1)), make_camera()))
    rendered = torch.rand(1, 8, SIZE, SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rendered[:, -3] = 1.0
    torch.testing.assert_close(composite_person_layer(rendered, behind), rendered)
    rendered[:, -3] = 0.0
    shown = composite_person_layer(rendered, behind)
    torch.testing.assert_close(shown[:, 3:5], rendered[:, 3:5])
    torch.testing.assert_close(shown[:, :3], rendered[:, :3] + behind[:, :3])
    torch.testing.assert_close(shown[:, 5:], rendered[:, 5:] + behind[:, 3:])


def test_gradients_of_what_is_rendered_are_right(scene: tuple[Tensor, Tensor]) -> None:
    behind = render_person_layer(*scene, measure_layer_motion(make_camera(0.2), make_camera()))[..., :5, :5]
    rendered = torch.rand(1, 7, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert torch.autograd.gradcheck(composite_person_layer, (rendered.requires_grad_(), behind))
