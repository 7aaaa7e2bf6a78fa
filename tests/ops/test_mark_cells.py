"""Marks of lattice points from every set of CPU kernels against a search for the cells in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from s3dnerf.models.s3dnerf.lattice import CENTER, FOCUS, REACH, Lattice
from s3dnerf.ops import mark_cells as module
from s3dnerf.ops.backend import VARIABLE
from s3dnerf.ops.mark_cells import has_kernel, launch_forward
from s3dnerf.rendering.threads import use_threads

SIZE = (7, 9, 5)


@pytest.fixture
def lattice() -> Lattice:
    return Lattice(SIZE)


def describe(lattice: Lattice) -> list[float]:
    return [*lattice.center, *lattice.focus, *lattice.extent]


def find_truth(lattice: Lattice, positions: Tensor) -> Tensor:
    corners, _ = lattice.find_cells(positions.double().reshape(1, -1, 3))
    marks = torch.zeros(len(lattice.points), dtype=torch.bool)
    marks[corners.flatten()] = True
    return marks


@pytest.mark.parametrize("count", [1, 15, 16, 17, 40])
def test_marks_the_corners_of_all_cells(cpu_library, make, lattice, count) -> None:
    positions = torch.tensor(CENTER) + torch.tensor(REACH) * make.uniform(count, 3, low=-1.2, high=1.2)
    marks = launch_forward(cpu_library, positions, SIZE, describe(lattice))
    assert marks.dtype == torch.bool and 8 <= marks.sum() <= 8 * count
    assert torch.equal(marks, find_truth(lattice, positions))


def test_one_position_marks_one_cell(cpu_library, lattice) -> None:
    grid = torch.arange(7 * 9 * 5).view(5, 9, 7)
    inside = lattice.points[grid[1, 6, 2]] + 1e-3
    marks = launch_forward(cpu_library, inside.view(1, 1, 3), SIZE, describe(lattice))
    assert marks.nonzero()[:, 0].tolist() == sorted(grid[1:3, 6:8, 2:4].flatten().tolist())


@pytest.mark.parametrize("far", [20.0, 1e4])
def test_positions_beyond_the_lattice_mark_its_border(cpu_library, lattice, far) -> None:
    grid = torch.arange(7 * 9 * 5).view(5, 9, 7)
    for place, corner in ((far, grid[-2:, -2:, -2:]), (-far, grid[:2, :2, :2])):
        marks = launch_forward(cpu_library, torch.full((3, 3), place), SIZE, describe(lattice))
        assert marks.nonzero()[:, 0].tolist() == sorted(corner.flatten().tolist())


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_any_number_of_threads_gives_the_same_marks(cpu_library, make, lattice, threads) -> None:
    positions = make.uniform(3, 5_000, 3, low=-0.6, high=0.6)
    with use_threads(threads):
        marks = launch_forward(cpu_library, positions, SIZE, describe(lattice))
    assert torch.equal(marks, find_truth(lattice, positions)) and not marks.all()


def test_no_positions_mark_nothing(cpu_library, lattice) -> None:
    assert not launch_forward(cpu_library, torch.zeros(0, 3), SIZE, describe(lattice)).any()


def test_an_axis_of_one_point_is_refused(cpu_library, lattice) -> None:
    with pytest.raises(RuntimeError, match="size"):
        launch_forward(cpu_library, torch.zeros(1, 3), (7, 1, 5), [*CENTER, *FOCUS, 1.0, 1.0, 1.0])


def test_there_is_a_kernel_for_float32_on_the_cpu(cpu, make, lattice, monkeypatch) -> None:
    positions = make(2, 30, 3)
    assert has_kernel(positions) and not has_kernel(positions.double())
    found = lattice.mark_cells(positions)
    assert found is not None and torch.equal(found, find_truth(lattice, positions))
    monkeypatch.setenv(VARIABLE, "pytorch")
    assert lattice.mark_cells(positions) is None


def test_opcheck(cpu, make, lattice) -> None:
    torch.library.opcheck(module.mark_cells.overload, (make(2, 30, 3), list(SIZE), describe(lattice)))
