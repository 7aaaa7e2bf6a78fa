"""Multi-resolution hash grid (Mueller et al., 2022) with the memory layout of tiny-cuda-nn.

The layout rule, so that a table means the same in every backend:

* level ``l`` has ``scale = base_resolution * per_level_scale ** l - 1`` and ``resolution = ceil(scale) + 1`` vertices
  an axis;
* a coordinate ``x`` in [0, 1] sits at ``x * scale + 0.5``; its cell is the floor of that, its weights the remainder;
* a level stores ``min(resolution ** D rounded up to a multiple of 8, 2 ** log2_hashmap_size)`` entries;
* where ``resolution ** D`` fits the table the vertex index is dense, x fastest; elsewhere the coordinates are
  multiplied by (1, 2654435761, 805459861) in 32-bit arithmetic and combined by exclusive or. Both are taken modulo
  the number of entries;
* the parameters of all levels stand one after another, features innermost.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor, nn

HASH_PRIMES = (1, 2654435761, 805459861)


@dataclass
class HashGridConfig:
    """Size of a multi-resolution hash grid."""

    levels: int = 8
    """Number of resolutions."""
    features: int = 2
    """Features stored at each vertex."""
    log2_hashmap_size: int = 14
    """Base-2 logarithm of the largest number of vertices a level stores."""
    base_resolution: int = 8
    """Vertices an axis at the coarsest level."""
    finest_resolution: int = 96
    """Vertices an axis at the finest level."""


@dataclass(frozen=True)
class GridLevel:
    """One resolution of the grid: where it lies in the table and how a vertex is addressed."""

    scale: float
    resolution: int
    offset: int
    entries: int
    hashed: bool


def plan_levels(config: HashGridConfig, dimensions: int) -> list[GridLevel]:
    """Return the levels of the table for inputs of ``dimensions`` coordinates, by the layout rule above."""
    growth = 1.0
    if config.levels > 1:
        growth = (config.finest_resolution / config.base_resolution) ** (1.0 / (config.levels - 1))
    levels: list[GridLevel] = []
    offset = 0
    for index in range(config.levels):
        # Rounded, so that noise in the last digit does not give a whole resolution one vertex more.
        scale = round(config.base_resolution * growth**index - 1.0, 9)
        resolution = math.ceil(scale) + 1
        dense = resolution**dimensions
        entries = min((dense + 7) // 8 * 8, 2**config.log2_hashmap_size)
        levels.append(GridLevel(scale, resolution, offset, entries, hashed=dense > entries))
        offset += entries
    return levels


def index_vertices(vertices: Tensor, level: GridLevel) -> Tensor:
    """Return the table entry (within its level) of integer ``vertices [..., D]``."""
    dimensions = vertices.shape[-1]
    if level.hashed:
        index = vertices[..., 0]
        for axis in range(1, dimensions):
            index = index ^ (vertices[..., axis] * HASH_PRIMES[axis])
        # A hashed level has 2 ** log2_hashmap_size entries: its low bits are the remainder, also of a negative number.
        return index & (level.entries - 1)
    index = vertices[..., dimensions - 1]
    for axis in range(dimensions - 2, -1, -1):
        index = index * level.resolution + vertices[..., axis]
    return (index & 0xFFFFFFFF) % level.entries


def encode_hash_grid(positions: Tensor, table: Tensor, levels: list[GridLevel]) -> Tensor:
    """Interpolate the grid at ``positions``.

    Args:
        positions: ``[N, D]`` coordinates; the grid spans [0, 1]. Coordinates outside continue into other
            (wrapped) vertices, as in tiny-cuda-nn.
        table: ``[entries, F]`` parameters of all levels.
        levels: as given by :func:`plan_levels`.

    Returns:
        ``[N, levels * F]``, coarse levels first. Differentiable in ``table`` and ``positions``.
    """
    features = []
    dimensions = positions.shape[-1]
    corners = torch.tensor(list(product((0, 1), repeat=dimensions)), device=positions.device)
    for level in levels:
        scaled = positions * level.scale + 0.5
        cell = scaled.detach().floor()
        weight = scaled - cell
        vertices = cell.long().unsqueeze(1) + corners  # [N, 2^D, D]
        entries = index_vertices(vertices, level) + level.offset
        # A corner's share is the product over the axes of w or 1 - w.
        shares = ((1.0 - weight).unsqueeze(1) + (2.0 * weight - 1.0).unsqueeze(1) * corners).prod(dim=-1)
        features.append(torch.einsum("nc,ncf->nf", shares, table[entries]))
    return torch.cat(features, dim=-1)


class HashGrid(nn.Module):
    """A learnable hash grid over [0, 1]^D."""

    def __init__(self, config: HashGridConfig, dimensions: int = 3) -> None:
        super().__init__()
        self.levels = plan_levels(config, dimensions)
        entries = self.levels[-1].offset + self.levels[-1].entries
        self.table = nn.Parameter(torch.empty(entries, config.features).uniform_(-1e-2, 1e-2))
        self.output_features = config.levels * config.features

    def forward(self, positions: Tensor) -> Tensor:
        """``positions [..., D]`` in [0, 1] -> features ``[..., levels * F]``."""
        flat = positions.reshape(-1, positions.shape[-1])
        return encode_hash_grid(flat, self.table, self.levels).reshape(*positions.shape[:-1], self.output_features)
