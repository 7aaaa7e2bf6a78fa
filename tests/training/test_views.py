"""Heads seen from sides that no image shows: geometry by hand."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from s3dnerf.data.batch import Batch, Frames
from s3dnerf.face.camera import HeadPose
from s3dnerf.face.motion import NECK_PIVOT, move_head
from s3dnerf.face.points import KEPT_POINTS
from s3dnerf.models.s3dnerf.identity import Identity, MotionIdentity
from s3dnerf.models.s3dnerf.s3dnerf import S3DNeRF
from s3dnerf.rendering.rays import project_points
from s3dnerf.structures import Camera
from s3dnerf.training.config import S3DNeRFConfig
from s3dnerf.training.views import (
    MAX_PITCH,
    MAX_YAW,
    find_visible_landmarks,
    turn_heads,
    turn_to_random_sides,
    view_losses,
)

POINTS = len(KEPT_POINTS)
SURFACE = 0.55
"""Where the wall of these tests stands, head units."""


def make_camera(count: int, yaw: float = 0.0) -> Camera:
    camera = Camera(torch.eye(3).expand(count, 3, 3), torch.full((count,), 0.5), torch.tensor([[0.1, -0.05]] * count))
    return turn_heads(camera, torch.full((count,), yaw), torch.zeros(count))


def make_frames(landmarks: Tensor, camera: Camera) -> Frames:
    count = len(landmarks)
    nothing = torch.zeros_like(landmarks)
    return Frames(None, camera, landmarks, nothing, torch.zeros(count, 2), torch.zeros(count, 8), torch.ones(count))


def make_identity(landmarks: Tensor, camera: Camera) -> MotionIdentity:
    nothing = torch.zeros(len(landmarks), 2)
    return MotionIdentity(camera, landmarks, nothing, nothing, nothing)


def make_wall(camera: Camera) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """Return an opaque field behind a plane that faces forward, which does not deform, seen by the source."""

    def wall(positions: Tensor) -> tuple[Tensor, Tensor]:
        places = project_points(positions.flatten(1, 2), camera)[..., :2]
        return 1e6 * (positions[..., 2] < SURFACE), places.view(*positions.shape[:3], 2)

    return wall


def spread_landmarks(depth: float) -> Tensor:
    """Return landmarks on a line across the face, at a given z."""
    along = torch.linspace(-0.3, 0.3, POINTS)
    return torch.stack([along, -0.2 + 0.5 * along, torch.full_like(along, depth)], dim=-1)[None]


@pytest.mark.parametrize("yaw", [0.0, math.pi / 6])
def test_a_surface_behind_the_landmarks_by_hand(yaw: float) -> None:
    landmarks, source = spread_landmarks(SURFACE + 0.05), make_camera(1)
    frames = make_frames(landmarks, make_camera(1, yaw))
    losses = view_losses(make_wall(source), make_identity(landmarks, source), frames, 2000)
    # A ray goes on behind the landmark until it meets the wall, and has moved aside by then.
    assert losses["depth"].item() == pytest.approx(0.05 / math.cos(yaw), abs=1e-3)
    assert losses["places"].item() == pytest.approx(0.05 * math.tan(yaw), abs=1e-3)


def test_a_surface_through_the_landmarks_costs_nothing_from_any_side() -> None:
    landmarks, source = spread_landmarks(SURFACE).expand(4, -1, -1), make_camera(4)
    camera = turn_to_random_sides(source, torch.Generator().manual_seed(0))
    losses = view_losses(make_wall(source), make_identity(landmarks, source), make_frames(landmarks, camera), 2000)
    assert losses["depth"].item() < 1e-3 and losses["places"].item() < 1e-3


def test_a_wrong_place_in_the_source_costs_its_distance() -> None:
    landmarks, source = spread_landmarks(SURFACE), make_camera(1)
    moved = make_identity(landmarks + torch.tensor([0.02, -0.03, 0.4]), source)
    losses = view_losses(make_wall(source), moved, make_frames(landmarks, source), 2000)
    # Depth in the source is not compared: the image does not depend on it.
    assert losses["places"].item() == pytest.approx(0.05, abs=1e-4) and losses["depth"].item() < 1e-3


def test_hidden_landmarks_are_not_compared(model: S3DNeRF) -> None:
    landmarks, camera = model.canonical_landmarks[None].clone(), make_camera(1)
    nose = int(landmarks[0, :, 2].argmax())
    behind = (nose + 7) % POINTS
    landmarks[0, behind] = landmarks[0, nose] - torch.tensor([0.05, 0.0, 0.4])
    visible = find_visible_landmarks(project_points(landmarks, camera), camera)[0]
    assert visible[nose] == 1.0 and visible[behind] == 0.0 and 0.9 * POINTS < visible.sum() < POINTS
    found = []
    for _ in range(2):
        identity, frames = make_identity(landmarks, camera), make_frames(landmarks, camera)
        found.append(view_losses(make_wall(camera), identity, frames, 99))
        landmarks = landmarks.clone()
        landmarks[0, behind, 2] -= 5.0
    assert found[0]["depth"].item() == pytest.approx(found[1]["depth"].item(), abs=1e-6)


def test_what_the_source_hides_is_not_compared(model: S3DNeRF) -> None:
    landmarks, frame, source = model.canonical_landmarks[None], make_camera(1), make_camera(1, math.radians(50))
    shown, seen = (find_visible_landmarks(project_points(landmarks, camera), camera)[0] for camera in (source, frame))
    hidden = (shown == 0.0) & (seen == 1.0)
    assert hidden.sum() > 0.1 * POINTS
    identity = make_identity(landmarks, source)
    found = view_losses(make_wall(source), identity, make_frames(landmarks, frame), 99)
    # The error of one that the source shows counts, and that of one that it hides does not.
    for row, differs in ((int(hidden.nonzero()[0]), False), (int((shown * seen).nonzero()[0]), True)):
        moved = landmarks.clone()
        moved[0, row] += 0.02 * source.rotation[0, 0]
        losses = view_losses(make_wall(source), make_identity(moved, source), make_frames(landmarks, frame), 99)
        assert (abs(losses["places"].item() - found["places"].item()) > 1e-6) == differs


def test_most_landmarks_are_visible_and_fewer_from_the_side(model: S3DNeRF) -> None:
    counts = []
    for degrees in (0, 30, 60):
        camera = make_camera(1, math.radians(degrees))
        seen = project_points(model.canonical_landmarks[None], camera)
        counts.append(int(find_visible_landmarks(seen, camera).sum()))
    assert POINTS > counts[0] > 0.9 * POINTS and counts[0] > counts[1] > counts[2] > 0.5 * POINTS


def test_heads_turn_as_users_turn_them() -> None:
    camera = turn_heads(make_camera(2, 0.2), torch.tensor([0.5, -0.3]), torch.tensor([-0.1, 0.2]))
    for row, (yaw, pitch) in enumerate(((0.5, -0.1), (-0.3, 0.2))):
        start = make_camera(1, 0.2)
        pose = HeadPose(*(part.numpy() for part in (start.rotation, start.scale, start.center)))
        pose = move_head(move_head(pose, math.degrees(yaw), 0, 0, 1), 0, -math.degrees(pitch), 0, 1)
        turned = Camera.from_numpy(pose)
        torch.testing.assert_close(camera.rotation[row], turned.rotation[0])
        torch.testing.assert_close(camera.center[row], turned.center[0])
        assert camera.scale[row] == turned.scale[0]


def test_turned_heads_keep_their_necks_in_place() -> None:
    start = make_camera(64)
    turned = turn_to_random_sides(start, torch.Generator().manual_seed(0))
    pivot = torch.from_numpy(NECK_PIVOT).float().expand(64, 1, 3)
    before, after = (project_points(pivot, camera)[..., :2] for camera in (start, turned))
    torch.testing.assert_close(before, after)
    forward = turned.rotation[:, :, 2]
    yaw, pitch = torch.atan2(forward[:, 0], forward[:, 2]), torch.asin(forward[:, 1])
    assert math.radians(0.8 * MAX_YAW) < yaw.abs().max() < math.radians(MAX_YAW + 5)
    assert math.radians(0.8 * MAX_PITCH) < pitch.abs().max() < math.radians(MAX_PITCH + 1)


@pytest.fixture
def model(load_smoke: Callable[..., S3DNeRFConfig]) -> S3DNeRF:
    torch.manual_seed(0)
    return S3DNeRF(load_smoke().model)


def test_view_losses_move_the_surface_and_the_deformation(model: S3DNeRF, drawn_batch: Batch) -> None:
    sources = drawn_batch.speech.sources
    frames = make_frames(sources.landmarks, turn_to_random_sides(sources.camera, torch.Generator().manual_seed(0)))
    parameters = [*model.radiance_field.parameters(), *model.deformation_field.parameters()]
    optimizer = torch.optim.Adam(parameters, 0.005)
    found = []
    for _ in range(40):
        identity: Identity = model.encode_identity(sources)
        motion = identity.source_motion
        field = model.deform_field(identity, model.drive(identity, motion, identity.eyes, frames.camera))
        losses = view_losses(field, identity, frames, 8, torch.Generator().manual_seed(0))
        optimizer.zero_grad()
        (losses["depth"] + losses["places"]).backward()
        optimizer.step()
        found.append({name: value.item() for name, value in losses.items()})
    assert found[-1]["depth"] < 0.7 * found[0]["depth"] and found[-1]["places"] < 0.7 * found[0]["places"]
