"""The search for edges of a source in a frame, in fields whose inverse is known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from s3dnerf.models.s3dnerf.edge_search import find_search_box, locate_edges
from s3dnerf.models.s3dnerf.lattice import CENTER, Lattice
from s3dnerf.rendering.volume_rendering import DeformedField, interpolate_lattice
from s3dnerf.structures import Camera

UPPER, LOWER = torch.tensor([[0.0, 0.08, 0.0]]), torch.tensor([[0.0, -0.16, 0.0]])
BOTH = torch.cat([UPPER, LOWER])
"""Where searches start, relative to the edges in the source."""


def make_field(offsets: Callable[[Tensor], Tensor]) -> DeformedField:
    """Make a field whose ``offsets`` are a function of head-space points relative to the middle of the mouth."""
    lattice = Lattice((8, 96, 6))
    moved = offsets(lattice.points - torch.tensor(CENTER))
    values = torch.cat([moved, torch.zeros(len(moved), 4)], dim=1)[None]
    camera = Camera(torch.eye(3)[None], torch.zeros(1, 2), torch.ones(1))
    planes = [torch.zeros(1, 3, 1, 2, 2)]
    return DeformedField(
        values, lattice.size, lattice.center, lattice.focus, lattice.extent, planes, camera, lambda *_: torch.zeros(1)
    )


def search(field: DeformedField, points: Tensor, apart: Tensor) -> Tensor:
    """Return where edges are found; ``points [P, 3]`` and the result are relative to the middle of the mouth."""
    middle = torch.tensor(CENTER)
    return locate_edges(field, (points + middle)[None], apart)[0] - middle


def move_vertically(height: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda points: torch.nn.functional.pad(height(points[:, 1:2]), (1, 1))


def test_a_constant_warp_moves_edges_by_its_negative() -> None:
    offset = torch.tensor([0.02, -0.05, 0.01])
    points = torch.tensor([[-0.1, 0.02, 0.0], [0.1, -0.03, 0.05]])
    found = search(make_field(lambda at: offset.expand_as(at)), points, BOTH)
    torch.testing.assert_close(found, points - offset, atol=1e-6, rtol=0)


@pytest.mark.parametrize("compression", [3.0, 9.0, 15.0])
def test_edges_of_closing_lips_are_found_where_positions_diverge(compression: float) -> None:
    # Lips that are 0.06 from the middle in the source close to 0.06 / compression.
    field = make_field(move_vertically(lambda y: (y * (compression - 1.0)).clamp(-0.1, 0.1)))
    found = search(field, torch.tensor([[0.0, 0.06, 0.0], [0.0, -0.06, 0.0]]), BOTH)
    # The field is linear between points of the lattice, which are 0.017 apart.
    torch.testing.assert_close(found[:, 1], torch.tensor([0.06, -0.06]) / compression, atol=2e-3, rtol=0)
    arrived = found + interpolate_lattice(field, (found + torch.tensor(CENTER))[None])[0, :, :3]
    torch.testing.assert_close(arrived[:, 1], torch.tensor([0.06, -0.06]), atol=0.01, rtol=0)


@pytest.mark.parametrize("noise", [0.0, 0.003, -0.003])
def test_edges_of_parting_lips_are_where_the_deformation_becomes_flat(noise: float) -> None:
    # Everything up to 0.05 from the middle deforms to the line where the lips of the source meet, or almost to it.
    def part(y: Tensor) -> Tensor:
        return -y.clamp(-0.05, 0.05) + noise * (y / 0.05).clamp(-1.0, 1.0)

    found = search(make_field(move_vertically(part)), torch.zeros(2, 3), BOTH)
    torch.testing.assert_close(found[:, 1], torch.tensor([0.05, -0.05]), atol=0.015, rtol=0)


def test_edges_that_move_sideways_are_found() -> None:
    # The height of the edge depends on how far to the side and how deep it lies.
    def shear(at: Tensor) -> Tensor:
        return torch.stack([0.06 + 0.0 * at[:, 0], 0.5 * at[:, 0] - 0.4 * at[:, 2], 0.05 + 0.0 * at[:, 0]], dim=1)

    found = search(make_field(shear), torch.tensor([[0.1, 0.02, 0.1]]), UPPER)
    beside, deep = 0.1 - 0.06, 0.1 - 0.05
    expected = torch.tensor([[beside, 0.02 - 0.5 * beside + 0.4 * deep, deep]])
    # The lattice is coarse across and in depth.
    torch.testing.assert_close(found, expected, atol=5e-3, rtol=0)


def test_frames_of_a_batch_do_not_affect_each_other() -> None:
    fields = [make_field(move_vertically(lambda y, by=by: by - y.clamp(-0.05, 0.05))) for by in (0.0, 0.03)]
    points = torch.tensor(CENTER).expand(2, 2, 3)
    alone = torch.cat([locate_edges(field, points[:1], BOTH) for field in fields])
    both = replace(fields[0], lattice=torch.cat([field.lattice for field in fields]))
    torch.testing.assert_close(locate_edges(both, points, BOTH), alone, atol=1e-7, rtol=0)


def test_the_search_starts_within_its_box() -> None:
    points = torch.tensor([[[0.1, -0.2, 0.4], [-0.1, -0.3, 0.5]]])
    low, high = find_search_box(points)
    start = points + BOTH
    assert (start > low).all() and (start < high).all()
