"""Hash grid and tri-planes in plain PyTorch: the specification of the kernels, and the last resort without them.

Both work in the precision of their inputs, on any device, and are differentiable twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import torch
from torch import Tensor
from torch.nn import functional as F

from s3dnerf.encoding.layout import HASH_PRIMES, PLANE_AXES, GridLevel


def index_vertices(vertices: Tensor, level: GridLevel) -> Tensor:
    """Return the table entry (within its level) of integer ``vertices [..., D]``; arithmetic wraps at 32 bits."""
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


def encode_hash_grid(positions: Tensor, table: Tensor, levels: Sequence[GridLevel]) -> Tensor:
    """The twin of :func:`s3dnerf.encoding.hash_grid.encode_hash_grid`."""
    features = []
    dimensions = positions.shape[-1]
    corners = torch.tensor(list(product((0, 1), repeat=dimensions)), device=positions.device)
    for level in levels:
        scaled = positions * level.scale + 0.5
        cell = scaled.detach().floor()
        weight = scaled - cell
        vertices = cell.nan_to_num().clamp(-1e9, 1e9).long().unsqueeze(1) + corners  # [N, 2^D, D]
        entries = index_vertices(vertices, level) + level.offset
        # A corner's share is the product over the axes of w or 1 - w.
        shares = ((1.0 - weight).unsqueeze(1) + (2.0 * weight - 1.0).unsqueeze(1) * corners).prod(dim=-1)
        # Mixed precision would round to bfloat16.
        with torch.autocast(positions.device.type, enabled=False):
            features.append(torch.einsum("nc,ncf->nf", shares.to(table.dtype), table[entries]))
    return torch.cat(features, dim=-1)


def sample_triplane(planes: Tensor, positions: Tensor) -> Tensor:
    """The twin of :func:`s3dnerf.encoding.triplane.sample_triplane`."""
    batch, count = planes.shape[:2]
    dtype = torch.promote_types(planes.dtype, torch.float32)
    coordinates = torch.stack([positions[..., axes] for axes in map(list, PLANE_AXES)], dim=1)  # [B, 3, N, 2]
    sampled = F.grid_sample(
        planes.flatten(0, 1).to(dtype),
        coordinates.flatten(0, 1).unsqueeze(1).to(dtype),
        mode="bilinear",
        padding_mode="border",
        align_corners=False,
    )  # [B * 3, C, 1, N]
    return sampled.reshape(batch, count, -1, positions.shape[1]).mean(dim=1).transpose(1, 2)
