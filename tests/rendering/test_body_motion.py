"""The body follows the neck and does not turn with the head."""

from __future__ import annotations

import math

import pytest
import torch

from s3dnerf.face.camera import load_canonical_face
from s3dnerf.face.points import KEPT_POINTS
from s3dnerf.rendering.body_motion import (
    NECK,
    SHARE,
    fade_to_border,
    fit_body_offsets,
    measure_body_flow,
    weigh_body,
)
from s3dnerf.rendering.rays import project_points
from s3dnerf.structures import Camera

from .conftest import make_turned_camera

SCALE = 0.6


def make_camera(yaw: float = 0.0, center: tuple[float, float] = (0.0, 0.0), scale: float = SCALE) -> Camera:
    return make_turned_camera(yaw, center, scale)


def test_the_body_makes_a_fraction_of_a_shift() -> None:
    flow = measure_body_flow(make_camera(center=(0.2, -0.1)), make_camera())
    torch.testing.assert_close(flow[0], torch.tensor([-0.2 * SHARE[0], 0.1 * SHARE[1]], dtype=torch.float64))


def test_a_turn_about_the_neck_leaves_the_body_in_place() -> None:
    # Turned by yaw, the neck is seen at u = scale z sin(yaw) + center; the center moves back by as much.
    center = (-SCALE * NECK[2] * math.sin(0.5), 0.0)
    assert measure_body_flow(make_camera(0.5, center), make_camera()).abs().max() < 1e-12


@pytest.mark.parametrize("yaw", [0.0, 0.4])
def test_moved_points_are_seen_where_the_flow_puts_them(yaw: float) -> None:
    frame, source = make_camera(yaw, (0.2, 0.1), 0.7), make_camera(-0.3, (-0.1, 0.05), 0.5)
    points = torch.rand(1, 40, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 2.0 - 1.0
    affine = fit_body_offsets(frame, source)
    still = points + points @ affine[:, :, :3].transpose(1, 2) + affine[:, None, :, 3]
    before, flow = project_points(points, frame), measure_body_flow(frame, source)[:, None]
    for moved, expected in ((still, before[..., :2]), (still + affine[:, None, :, 4], before[..., :2] + flow)):
        after = project_points(moved, source)
        torch.testing.assert_close(after[..., :2], expected)
        torch.testing.assert_close(after[..., 2], project_points(points, source)[..., 2])


def test_a_head_that_does_not_move_moves_no_body() -> None:
    assert fit_body_offsets(make_camera(0.3), make_camera(0.3)).abs().max() < 1e-12


def test_an_anchored_body_moves_only_far_from_sides_and_bottom() -> None:
    places = torch.tensor([[0.0, 0.0], [0.0, -1.0], [0.3, 0.45], [0.95, 0.2], [-0.9, 0.2], [0.0, 0.9], [0.0, 0.69]])
    assert fade_to_border(places).tolist() == pytest.approx([1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.5], abs=1e-5)


def test_faces_do_not_move_with_the_body() -> None:
    landmarks = load_canonical_face()[KEPT_POINTS]
    opened = torch.as_tensor(landmarks).clone().float()
    opened[:, 1] -= 0.1
    assert weigh_body(torch.as_tensor(landmarks).float()).max() == 0.0
    assert weigh_body(opened).max() < 0.05


def test_neck_and_chest_do() -> None:
    places = torch.tensor([[0.0, -1.0, -0.35], [0.8, -1.3, -0.4], [0.0, -1.5, 0.0], [0.0, 0.0, -0.9]])
    assert weigh_body(places).tolist() == [1.0, 1.0, 1.0, 0.0]
