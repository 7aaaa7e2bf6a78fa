"""Multi-resolution hash grid (Mueller et al., 2022) with the memory layout of tiny-cuda-nn.

The layout rule, so that a table means the same in every backend:

* level ``l`` has ``scale = base_resolution * per_level_scale ** l - 1``, rounded to float32, and ``resolution =
  ceil(scale) + 1`` vertices an axis;
* a coordinate ``x`` in [0, 1] sits at ``x * scale + 0.5``; its cell is the floor of that, its weights the remainder;
* a level stores ``min(resolution ** D rounded up to a multiple of 8, 2 ** log2_hashmap_size)`` entries;
* where ``resolution ** D`` fits the table the vertex index is dense, x fastest; elsewhere the coordinates are
  multiplied by (1, 2654435761, 805459861) and combined by exclusive or. Both in unsigned 32-bit arithmetic, also for
  the negative coordinates of positions outside [0, 1], and both modulo the number of entries;
* the parameters of all levels stand one after another, features innermost.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from s3dnerf.backend import choose_backend
from s3dnerf.constraints import PositiveInt
from s3dnerf.encoding import operators, reference, tiny_cuda
from s3dnerf.encoding.layout import GridLevel


@dataclass
class HashGridConfig:
    """Size of a multi-resolution hash grid."""

    levels: Annotated[PositiveInt, Field(le=64)] = 8
    """Number of resolutions."""
    features: Annotated[PositiveInt, Field(le=64)] = 2
    """Features stored at each vertex."""
    log2_hashmap_size: Annotated[PositiveInt, Field(le=24)] = 14
    """Base-2 logarithm of the largest number of vertices a level stores."""
    base_resolution: Annotated[PositiveInt, Field(le=2**16)] = 8
    """Vertices an axis at the coarsest level."""
    finest_resolution: Annotated[PositiveInt, Field(le=2**16)] = 96
    """Vertices an axis at the finest level."""

    @model_validator(mode="after")
    def check_resolutions(self) -> HashGridConfig:
        """Levels go from coarse to fine."""
        if self.finest_resolution < self.base_resolution:
            reason = f"finest_resolution ({self.finest_resolution}) should be at least base_resolution"
            raise ValueError(f"{reason} ({self.base_resolution})")
        return self


def plan_levels(config: HashGridConfig, dimensions: int) -> list[GridLevel]:
    """Return the levels of the table for inputs of ``dimensions`` coordinates, by the layout rule above."""
    growth = 1.0
    if config.levels > 1:
        growth = (config.finest_resolution / config.base_resolution) ** (1.0 / (config.levels - 1))
    levels: list[GridLevel] = []
    offset = 0
    for index in range(config.levels):
        scale = float(np.float32(config.base_resolution * growth**index - 1.0))
        resolution = math.ceil(scale) + 1
        dense = resolution**dimensions
        entries = min((dense + 7) // 8 * 8, 2**config.log2_hashmap_size)
        levels.append(GridLevel(scale, resolution, offset, entries, hashed=dense > entries))
        offset += entries
    return levels


def encode_hash_grid(positions: Tensor, table: Tensor, levels: Sequence[GridLevel]) -> Tensor:
    """Interpolate the grid at ``positions``.

    Args:
        positions: ``[N, D]`` coordinates; the grid spans [0, 1]. Coordinates outside continue into other (wrapped)
            vertices, as in tiny-cuda-nn. NaN gives NaN.
        table: ``[entries, F]`` parameters of all levels; on a GPU also in half precision.
        levels: as given by :func:`plan_levels`.

    Returns:
        ``[N, levels * F]`` float32 (float64 if an argument is), coarse levels first. Differentiable in ``table`` and
        ``positions``.
    """
    backend = choose_backend("hash_grid", positions.device.type)
    wide = torch.float64 in (positions.dtype, table.dtype)
    odd = table.shape[1] not in (1, 2, 4, 8) or positions.shape[1] not in (2, 3) or len(levels) > operators.MAX_LEVELS
    if backend == "pytorch" or wide or odd:
        return reference.encode_hash_grid(positions, table, levels)
    if backend == "tinycudann":
        encoding = tiny_cuda.make_encoding(tuple(levels), *positions.shape[1:], *table.shape[1:])
        if encoding is not None:
            return tiny_cuda.encode_hash_grid(positions.float(), table, encoding)
        if choose_backend("triplane", positions.device.type) == "pytorch":
            return reference.encode_hash_grid(positions, table, levels)
    if positions.device.type == "cpu" or table.dtype == torch.bfloat16:
        table = table.float()
    scales, resolutions, entries = zip(*((part.scale, part.resolution, part.entries) for part in levels), strict=True)
    return operators.hash_grid(positions.float(), table, list(scales), list(resolutions), list(entries))


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
