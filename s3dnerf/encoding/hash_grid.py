"""The multi-resolution hash grid as a module; :mod:`s3dnerf.ops.hash_grid` describes its memory layout."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from s3dnerf.constraints import PositiveInt
from s3dnerf.ops.hash_grid import encode_hash_grid
from s3dnerf.ops.layout import GridLevel


@dataclass
class HashGridConfig:
    """Size of a multi-resolution hash grid."""

    levels: Annotated[PositiveInt, Field(le=64)] = 8
    """Number of resolutions."""
    features: Annotated[PositiveInt, Field(le=64)] = 2
    """Features stored at each vertex."""
    log2_hashmap_size: Annotated[PositiveInt, Field(le=24)] = 14
    """Base-2 logarithm of the maximum number of vertices stored per level."""
    base_resolution: Annotated[PositiveInt, Field(le=2**16)] = 8
    """Vertices per axis at the coarsest level."""
    finest_resolution: Annotated[PositiveInt, Field(le=2**16)] = 96
    """Vertices per axis at the finest level."""

    @model_validator(mode="after")
    def check_resolutions(self) -> HashGridConfig:
        """Check that the levels range from coarse to fine."""
        if self.finest_resolution < self.base_resolution:
            reason = f"finest_resolution ({self.finest_resolution}) should be at least base_resolution"
            raise ValueError(f"{reason} ({self.base_resolution})")
        return self


def plan_levels(config: HashGridConfig, dimensions: int) -> list[GridLevel]:
    """Return the levels of the table for inputs of ``dimensions`` coordinates."""
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


class HashGrid(nn.Module):
    """A learnable hash grid over [0, 1]^D."""

    def __init__(self, config: HashGridConfig, dimensions: int = 3) -> None:
        super().__init__()
        self.levels = plan_levels(config, dimensions)
        entries = self.levels[-1].offset + self.levels[-1].entries
        self.table = nn.Parameter(torch.empty(entries, config.features).uniform_(-1e-2, 1e-2))
        self.output_features = config.levels * config.features

    def forward(self, positions: Tensor) -> Tensor:
        """Encode ``positions [..., D]`` in [0, 1] as features ``[..., levels * F]``."""
        flat = positions.reshape(-1, positions.shape[-1])
        return encode_hash_grid(flat, self.table, self.levels).reshape(*positions.shape[:-1], self.output_features)
