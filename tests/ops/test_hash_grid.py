"""The hash grid of every backend against float64, and the layout against numbers computed by hand."""

from __future__ import annotations

import pytest
import torch

from s3dnerf.encoding.hash_grid import HashGrid, HashGridConfig, plan_levels
from s3dnerf.ops.hash_grid import (
    encode_hash_grid,
    encode_hash_grid_reference,
    index_vertices,
    launch_backward,
    launch_forward,
)
from s3dnerf.ops.layout import GridLevel
from s3dnerf.rendering.threads import use_threads

from .conftest import relative_error

SIZES = [(2, 1, 1), (2, 2, 17), (2, 8, 300), (3, 1, 33), (3, 2, 1000), (3, 4, 50), (3, 8, 129)]


def plan(dimensions: int, features: int) -> list[GridLevel]:
    """Return levels both dense and hashed."""
    config = HashGridConfig(levels=5, features=features, log2_hashmap_size=9, base_resolution=4, finest_resolution=200)
    return plan_levels(config, dimensions)


def keep_off_borders(positions: torch.Tensor, levels: list[GridLevel]) -> torch.Tensor:
    """Move positions whose cell depends on rounding, because the slope is discontinuous at cell borders."""
    for _ in range(20):
        for level in levels:
            place = positions.double() * level.scale + 0.5
            near = (place - place.round()).abs() < 1e-3
            positions = torch.where(near, positions + 3e-3 / level.scale, positions)
    return positions.float()


def test_levels_by_hand() -> None:
    # Growth 2: scales 3, 7, 15; 4, 8, 16 vertices per axis; 64, 512, 4096 in total, of which a table of 2^9 holds 512.
    levels = plan_levels(HashGridConfig(3, 2, 9, 4, 16), 3)
    assert levels == [
        GridLevel(3.0, 4, 0, 64, False),
        GridLevel(7.0, 8, 64, 512, False),
        GridLevel(15.0, 16, 576, 512, True),
    ]
    # 5^2 = 25 vertices are padded to 32.
    assert plan_levels(HashGridConfig(1, 1, 9, 5, 5), 2)[0].entries == 32


def test_scales_are_float32_so_that_all_backends_count_alike() -> None:
    for level in plan_levels(HashGridConfig(16, 2, 19, 16, 2048), 3):
        assert torch.tensor(level.scale, dtype=torch.float32).item() == level.scale
    # In float64 the last scale is slightly above 2047, which would make its resolution one too large.
    assert plan_levels(HashGridConfig(16, 2, 19, 16, 2048), 3)[-1].resolution == 2048


def test_vertices_by_hand() -> None:
    dense = GridLevel(3.0, 4, 0, 64, False)
    hashed = GridLevel(15.0, 16, 0, 512, True)
    vertices = torch.tensor([[1, 2, 3], [0, 0, 0], [3, 0, 0], [4, 3, 3]])
    # x fastest: 1 + 4 (2 + 4 * 3) = 57; the last vertex, one beyond the end, wraps around to the first.
    assert index_vertices(vertices, dense).tolist() == [57, 0, 3, 0]
    expected = [(x ^ (y * 2654435761) ^ (z * 805459861)) % 2**32 % 512 for x, y, z in vertices.tolist()]
    assert index_vertices(vertices, hashed).tolist() == expected
    # -1 is 2^32 - 1 as an unsigned integer, also if the number of entries is no power of two.
    odd = GridLevel(4.0, 5, 0, 128, False)
    assert index_vertices(torch.tensor([[-1, 0, 0]]), odd).item() == (2**32 - 1) % 128


@pytest.mark.parametrize(("dimensions", "features", "points"), SIZES)
def test_agrees_with_float64(library, make, device, dimensions, features, points) -> None:
    levels = plan(dimensions, features)
    table = make(levels[-1].offset + levels[-1].entries, features)
    positions = keep_off_borders(make.uniform(points, dimensions, low=-0.2, high=1.2), levels)
    gradient = make(points, len(levels) * features)
    wide_table, wide_positions = table.double().requires_grad_(), positions.double().requires_grad_()
    truth = encode_hash_grid_reference(wide_positions, wide_table, levels)
    truth.backward(gradient.double())
    result = launch_forward(library, positions, table, levels)
    assert relative_error(result, truth) < 1e-5
    to_positions, to_table = launch_backward(library, gradient, positions, table, levels, True, True)
    assert relative_error(to_positions, wide_positions.grad) < 1e-4
    assert relative_error(to_table, wide_table.grad) < 1e-4


def test_borders_of_the_unit_cube(library, make, device) -> None:
    levels = plan(3, 2)
    table = make(levels[-1].offset + levels[-1].entries, 2)
    corners = torch.cartesian_prod(*[torch.tensor([0.0, 0.5, 1.0])] * 3).to(device)
    truth = encode_hash_grid_reference(corners.double(), table.double(), levels)
    assert relative_error(launch_forward(library, corners, table, levels), truth) < 1e-5


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e30])
def test_bad_positions_spoil_only_their_own_rows(library, make, device, bad) -> None:
    levels = plan(3, 2)
    table = make(levels[-1].offset + levels[-1].entries, 2)
    positions = make.uniform(40, 3)
    whole = launch_forward(library, positions, table, levels)
    positions[7, 1] = bad
    result = launch_forward(library, positions, table, levels)
    others = torch.arange(40, device=device) != 7
    assert torch.equal(result[others], whole[others])
    assert not result[7].isfinite().all() or abs(bad) == 1e30
    to_positions, to_table = launch_backward(library, torch.ones_like(result), positions, table, levels, True, True)
    assert to_positions[others].isfinite().all() and to_table.shape == table.shape


def test_no_points(library, make) -> None:
    levels = plan(3, 2)
    table = make(levels[-1].offset + levels[-1].entries, 2)
    assert launch_forward(library, make(0, 3), table, levels).shape == (0, 10)


def test_half_precision_table(emulated) -> None:
    levels = plan(3, 2)
    table = torch.randn(levels[-1].offset + levels[-1].entries, 2).half()
    table[:4] = torch.tensor([0.0, 6e-8, 65504.0, -1e-5])[:, None]  # zero, the smallest, the largest, a small one
    positions = torch.rand(200, 3)
    truth = encode_hash_grid_reference(positions.double(), table.double(), levels)
    assert relative_error(launch_forward(emulated, positions, table, levels), truth) < 1e-5


def test_refused_sizes_are_errors(cpu) -> None:
    levels = plan(3, 2)
    table = torch.zeros(levels[-1].offset + levels[-1].entries, 3)
    with pytest.raises(RuntimeError, match="hash_grid_forward: a size is out of range"):
        launch_forward(cpu, torch.zeros(1, 3), table, levels)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_same_twice_for_a_fixed_number_of_threads(cpu, threads: int) -> None:
    torch.manual_seed(0)
    grid = HashGrid(HashGridConfig(levels=6, log2_hashmap_size=8))
    positions = torch.rand(5000, 3, requires_grad=True)
    with use_threads(threads):
        runs = [torch.autograd.grad(grid(positions).square().sum(), [positions, grid.table]) for _ in range(2)]
    assert all(torch.equal(one, other) for one, other in zip(*runs, strict=True))


def test_float64_runs_on_the_reference_and_passes_gradcheck() -> None:
    levels = plan_levels(HashGridConfig(2, 2, 6, 3, 5), 2)
    table = torch.randn(levels[-1].offset + levels[-1].entries, 2, dtype=torch.float64, requires_grad=True)
    positions = (torch.rand(6, 2, dtype=torch.float64) * 0.9).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, t: encode_hash_grid(x, t, levels), (positions, table))
