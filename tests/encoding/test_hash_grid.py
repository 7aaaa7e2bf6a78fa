"""The hash grid against a slow, independent reference written from the layout rule, and against hand-computed cases."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from s3dnerf.encoding.hash_grid import HashGrid, HashGridConfig, plan_levels
from s3dnerf.ops.hash_grid import encode_hash_grid, index_vertices
from s3dnerf.ops.layout import GridLevel

PRIMES = (1, 2654435761, 805459861)
SMALL = HashGridConfig(levels=4, features=2, log2_hashmap_size=8, base_resolution=4, finest_resolution=32)


def encode_point(point: list[float], table: np.ndarray, config: HashGridConfig) -> list[float]:
    """One point at a time, float64 and Python integers: the layout rule read aloud."""
    dimensions = len(point)
    growth = (config.finest_resolution / config.base_resolution) ** (1 / max(config.levels - 1, 1))
    offset, result = 0, []
    for level in range(config.levels):
        scale = float(np.float32(config.base_resolution * growth**level - 1))
        resolution = math.ceil(scale) + 1
        entries = min(-(-(resolution**dimensions) // 8) * 8, 2**config.log2_hashmap_size)
        cell = [math.floor(x * scale + 0.5) for x in point]
        weight = [x * scale + 0.5 - c for x, c in zip(point, cell, strict=True)]
        total = [0.0] * config.features
        for corner in range(2**dimensions):
            bits = [(corner >> axis) & 1 for axis in range(dimensions)]
            share = math.prod(w if bit else 1 - w for w, bit in zip(weight, bits, strict=True))
            vertex = [(c + bit) & 0xFFFFFFFF for c, bit in zip(cell, bits, strict=True)]
            index = 0
            for axis in range(dimensions):
                if resolution**dimensions <= entries:
                    index = (index + vertex[axis] * resolution**axis) & 0xFFFFFFFF
                else:
                    index ^= (vertex[axis] * PRIMES[axis]) & 0xFFFFFFFF
            row = table[offset + index % entries]
            total = [t + share * float(value) for t, value in zip(total, row, strict=True)]
        offset += entries
        result += total
    return result


def make_table(config: HashGridConfig, dimensions: int, seed: int = 0) -> torch.Tensor:
    levels = plan_levels(config, dimensions)
    generator = torch.Generator().manual_seed(seed)
    entries = levels[-1].offset + levels[-1].entries
    return torch.randn(entries, config.features, generator=generator, dtype=torch.float64)


def test_level_table_of_three_octaves() -> None:
    config = HashGridConfig(levels=3, log2_hashmap_size=9, base_resolution=4, finest_resolution=16)
    assert plan_levels(config, 3) == [
        GridLevel(scale=3.0, resolution=4, offset=0, entries=64, hashed=False),
        GridLevel(scale=7.0, resolution=8, offset=64, entries=512, hashed=False),
        GridLevel(scale=15.0, resolution=16, offset=576, entries=512, hashed=True),
    ]
    assert [(level.offset, level.entries, level.hashed) for level in plan_levels(config, 2)] == [
        (0, 16, False),
        (16, 64, False),
        (80, 256, False),
    ]


def test_entries_are_rounded_up_to_multiples_of_eight() -> None:
    config = HashGridConfig(levels=1, base_resolution=5, finest_resolution=5)
    assert plan_levels(config, 3)[0].entries == 128
    assert plan_levels(config, 2)[0].entries == 32


def test_fractional_scales_round_the_resolution_up() -> None:
    # Growth is the square root of 2: the middle level has scale 4 * 1.4142 - 1 = 4.657 and 6 vertices an axis.
    config = HashGridConfig(levels=3, base_resolution=4, finest_resolution=8)
    middle = plan_levels(config, 3)[1]
    assert middle.scale == pytest.approx(4.65685425, abs=1e-6)
    assert middle.resolution == 6 and middle.entries == 216


def test_finest_level_has_the_resolution_that_was_asked_for() -> None:
    for levels, base, finest in ((8, 8, 96), (16, 16, 512), (16, 16, 2048), (12, 16, 300), (5, 3, 77)):
        config = HashGridConfig(levels=levels, base_resolution=base, finest_resolution=finest)
        assert plan_levels(config, 3)[-1].resolution == finest


def test_dense_vertices_are_numbered_with_x_fastest() -> None:
    level = GridLevel(scale=7.0, resolution=8, offset=0, entries=512, hashed=False)
    vertices = torch.tensor([[1, 2, 3], [7, 7, 7], [8, 0, 0], [0, 0, 8]])
    # 1 + 2 * 8 + 3 * 64; the last; one beyond the row is the next row; one beyond the volume is its start.
    assert index_vertices(vertices, level).tolist() == [209, 511, 8, 0]
    flat = GridLevel(scale=4.0, resolution=5, offset=0, entries=32, hashed=False)
    assert index_vertices(torch.tensor([[3, 4]]), flat).tolist() == [23]


def test_hash_of_a_vertex_by_hand() -> None:
    level = GridLevel(scale=15.0, resolution=16, offset=0, entries=512, hashed=True)
    # In 32 bits 2 * 2654435761 = 0x3C6EF362 and 3 * 805459861 = 0x900706BF; with 1 the exclusive or is 0xAC69F5DC.
    assert index_vertices(torch.tensor([[1, 2, 3]]), level).tolist() == [0xAC69F5DC % 512]


@pytest.mark.parametrize("dimensions", [2, 3])
def test_values_agree_with_the_reference(dimensions: int) -> None:
    levels, table = plan_levels(SMALL, dimensions), make_table(SMALL, dimensions)
    assert [level.hashed for level in levels] == [False, dimensions == 3, dimensions == 3, True]
    points = np.random.default_rng(1).uniform(0, 1, (64, dimensions))
    expected = np.array([encode_point(point, table.numpy(), SMALL) for point in points.tolist()])
    got = encode_hash_grid(torch.from_numpy(points), table, levels)
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-12, atol=1e-12)
    single = encode_hash_grid(torch.from_numpy(points).float(), table.float(), levels)
    np.testing.assert_allclose(single.numpy(), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("dimensions", [2, 3])
def test_borders_and_outside_agree_with_the_reference(dimensions: int) -> None:
    # Base 3 gives a dense level of 32 (2-D: 16) entries, which is not a power of two in 3-D.
    config = HashGridConfig(levels=3, features=1, log2_hashmap_size=9, base_resolution=3, finest_resolution=12)
    levels, table = plan_levels(config, dimensions), make_table(config, dimensions)
    steps = (-1.3, -0.2, 0.0, 1.0, 1.1, 2.7)
    points = [[x] * (dimensions - 1) + [y] for x in steps for y in steps]
    expected = np.array([encode_point(point, table.numpy(), config) for point in points])
    got = encode_hash_grid(torch.tensor(points, dtype=torch.float64), table, levels)
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-12, atol=1e-12)


def test_a_vertex_reads_its_own_entry() -> None:
    config = HashGridConfig(levels=1, features=2, base_resolution=8, finest_resolution=8)
    table = make_table(config, 3)
    # x * 7 + 0.5 is a whole number at x = (k - 0.5) / 7.
    vertices = torch.tensor([[1, 1, 1], [2, 5, 7], [7, 3, 1]])
    features = encode_hash_grid((vertices.double() - 0.5) / 7.0, table, plan_levels(config, 3))
    torch.testing.assert_close(features, table[vertices @ torch.tensor([1, 8, 64])])


def test_shares_of_the_corners_sum_to_one() -> None:
    levels = plan_levels(SMALL, 3)
    points = torch.rand(100, 3, generator=torch.Generator().manual_seed(2)) * 1.5 - 0.25
    ones = torch.ones(levels[-1].offset + levels[-1].entries, 2)
    torch.testing.assert_close(encode_hash_grid(points, ones, levels), torch.ones(100, 8))


@pytest.mark.parametrize("dimensions", [2, 3])
def test_gradients_of_table_and_positions(dimensions: int) -> None:
    config = HashGridConfig(levels=3, features=2, log2_hashmap_size=5, base_resolution=2, finest_resolution=8)
    levels = plan_levels(config, dimensions)
    table = make_table(config, dimensions).requires_grad_()
    points = torch.rand(6, dimensions, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    # Far enough from the cells' borders for finite differences, where the slope jumps.
    for level in levels:
        phase = (points * level.scale + 0.5) % 1.0
        assert ((phase > 1e-4) & (phase < 1 - 1e-4)).all()
    torch.autograd.gradcheck(lambda x, t: encode_hash_grid(x, t, levels), (points.requires_grad_(), table))


def test_colliding_corners_add_their_gradients() -> None:
    # One entry per level: all corners meet in it, and their shares sum to one.
    levels = [GridLevel(scale=15.0, resolution=16, offset=0, entries=1, hashed=True)]
    table = torch.zeros(1, 1, dtype=torch.float64, requires_grad=True)
    encode_hash_grid(torch.rand(10, 3, dtype=torch.float64), table, levels).sum().backward()
    assert table.grad.item() == pytest.approx(10.0)


def test_module_keeps_leading_dimensions_and_starts_small() -> None:
    grid = HashGrid(SMALL)
    assert grid.table.shape == (64 + 3 * 256, 2) and grid.output_features == 8
    assert grid.table.abs().max() <= 1e-2
    positions = torch.rand(2, 5, 3)
    features = grid(positions)
    assert features.shape == (2, 5, 8)
    torch.testing.assert_close(features[1, 3], grid(positions[1, 3]))
