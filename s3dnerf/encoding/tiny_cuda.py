"""The hash grid on tinycudann, with a table that is ours: both lay it out by the same rule."""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor, nn

from s3dnerf.encoding.layout import GridLevel


@cache
def make_encoding(levels: tuple[GridLevel, ...], dimensions: int, features: int) -> nn.Module | None:
    """Return tinycudann's encoding of these levels, or None where it would lay the table out differently.

    tinycudann computes the resolutions on the GPU in float32; at a level whose scale is a whole number it may come out
    one vertex larger.
    """
    import tinycudann

    base, last = levels[0].scale + 1.0, levels[-1].scale + 1.0
    growth = (last / base) ** (1.0 / (len(levels) - 1)) if len(levels) > 1 else 1.0
    config = {
        "otype": "HashGrid",
        "n_levels": len(levels),
        "n_features_per_level": features,
        "log2_hashmap_size": math.ceil(math.log2(max(level.entries for level in levels))),
        "base_resolution": round(base),
        "per_level_scale": growth,
    }
    encoding = tinycudann.Encoding(dimensions, config, dtype=torch.float32)
    entries = levels[-1].offset + levels[-1].entries
    return encoding if encoding.params.numel() == entries * features and base == round(base) else None


def encode_hash_grid(positions: Tensor, table: Tensor, encoding: nn.Module) -> Tensor:
    """``positions [N, D]`` (float32) and ``table [entries, F]`` -> ``[N, levels * F]`` float32."""
    parameters = {"params": table.float().flatten()}
    return torch.func.functional_call(encoding, parameters, (positions,)).float()
