"""The opening between the lips: which pixels show it, and their positions in the mouth."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from s3dnerf.ops.image import make_pixel_grid
from s3dnerf.rendering.opening import (
    EDGE,
    LIP_SHADE,
    Opening,
    SourceInterior,
    find_source_interior,
    interpolate_curve,
    measure_opening_at,
)
from s3dnerf.structures import Camera

SIZE = 128
SCALE = 0.5
HALF_WIDTH, UP, DOWN = 0.4, 0.1, 0.2
"""A mouth with half-elliptical edges: half its width, its height above and below the corners, head units."""


def make_outline(up: float = UP, down: float = DOWN) -> Tensor:
    """Return 20 points around the opening: from the viewer's left along the lower lip and back, ``[1, 20, 3]``."""
    angle = torch.arange(20, dtype=torch.float64) * (2 * math.pi / 20)
    height = torch.where(angle < math.pi, down, up) * -angle.sin()
    return torch.stack([-HALF_WIDTH * angle.cos(), height, torch.full_like(angle, 0.5)], dim=-1)[None]


def make_camera(roll: float = 0.0, center: tuple[float, float] = (0.0, 0.0), scale: float = SCALE) -> Camera:
    cos, sin = math.cos(roll), math.sin(roll)
    rotation = torch.tensor([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    parts = (torch.tensor([scale], dtype=torch.float64), torch.tensor([center], dtype=torch.float64))
    return Camera(rotation[None], *parts)


def look(outline: Tensor, camera: Camera, pixels: Tensor | None = None) -> Opening:
    """Measure the opening at some pixels, or at all."""
    grid = make_pixel_grid(SIZE, SIZE).double().flatten(0, 1)[None] if pixels is None else pixels
    anchor = torch.tensor([[0.0, 0.3, 0.5]], dtype=torch.float64)
    return measure_opening_at(outline, anchor, camera, grid, SIZE)


def test_distances_are_measured_from_the_edges_in_head_units() -> None:
    # In the middle, 0.05 head units below the corners; then at the height of the corners, halfway to the right.
    pixels = SCALE * torch.tensor([[[0.0, 0.05], [0.2, 0.0]]], dtype=torch.float64)
    opening = look(make_outline(), make_camera(), pixels)
    torch.testing.assert_close(opening.across, torch.tensor([[0.0, 0.5]], dtype=torch.float64))
    # Linear between the points at 108 and 126 degrees, whose cosines are on both sides of one half.
    x0, x1 = math.cos(math.radians(72)), math.cos(math.radians(54))
    y0, y1 = math.sin(math.radians(72)), math.sin(math.radians(54))
    edge = y0 + (y1 - y0) * (0.5 - x0) / (x1 - x0)
    below_upper = torch.tensor([[UP + 0.05, UP * edge]], dtype=torch.float64)
    above_lower = torch.tensor([[DOWN - 0.05, DOWN * edge]], dtype=torch.float64)
    torch.testing.assert_close(opening.below_upper, below_upper)
    torch.testing.assert_close(opening.above_lower, above_lower)
    torch.testing.assert_close(opening.below_anchor, torch.tensor([[0.35, 0.3]], dtype=torch.float64))
    torch.testing.assert_close(opening.width, torch.tensor([2 * HALF_WIDTH], dtype=torch.float64))
    torch.testing.assert_close(opening.height, torch.tensor([UP + DOWN], dtype=torch.float64))


def test_the_opening_is_covered_whole_and_nothing_else() -> None:
    opening = look(make_outline(), make_camera())
    x, y = (make_pixel_grid(SIZE, SIZE).double() / SCALE).unbind(-1)
    radius = (x / HALF_WIDTH).square() + (y / torch.where(y < 0, UP, DOWN)).square()
    coverage = opening.coverage.view(SIZE, SIZE)
    assert coverage[radius < 0.6].min() == 1.0 and coverage[radius > 2.0].max() == 0.0
    area = coverage.sum() * (2 / SIZE / SCALE) ** 2
    assert area.item() == pytest.approx(0.5 * math.pi * HALF_WIDTH * (UP + DOWN), rel=0.03)


@pytest.mark.parametrize("gap", [0.5, 1.0])
def test_an_opening_thinner_than_an_edge_is_seen_as_much_as_it_is_open(gap: float) -> None:
    height = gap * EDGE * 2 / SIZE / SCALE
    middle = torch.tensor([[[0.0, 0.0]]], dtype=torch.float64)
    opening = look(make_outline(height / 2, height / 2), make_camera(), middle)
    assert opening.coverage.item() == pytest.approx(gap)


@pytest.mark.parametrize("height", [0.0, -0.05])
def test_closed_lips_show_nothing_even_pressed_past_each_other(height: float) -> None:
    opening = look(make_outline(height / 2, height / 2), make_camera())
    assert not opening.coverage.any()
    assert opening.height.item() == pytest.approx(height)


def test_the_mouth_is_the_same_wherever_the_head_is() -> None:
    pixels = torch.tensor([[[0.0, 0.02], [0.1, 0.0], [-0.15, 0.03], [0.5, 0.5]]], dtype=torch.float64)
    straight = look(make_outline(), make_camera(), pixels)
    roll, center = 0.4, (0.2, -0.1)
    # v points down, so the head turns against the image axes.
    turn = torch.tensor([[math.cos(roll), -math.sin(roll)], [math.sin(roll), math.cos(roll)]], dtype=torch.float64)
    moved = pixels @ turn + torch.tensor(center, dtype=torch.float64)
    turned = look(make_outline(), make_camera(roll, center), moved)
    for name, value in vars(straight).items():
        if name != "below_anchor":
            torch.testing.assert_close(getattr(turned, name), value, msg=lambda text, name=name: f"{name}: {text}")


def test_nearer_heads_have_the_same_mouths() -> None:
    pixels = torch.tensor([[[0.0, 0.02], [0.1, 0.0]]], dtype=torch.float64)
    far, near = look(make_outline(), make_camera(), pixels), look(make_outline(), make_camera(scale=1.0), 2 * pixels)
    for name in ("across", "below_upper", "above_lower", "below_anchor", "width", "height"):
        torch.testing.assert_close(getattr(near, name), getattr(far, name))


def test_curves_are_straight_between_their_knots_and_held_beyond() -> None:
    knots = torch.tensor([[[0.0, 1.0], [1.0, 3.0], [3.0, -1.0]]])
    read = interpolate_curve(knots, torch.tensor([[-1.0, 0.0, 0.25, 1.0, 2.0, 3.0, 9.0]]))
    torch.testing.assert_close(read, torch.tensor([[1.0, 1.0, 1.5, 3.0, 1.0, -1.0, -1.0]]))


def test_knots_that_overtake_each_other_stay_finite() -> None:
    knots = torch.tensor([[[0.0, 1.0], [2.0, 3.0], [1.0, -1.0], [3.0, 0.0]]])
    read = interpolate_curve(knots, torch.linspace(-1, 4, 11)[None])
    assert read.isfinite().all() and read.min() >= -1.0 and read.max() <= 3.0


def keep(
    outline: Tensor, lips: Tensor, frame: Camera, pixels: list[list[float]], source: Camera | None = None
) -> SourceInterior:
    """Return pixels given in head units from the middle of the mouth, x to the right and y down."""
    places = frame.center[:, None] + SCALE * torch.tensor([pixels], dtype=torch.float64)
    return find_source_interior(outline, lips, frame, source or make_camera(), places, SIZE)


def test_a_mouth_as_in_the_portrait_is_kept_whole() -> None:
    pixels = [[0.0, -0.05], [0.0, 0.1], [0.2, 0.0], [0.0, DOWN + 0.02], [HALF_WIDTH + 0.02, 0.0]]
    kept = keep(make_outline(), make_outline(), make_camera(), pixels)
    torch.testing.assert_close(kept.points, SCALE * torch.tensor([pixels], dtype=torch.float64))
    # The last two are below the lower lip and beside the corner.
    assert kept.visibility.tolist() == [[1.0, 1.0, 1.0, 0.0, 0.0]]


def test_a_dropping_jaw_leaves_teeth_where_they_are() -> None:
    pixels = [[0.0, -0.05], [0.0, 0.1], [0.0, DOWN + 0.05], [0.0, DOWN + 0.15]]
    kept = keep(make_outline(down=DOWN + 0.2), make_outline(), make_camera(), pixels)
    torch.testing.assert_close(kept.points, SCALE * torch.tensor([pixels], dtype=torch.float64))
    assert kept.visibility.tolist() == [[1.0, 1.0, 0.0, 0.0]]


def test_no_gap_opens_under_an_upper_lip_that_rises() -> None:
    rise = 0.06
    kept = keep(make_outline(up=UP + rise), make_outline(), make_camera(), [[0.0, -UP - rise], [0.0, 0.0]])
    # The upper lip's edge shows what the source shows at its own edge, and so on downward.
    expected = SCALE * torch.tensor([[[0.0, -UP], [0.0, rise]]], dtype=torch.float64)
    torch.testing.assert_close(kept.points, expected)
    assert kept.visibility.tolist() == [[1.0, 1.0]]


def test_teeth_move_with_the_head() -> None:
    source, frame = make_camera(), make_camera(center=(0.2, -0.1))
    pixels = [[0.0, 0.0], [0.1, 0.1]]
    kept = keep(make_outline(), make_outline(), frame, pixels, source)
    torch.testing.assert_close(kept.points, SCALE * torch.tensor([pixels], dtype=torch.float64))
    # A closer head shows the same teeth, larger.
    near = keep(make_outline(), make_outline(), make_camera(scale=2 * SCALE), pixels, source)
    torch.testing.assert_close(near.points, kept.points / 2)


@pytest.mark.parametrize("height", [0.0, -0.02, 0.5 * LIP_SHADE * EDGE * 2 / SIZE / SCALE])
def test_lips_that_are_closed_in_the_portrait_show_nothing(height: float) -> None:
    pixels = make_pixel_grid(SIZE, SIZE).double().flatten(0, 1)[None]
    closed = make_outline(height / 2, height / 2)
    kept = find_source_interior(make_outline(), closed, make_camera(), make_camera(), pixels, SIZE)
    assert (kept.visibility * look(make_outline(), make_camera()).coverage).max() < 0.02
