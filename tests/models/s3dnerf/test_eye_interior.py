"""The interior of the eyes: where the lids are, where the iris looks, and how it is put into frames."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from s3dnerf.data.batch import Batch
from s3dnerf.face.camera import load_canonical_face
from s3dnerf.face.points import EYE_LEFT, EYE_RIGHT, KEPT_POINTS
from s3dnerf.models.s3dnerf.eye_interior import (
    CLOSED,
    LIDS,
    EyeInterior,
    compute_closed_weight,
    measure_eye_corners,
    measure_eye_opening,
    place_eye_patch,
)
from s3dnerf.models.s3dnerf.identity import Identity
from s3dnerf.models.s3dnerf.s3dnerf import S3DNeRF
from s3dnerf.ops.image import make_pixel_grid
from s3dnerf.rendering.opening import Opening
from s3dnerf.rendering.rays import project_points
from s3dnerf.structures import Camera
from s3dnerf.training.config import S3DNeRFConfig

SIZE = 256
PAINT = 9.0
"""Gray level of generated eyes, which no source has."""


@pytest.fixture
def face() -> Tensor:
    return torch.from_numpy(load_canonical_face()[KEPT_POINTS]).float()[None]


@pytest.fixture
def camera() -> Camera:
    return Camera(torch.eye(3)[None], torch.tensor([0.5]), torch.zeros(1, 2))


@pytest.fixture
def model(load_smoke: Callable[..., S3DNeRFConfig]) -> S3DNeRF:
    torch.manual_seed(0)
    return S3DNeRF(load_smoke().model).eval()


def measure(face: Tensor, camera: Camera, eye: int, irises: Tensor) -> Opening:
    grid = make_pixel_grid(SIZE, SIZE).flatten(0, 1)[None]
    return measure_eye_opening(face[:, LIDS], irises, camera, grid, SIZE, eye)


def test_both_outlines_run_from_the_left_below_and_back_above(face: Tensor) -> None:
    for first, points in ((0, EYE_LEFT), (16, EYE_RIGHT)):
        rows = LIDS[first : first + 16]
        assert sorted(KEPT_POINTS[rows]) == sorted(points)
        outline = face[0, rows]
        assert outline[0, 0] == outline[:, 0].min() and outline[8, 0] == outline[:, 0].max()
        assert (outline[1:8, 0].diff() > 0).all() and (outline[9:, 0].diff() < 0).all()
        assert outline[1:8, 1].max() < outline[9:, 1].min()


def test_the_eyes_of_a_symmetric_face_are_alike(face: Tensor, camera: Camera) -> None:
    irises = measure_eye_corners(face)[0]
    left, right = (measure(face, camera, eye, irises) for eye in range(2))
    for name in ("coverage", "across", "below_upper", "above_lower", "below_anchor", "beside_anchor"):
        pair = [getattr(one, name).view(SIZE, SIZE) for one in (left, right)]
        covered = left.coverage.view(SIZE, SIZE) > 0
        torch.testing.assert_close(pair[0][covered], pair[1].flip(1)[covered], atol=2e-3, rtol=0)
    # The inner corner is at 1, and pixels toward the nose are beside the iris.
    inside = left.coverage[0] > 0.9
    columns = torch.arange(SIZE).repeat(SIZE)
    assert torch.corrcoef(torch.stack([left.across[0, inside], columns[inside].float()]))[0, 1] > 0.99
    assert torch.corrcoef(torch.stack([left.across[0, inside], left.beside_anchor[0, inside]]))[0, 1] > 0.99


def test_distances_from_the_iris_are_in_head_units(face: Tensor, camera: Camera) -> None:
    irises = measure_eye_corners(face)[0]
    places = project_points(irises + torch.tensor([0.03, -0.02, 0.0]), camera)[..., :2]
    for eye, beside in ((0, 0.03), (1, -0.03)):
        opening = measure_eye_opening(face[:, LIDS], irises, camera, places[:, eye, None], SIZE, eye)
        # The line between the corners of the eye is slightly tilted.
        assert math.hypot(opening.beside_anchor.item(), opening.below_anchor.item()) == pytest.approx(0.0361, abs=1e-3)
        assert opening.beside_anchor.item() == pytest.approx(beside, abs=4e-3)


def test_irises_look_where_the_gaze_says_in_both_eyes(face: Tensor) -> None:
    interior = EyeInterior()
    middle, width = measure_eye_corners(face)
    torch.testing.assert_close(interior.locate_irises(face), middle)
    interior.gaze.copy_(torch.tensor([0.1, 0.2, 0.3]))
    moved = (interior.locate_irises(face) - middle) / width
    torch.testing.assert_close(moved[0], torch.tensor([[0.1, 0.2, 0.3], [-0.1, 0.2, 0.3]]))


def test_patches_hold_the_whole_eye(face: Tensor, camera: Camera) -> None:
    irises = measure_eye_corners(face)[0]
    for eye in range(2):
        whole = measure(face, camera, eye, irises).coverage.sum()
        patch = place_eye_patch(camera, eye, SIZE)
        part = measure_eye_opening(face[:, LIDS], irises, camera, patch.points, SIZE, eye).coverage.sum()
        assert part > 0.999 * whole > 0


def test_open_eyes_are_kept_and_closed_ones_are_generated() -> None:
    weights = compute_closed_weight(torch.tensor([0.0, CLOSED[0], sum(CLOSED) / 2, CLOSED[1], 1.0]))
    torch.testing.assert_close(weights, torch.tensor([1.0, 1.0, 0.5, 0.0, 0.0]))


def close_eyes(identity: Identity, openness: tuple[float, float]) -> Identity:
    """Return the identity with eyes of this openness, whose lids are apart by half a head unit in frames."""
    return replace(identity, eyes=torch.tensor([openness]).expand(len(identity.eyes), -1))


@pytest.mark.parametrize(("openness", "painted"), [((0.1, 0.1), (1, 1)), ((0.1, 1.0), (1, 0)), ((0.9, 0.9), (0, 0))])
def test_only_eyes_that_the_source_shows_closed_are_painted(
    model: S3DNeRF,
    drawn_batch: Batch,
    monkeypatch: pytest.MonkeyPatch,
    openness: tuple[float, float],
    painted: tuple[int, int],
) -> None:
    assert model.eye_interior is not None
    with torch.no_grad():
        identity = model.encode_identity(drawn_batch.images.sources)
        closed = model.prepare_identity(close_eyes(identity, openness))
        assert (closed.closed_eyes is None) == (painted == (0, 0))
        gray = torch.full_like(identity.image, 0.5)
        monkeypatch.setattr(
            model.eye_interior, "forward", lambda opening, skin: torch.full((2, 3, opening.across.shape[1]), PAINT)
        )
        # The lids that the tracker saw, instead of those that an untrained field moves.
        monkeypatch.setattr(
            "s3dnerf.models.s3dnerf.s3dnerf.locate_edges", lambda field, points, apart: points + 0.5 * apart
        )
        field = model.deform_field(
            identity, model.drive(identity, identity.source_motion, identity.eyes, identity.camera)
        )
        image = model.composite_eye_interior(gray, closed, field, identity.camera)
    for eye in range(2):
        center = project_points(measure_eye_corners(identity.landmarks)[0], identity.camera)[:, eye, None, None, :2]
        level = torch.nn.functional.grid_sample(image, center, align_corners=False)[..., 0, 0]
        assert (level.mean().item() > 2.0) == bool(painted[eye]), (eye, level)
    corner = image[..., :4, :4]
    torch.testing.assert_close(corner, torch.full_like(corner, 0.5))


def test_models_without_it_leave_eyes_closed(load_smoke: Callable[..., S3DNeRFConfig], drawn_batch: Batch) -> None:
    model = S3DNeRF(load_smoke("--model.eye_interior", "false").model).eval()
    assert not any(name.startswith("eye_interior") for name in model.state_dict())
    with torch.no_grad():
        identity = model.encode_identity(drawn_batch.images.sources)
        assert model.prepare_identity(close_eyes(identity, (0.0, 0.0))).closed_eyes is None
