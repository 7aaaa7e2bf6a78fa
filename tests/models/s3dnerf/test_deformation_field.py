"""Deformation field: the lattice and its interpolation, region weights, the initial deformation, encoded poses."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from s3dnerf.encoding.hash_grid import HashGridConfig
from s3dnerf.models.s3dnerf.deformation_field import (
    CrossModalFacialDeformationField,
    DeformationConfig,
    RegionCodes,
    encode_poses,
)
from s3dnerf.models.s3dnerf.lattice import CENTER, FOCUS, REACH, Lattice
from s3dnerf.ops.stretch import add_stretch
from s3dnerf.rendering.body_motion import weigh_body
from s3dnerf.rendering.volume_rendering import DeformedField, interpolate_lattice
from s3dnerf.structures import Camera

REGIONS, POINTS = 6, 9

CONFIG = DeformationConfig(
    token_width=16,
    code_width=8,
    hidden=16,
    grid=HashGridConfig(levels=2, log2_hashmap_size=8),
    lattice_size=(7, 9, 5),
)


@pytest.fixture
def field(one_thread: None) -> CrossModalFacialDeformationField:
    torch.manual_seed(0)
    return CrossModalFacialDeformationField(
        CONFIG, context_channels=5, speech_width=12, regions=REGIONS, landmarks=POINTS
    ).eval()


def draw_codes(batch: int = 2) -> RegionCodes:
    return RegionCodes(torch.randn(batch, REGIONS, 8), torch.randn(batch, REGIONS, 8), torch.randn(batch, 9))


def read(lattice: Lattice, values: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    shape = (lattice.size, lattice.center, lattice.focus, lattice.extent)
    return interpolate_lattice(DeformedField(values, *shape, planes=[], camera=None, radiance=None), points)


def test_lattice_spans_its_reach_around_its_center() -> None:
    points = Lattice(CONFIG.lattice_size).points
    assert points.shape == (7 * 9 * 5, 3)
    center, reach = torch.tensor(CENTER), torch.tensor(REACH)
    torch.testing.assert_close(points.amin(0), center - reach)
    torch.testing.assert_close(points.amax(0), center + reach)
    torch.testing.assert_close(points[7 * 9 * 5 // 2], center)


def test_lattice_is_finest_at_the_mouth_and_even_along_a_line_of_points() -> None:
    lattice = Lattice(CONFIG.lattice_size)
    across = lattice.points.view(5, 9, 7, 3)[2, 4, :, 0]
    steps = across.diff()
    assert steps[2:4].max() < 0.6 * steps[0]
    torch.testing.assert_close(steps, steps.flip(0))


def test_reading_at_lattice_points_is_exact() -> None:
    lattice = Lattice(CONFIG.lattice_size)
    values = torch.randn(2, len(lattice.points), 3)
    found = read(lattice, values, lattice.points.expand(2, -1, -1))
    torch.testing.assert_close(found, values, atol=1e-4, rtol=0)


def test_reading_between_points_is_linear_in_lattice_steps() -> None:
    lattice = Lattice(CONFIG.lattice_size)
    grid = lattice.points.view(5, 9, 7, 3)
    values = torch.randn(5, 9, 7, 1)
    start, end = grid[1, 3, 2], grid[1, 3, 3]
    # Points are evenly spaced in asinh of the distance over the focus.
    focus, center = FOCUS[0], CENTER[0]
    low, high = (torch.asinh((x - center) / focus) for x in (start[0], end[0]))
    for share in (0.25, 0.5, 0.9):
        place = start.clone()
        place[0] = center + focus * torch.sinh(low + share * (high - low))
        found = read(lattice, values.view(1, -1, 1), place.view(1, 1, 3)).item()
        expected = (1 - share) * values[1, 3, 2, 0] + share * values[1, 3, 3, 0]
        assert found == pytest.approx(expected.item(), abs=1e-4)


def test_reading_in_a_cell_weighs_all_eight_corners() -> None:
    lattice = Lattice(CONFIG.lattice_size)
    values = torch.zeros(5, 9, 7, 1)
    values[1:3, 3:5, 2:4] = torch.arange(8.0).view(2, 2, 2, 1)
    unit = torch.tensor([2.5 / 6, 3.5 / 8, 1.5 / 4]) * 2 - 1
    center, focus, extent = (torch.tensor(part) for part in (lattice.center, lattice.focus, lattice.extent))
    place = center + focus * torch.sinh(unit * extent)
    assert read(lattice, values.view(1, -1, 1), place.view(1, 1, 3)).item() == pytest.approx(3.5, abs=1e-3)


def test_positions_beyond_the_lattice_read_its_border() -> None:
    lattice = Lattice(CONFIG.lattice_size)
    values = torch.randn(1, len(lattice.points), 2)
    corner = lattice.points[-1]
    far = torch.stack([corner, corner + 0.5, corner + 20.0])[None]
    torch.testing.assert_close(read(lattice, values, far), values[:, -1:].expand(-1, 3, -1), atol=1e-4, rtol=0)


def test_shares_of_the_regions_sum_to_one(field: CrossModalFacialDeformationField) -> None:
    positions = torch.empty(2, 50, 3).uniform_(-2.5, 2.5)
    features = field.network.encode_positions(positions)
    assert features.region_log_weights.shape == (2, 50, REGIONS)
    torch.testing.assert_close(features.region_log_weights.exp().sum(-1), torch.ones(2, 50))


def test_warp_starts_at_zero_everywhere(field: CrossModalFacialDeformationField) -> None:
    deformation = field.deform_points(draw_codes(), torch.randn(2, 30, 3))
    assert deformation.offsets.shape == (2, 30, 3) and deformation.ambient.shape == (2, 30, 4)
    assert not deformation.offsets.any() and not deformation.ambient.any()


def test_lattice_holds_the_field_at_its_points(field: CrossModalFacialDeformationField) -> None:
    torch.nn.init.normal_(field.network.output.weight, std=0.1)
    codes = draw_codes()
    lattice = field.deform_lattice(codes)
    exact = field.network(field.network.encode_positions(field.lattice.points.expand(2, -1, -1)), codes)
    torch.testing.assert_close(lattice[..., :3], exact.offsets, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(lattice[..., 4:], exact.ambient[..., 1:], atol=1e-5, rtol=1e-4)
    assert torch.equal(field.deform_lattice(codes, field.encode_lattice()), lattice)
    parted = measure_stretch(field.lattice, exact.offsets)
    torch.testing.assert_close(lattice[..., 3:4], exact.ambient[..., :1] + parted, atol=1e-5, rtol=1e-4)


def test_points_are_surrounded_by_their_cell() -> None:
    lattice = Lattice(CONFIG.lattice_size)
    grid = torch.arange(7 * 9 * 5).view(5, 9, 7)
    middle = lattice.points[grid[2, 4, 3]]
    corners, weights = lattice.find_cells(torch.stack([middle, middle + 20.0, middle - 20.0]).expand(2, -1, -1))
    assert corners.shape == weights.shape == (2, 3, 8)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3))
    heaviest = corners.gather(2, weights.argmax(-1, keepdim=True))[..., 0]
    assert heaviest.tolist() == [[grid[2, 4, 3], grid[-1, -1, -1], grid[0, 0, 0]]] * 2
    inside = lattice.points[grid[1, 6, 2]] + 1e-3
    corners, _ = lattice.find_cells(inside.view(1, 1, 3))
    assert sorted(corners.flatten().tolist()) == sorted(grid[1:3, 6:8, 2:4].flatten().tolist())


def test_needed_points_have_the_same_values_as_in_the_whole_lattice(field: CrossModalFacialDeformationField) -> None:
    torch.nn.init.normal_(field.network.output.weight, std=0.1)
    codes, needed = draw_codes(), torch.rand(len(field.lattice.points)) < 0.3
    with torch.no_grad():
        whole, part = field.deform_lattice(codes), field.deform_lattice(codes, needed=needed)
        encoded = field.deform_lattice(codes, field.encode_lattice(), needed)
    torch.testing.assert_close(part[:, needed], whole[:, needed], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(encoded[:, needed], whole[:, needed], atol=1e-6, rtol=1e-5)


def test_a_box_marks_the_cells_that_it_touches() -> None:
    lattice = Lattice(CONFIG.lattice_size)
    grid = torch.arange(7 * 9 * 5).view(5, 9, 7)
    low, high = lattice.points[grid[1, 2, 3]], lattice.points[grid[2, 5, 4]]
    marks = lattice.mark_box(low + 1e-3, high - 1e-3)
    assert marks.nonzero()[:, 0].tolist() == sorted(grid[1:3, 2:6, 3:5].flatten().tolist())
    positions = low + (high - low) * torch.rand(500, 3)
    corners, _ = lattice.find_cells(positions[None])
    assert set(corners.flatten().tolist()) <= set(marks.nonzero()[:, 0].tolist())
    beyond = lattice.mark_box(lattice.points[-1] + 1.0, lattice.points[-1] + 2.0)
    assert beyond.nonzero()[:, 0].tolist() == [grid[-1, -1, -1]]


def test_marks_grow_along_the_vertical_axis_alone() -> None:
    lattice = Lattice(CONFIG.lattice_size)
    grid = torch.arange(7 * 9 * 5).view(5, 9, 7)
    marks = torch.zeros(len(lattice.points), dtype=torch.bool)
    marks[torch.stack([grid[1, 4, 2], grid[3, 0, 6], grid[2, 8, 0]])] = True
    expected = [*grid[1, 3:6, 2], *grid[3, :2, 6], *grid[2, 7:, 0]]
    assert lattice.grow_vertically(marks).nonzero()[:, 0].tolist() == sorted(int(point) for point in expected)


def test_points_are_deformed_as_rays_read_the_lattice(field: CrossModalFacialDeformationField) -> None:
    torch.nn.init.normal_(field.network.output.weight, std=0.1)
    torch.nn.init.normal_(field.network.grid.table, std=0.1)
    codes, points = draw_codes(), 1.3 * torch.randn(2, 40, 3)
    deformation = field.deform_points(codes, points)
    seen = read(field.lattice, field.deform_lattice(codes), points)
    torch.testing.assert_close(deformation.offsets, seen[..., :3], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(deformation.ambient[..., 1:], seen[..., 4:], atol=1e-5, rtol=1e-4)
    # Between the lattice points the network has other values, which no ray samples.
    exact = field.network(field.network.encode_positions(points), codes)
    assert (exact.offsets - deformation.offsets).abs().max() > 1e-3


def test_the_body_is_added_to_what_the_network_moves(field: CrossModalFacialDeformationField) -> None:
    torch.nn.init.normal_(field.network.output.weight, std=0.1)
    codes, points = draw_codes(), 1.3 * torch.randn(2, 40, 3)
    body, reach = torch.randn(2, 3, 5), torch.rand(2, len(field.lattice.points))
    following = replace(codes, body=body)
    alone, both = field.deform_lattice(codes), field.deform_lattice(following)
    places = field.lattice.points
    still, flow = places @ body[:, :, :3].transpose(1, 2) + body[:, None, :, 3], body[:, None, :, 4]
    weight = weigh_body(places)[:, None]
    torch.testing.assert_close(both[..., :3] - alone[..., :3], weight * (still + flow), atol=1e-5, rtol=1e-4)
    assert torch.equal(both[..., 3:], alone[..., 3:])
    anchored = replace(following, body_reach=reach)
    moved = field.deform_lattice(anchored)[..., :3] - alone[..., :3]
    torch.testing.assert_close(moved, weight * (still + reach[..., None] * flow), atol=1e-5, rtol=1e-4)
    for codes in (following, anchored):
        seen = read(field.lattice, field.deform_lattice(codes), points)[..., :3]
        torch.testing.assert_close(field.deform_points(codes, points).offsets, seen, atol=1e-5, rtol=1e-4)


def test_points_teach_the_corners_of_their_cells(field: CrossModalFacialDeformationField) -> None:
    torch.nn.init.normal_(field.network.output.weight, std=0.1)
    codes, points = draw_codes(), 0.5 * torch.randn(2, 4, 3)
    field.deform_points(codes, points).offsets.sum().backward()
    learned = [part.grad.clone() for part in field.network.parameters() if part.grad is not None]
    field.zero_grad()
    read(field.lattice, field.deform_lattice(codes), points)[..., :3].sum().backward()
    expected = [part.grad for part in field.network.parameters() if part.grad is not None]
    assert len(learned) == len(expected) and learned[0].abs().max() > 0
    for one, other in zip(learned, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-3)


def measure_stretch(lattice: Lattice, offsets: torch.Tensor) -> torch.Tensor:
    ambient = torch.zeros(*offsets.shape[:2], 1)
    return add_stretch(offsets, ambient, lattice.heights, lattice.size)[..., 3:]


def test_parting_by_hand() -> None:
    lattice = Lattice(CONFIG.lattice_size)
    points = lattice.points.expand(2, -1, -1)
    moved = torch.full_like(points, 0.1)
    assert measure_stretch(lattice, moved).abs().max() < 1e-5
    # First everything deforms to one height, then to half its height, then to three times its height.
    for slope, parted in ((-1.0, 1.0), (-0.5, 0.5), (2.0, -1.0)):
        offsets = torch.stack([moved[..., 0], slope * points[..., 1], moved[..., 2]], dim=-1)
        found = measure_stretch(lattice, offsets)
        torch.testing.assert_close(found, torch.full_like(found, parted), atol=1e-4, rtol=0)


def test_parting_shows_between_the_lips_only() -> None:
    # Points above the middle come from below it and points below come from above: a gap of 0.2 opens at 0.
    lattice = Lattice((5, 41, 3), center=(0.0, 0.0, 0.0), reach=(1.0, 1.0, 1.0), focus=(1.0, 0.4, 1.0))
    heights = lattice.points[None, :, 1]
    offsets = torch.zeros(1, len(lattice.points), 3)
    offsets[..., 1] = -heights.clamp(-0.1, 0.1)
    parted = measure_stretch(lattice, offsets)[..., 0]
    assert parted[heights.abs() < 0.06].min() > 0.99
    assert parted[heights.abs() > 0.16].abs().max() < 1e-5


@pytest.mark.parametrize("part", ["motion", "identity", "pose"])
def test_warp_depends_on_all_of_its_codes(field: CrossModalFacialDeformationField, part: str) -> None:
    torch.nn.init.normal_(field.network.output.weight, std=0.1)
    codes, points = draw_codes(), torch.randn(2, 10, 3)
    changed = RegionCodes(**{**vars(codes), part: getattr(codes, part) + 1.0})
    before, after = (field.deform_points(given, points).offsets for given in (codes, changed))
    assert (before - after).abs().max() > 1e-4


def test_a_region_that_holds_a_position_alone_moves_it_alone(field: CrossModalFacialDeformationField) -> None:
    torch.nn.init.normal_(field.network.output.weight, std=0.1)
    with torch.no_grad():
        field.network.region_head.weight.zero_()
        field.network.region_head.bias.copy_(torch.tensor([0.0, 0.0, 60.0, 0.0, 0.0, 0.0]))
    codes, points = draw_codes(1), torch.randn(1, 10, 3)
    before = field.deform_points(codes, points).offsets
    others = codes.motion.clone()
    others[:, [0, 1, 3, 4, 5]] += 1.0
    torch.testing.assert_close(
        field.deform_points(RegionCodes(others, codes.identity, codes.pose), points).offsets, before
    )
    own = codes.motion.clone()
    own[:, 2] += 1.0
    moved = field.deform_points(RegionCodes(own, codes.identity, codes.pose), points).offsets
    assert (moved - before).abs().max() > 1e-3


def test_regions_attend_to_speech(field: CrossModalFacialDeformationField) -> None:
    regions = field.encode_regions(torch.randn(2, 5, 4, 4), 0.1 * torch.randn(2, POINTS, 3), torch.rand(2, 2))
    speech = torch.randn(2, 12, 12)
    motion = field.speech_attention(regions.tokens, speech)
    assert motion.shape == (2, REGIONS, 8)
    other = speech.clone()
    other[1] += 1.0
    change = (field.speech_attention(regions.tokens, other) - motion).abs().amax(dim=(1, 2))
    assert change[0] == 0 and change[1] > 1e-3


def test_order_of_speech_matters_once_its_time_is_learned(field: CrossModalFacialDeformationField) -> None:
    torch.nn.init.normal_(field.speech_attention.time)
    tokens, speech = torch.randn(1, REGIONS, 16), torch.randn(1, 12, 12)
    forward, backward = (field.speech_attention(tokens, given) for given in (speech, speech.flip(1)))
    assert (forward - backward).abs().max() > 1e-3


def test_eyes_enter_the_codes_linearly(field: CrossModalFacialDeformationField) -> None:
    tokens, motion = torch.randn(1, REGIONS, 16), torch.randn(1, REGIONS, 8)
    pose = torch.zeros(1, 9)

    def drive(eyes: list[float]) -> torch.Tensor:
        return field.combine_codes(tokens, motion, torch.tensor([eyes]), pose).motion

    torch.testing.assert_close(drive([1.0, 0.0]) + drive([0.0, 1.0]), drive([1.0, 1.0]) + drive([0.0, 0.0]))
    assert torch.equal(drive([0.0, 0.0]), motion)
    assert (drive([1.0, 0.0]) - drive([0.0, 1.0])).abs().max() > 1e-3


def make_camera(yaw: float, scale: float, center: tuple[float, float]) -> Camera:
    cosine, sine = math.cos(yaw), math.sin(yaw)
    rotation = torch.tensor([[[cosine, 0.0, sine], [0.0, 1.0, 0.0], [-sine, 0.0, cosine]]])
    return Camera(rotation, torch.tensor([scale]), torch.tensor([center]))


def test_poses_as_nine_numbers_by_hand() -> None:
    source, target = make_camera(0.0, 0.5, (0.1, 0.2)), make_camera(0.3, 1.0, (0.2, 0.0))
    expected = [0, 0, 0, 0, 2 * math.sin(0.3), 0, 2 * 0.2, 2 * -0.4, 4 * math.log(2)]
    torch.testing.assert_close(encode_poses(source, target), torch.tensor([expected]).float())
    assert not encode_poses(source, source).any()
