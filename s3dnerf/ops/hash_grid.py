"""Multi-resolution hash encoding (Mueller et al., 2022) with the memory layout of tiny-cuda-nn.

The layout, which is the same in every backend:

* level ``l`` has ``scale = base_resolution * per_level_scale ** l - 1``, rounded to float32, and ``resolution =
  ceil(scale) + 1`` vertices per axis;
* a coordinate ``x`` in [0, 1] maps to ``x * scale + 0.5``; its cell is the floor, its interpolation weight the rest;
* a level stores ``min(resolution ** D rounded up to a multiple of 8, 2 ** log2_hashmap_size)`` entries;
* where ``resolution ** D`` fits the table, the vertex index is dense with x fastest. Otherwise the coordinates are
  multiplied by (1, 2654435761, 805459861) and combined by exclusive or. Both use unsigned 32-bit arithmetic modulo the
  number of entries, also for the negative coordinates of positions outside [0, 1];
* the levels are stored one after another, features innermost.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from ctypes import c_float, c_int32, c_int64, c_uint32
from ctypes import c_void_p as pointer
from functools import cache
from itertools import accumulate, product

import torch
from torch import Tensor, nn

from s3dnerf.ops.backend import Library, choose_backend, find_library
from s3dnerf.ops.constant import constant
from s3dnerf.ops.layout import HASH_PRIMES, STORAGE, GridLevel, runs_on_pytorch
from s3dnerf.ops.library import define_operator

MAX_LEVELS = 32
FEATURES_PER_VERTEX = (1, 2, 4, 8)
"""Feature counts that the kernels are compiled for."""


def encode_hash_grid(positions: Tensor, table: Tensor, levels: Sequence[GridLevel]) -> Tensor:
    """Interpolate the grid at ``positions``.

    Args:
        positions: ``[N, D]`` coordinates, ``D`` 2 or 3. The grid spans [0, 1]; coordinates outside wrap to other
            vertices, as in tiny-cuda-nn. NaN gives NaN.
        table: ``[entries, F]`` parameters of all levels; on a GPU also in half precision.
        levels: as returned by :func:`s3dnerf.encoding.hash_grid.plan_levels`.

    Returns:
        ``[N, levels * F]`` float32 (float64 if an argument is), coarse levels first. Differentiable in ``table`` and
        ``positions``.
    """
    supported = table.shape[1] in FEATURES_PER_VERTEX and positions.shape[1] in (2, 3) and len(levels) <= MAX_LEVELS
    if not supported or runs_on_pytorch("hash_grid", positions, table):
        return encode_hash_grid_reference(positions, table, levels)
    device = positions.device.type
    if choose_backend("hash_grid", device) == "tinycudann":
        encoding = make_tinycudann_encoding(tuple(levels), *positions.shape[1:], *table.shape[1:])
        if encoding is not None:
            return encode_tinycudann(positions.float(), table, encoding)
        if choose_backend("triplane", device) == "pytorch":
            return encode_hash_grid_reference(positions, table, levels)
    if device == "cpu" or table.dtype == torch.bfloat16:
        table = table.float()
    scales, resolutions, entries = zip(*((part.scale, part.resolution, part.entries) for part in levels), strict=True)
    return hash_grid(positions.float(), table, list(scales), list(resolutions), list(entries))


def encode_hash_grid_reference(positions: Tensor, table: Tensor, levels: Sequence[GridLevel]) -> Tensor:
    """Reference implementation of :func:`encode_hash_grid`: any precision and device, differentiable twice."""
    features = []
    dimensions = positions.shape[-1]
    corners = constant(tuple(product((0, 1), repeat=dimensions)), positions.device)
    for level in levels:
        scaled = positions * level.scale + 0.5
        cell = scaled.detach().floor()
        weight = scaled - cell
        vertices = cell.nan_to_num().clamp(-1e9, 1e9).long().unsqueeze(1) + corners  # [N, 2^D, D]
        entries = index_vertices(vertices, level) + level.offset
        # The weight of a corner is the product over the axes of w or 1 - w.
        weights = ((1.0 - weight).unsqueeze(1) + (2.0 * weight - 1.0).unsqueeze(1) * corners).prod(dim=-1)
        # Autocast would round the features to bfloat16.
        with torch.autocast(positions.device.type, enabled=False):
            features.append(torch.einsum("nc,ncf->nf", weights.to(table.dtype), table[entries]))
    return torch.cat(features, dim=-1)


def index_vertices(vertices: Tensor, level: GridLevel) -> Tensor:
    """Return the entry, within its level, of integer ``vertices [..., D]``. Arithmetic wraps at 32 bits."""
    dimensions = vertices.shape[-1]
    if level.hashed:
        index = vertices[..., 0]
        for axis in range(1, dimensions):
            index = index ^ (vertices[..., axis] * HASH_PRIMES[axis])
        # A hashed level has a power of two entries, so that the low bits are the remainder, also of negative numbers.
        return index & (level.entries - 1)
    index = vertices[..., dimensions - 1]
    for axis in range(dimensions - 2, -1, -1):
        index = index * level.resolution + vertices[..., axis]
    return (index & 0xFFFFFFFF) % level.entries


@cache
def make_tinycudann_encoding(levels: tuple[GridLevel, ...], dimensions: int, features: int) -> nn.Module | None:
    """Return tinycudann's encoding of these levels, or None if its table layout would differ.

    tinycudann computes resolutions on the GPU in float32. Where the scale of a level is a whole number, its resolution
    can be one vertex larger.
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


def encode_tinycudann(positions: Tensor, table: Tensor, encoding: nn.Module) -> Tensor:
    """Run tinycudann's ``encoding`` on ``positions [N, D]`` (float32) with our ``table [entries, F]``."""
    parameters = {"params": table.float().flatten()}
    return torch.func.functional_call(encoding, parameters, (positions,)).float()


class S3dGridLevel(ctypes.Structure):
    """Mirror of ``S3dGridLevel``."""

    _fields_ = (
        ("scale", c_float),
        ("resolution", c_uint32),
        ("entries", c_uint32),
        ("hashed", c_uint32),
        ("offset", c_int64),
    )


class S3dHashGrid(ctypes.Structure):
    """Mirror of ``S3dHashGrid``."""

    _fields_ = (
        ("points", c_int64),
        *((name, c_int32) for name in ("dimensions", "features", "levels", "storage")),
        *((name, pointer) for name in ("positions", "table", "output")),
        *((name, pointer) for name in ("output_gradient", "table_gradient", "positions_gradient")),
        ("level", S3dGridLevel * MAX_LEVELS),
    )


ARGUMENTS = S3dHashGrid


def make_levels(
    dimensions: int, scales: Sequence[float], resolutions: Sequence[int], entries: Sequence[int]
) -> list[GridLevel]:
    """Return the levels of a grid from the lists that a registered operator can take."""
    offsets = accumulate(entries, initial=0)
    return [
        GridLevel(scale, resolution, offset, count, hashed=resolution**dimensions > count)
        for scale, resolution, count, offset in zip(scales, resolutions, entries, offsets, strict=False)
    ]


def make_arguments(positions: Tensor, table: Tensor, levels: Sequence[GridLevel]) -> S3dHashGrid:
    """Fill in what forward and backward pass share. ``positions`` and ``table`` must be contiguous."""
    points, dimensions = positions.shape
    arguments = S3dHashGrid(
        points=points,
        dimensions=dimensions,
        features=table.shape[1],
        levels=len(levels),
        storage=STORAGE[table.dtype],
        positions=positions.data_ptr(),
        table=table.data_ptr(),
    )
    for index, level in enumerate(levels):
        part = (level.scale, level.resolution, level.entries, level.hashed, level.offset)
        arguments.level[index] = S3dGridLevel(*part)
    return arguments


def launch_forward(library: Library, positions: Tensor, table: Tensor, levels: Sequence[GridLevel]) -> Tensor:
    """``positions [N, D]`` (float32) and ``table [entries, F]`` -> ``[N, levels * F]`` (float32)."""
    positions, table = positions.contiguous(), table.contiguous()
    output = positions.new_empty(len(positions), len(levels) * table.shape[1])
    arguments = make_arguments(positions, table, levels)
    arguments.output = output.data_ptr()
    library.call("hash_grid_forward", arguments, positions.device)
    return output


def launch_backward(
    library: Library,
    gradient: Tensor,
    positions: Tensor,
    table: Tensor,
    levels: Sequence[GridLevel],
    need_positions: bool,
    need_table: bool,
) -> tuple[Tensor, Tensor]:
    """Return the gradients with respect to positions and table; one that is not needed is empty."""
    positions, table, gradient = positions.contiguous(), table.contiguous(), gradient.contiguous()
    to_positions = torch.empty_like(positions) if need_positions else positions.new_empty(0)
    to_table = torch.zeros_like(table, dtype=torch.float32) if need_table else table.new_empty(0)
    arguments = make_arguments(positions, table, levels)
    arguments.output_gradient = gradient.data_ptr()
    arguments.positions_gradient = to_positions.data_ptr() if need_positions else None
    arguments.table_gradient = to_table.data_ptr() if need_table else None
    library.call("hash_grid_backward", arguments, positions.device)
    return to_positions, to_table.to(table.dtype)


@define_operator(
    "hash_grid",
    "(Tensor positions, Tensor table, float[] scales, int[] resolutions, int[] entries) -> Tensor",
)
def hash_grid(positions, table, scales, resolutions, entries):
    """Interpolate a hash grid: ``positions [N, D]`` float32, ``table [entries, F]``, one number per level in lists."""
    levels = make_levels(positions.shape[1], scales, resolutions, entries)
    return launch_forward(find_library(positions.device.type), positions, table, levels)


@hash_grid.register_fake
def _(positions, table, scales, resolutions, entries):
    return positions.new_empty(positions.shape[0], len(scales) * table.shape[1])


@define_operator(
    "hash_grid_backward",
    "(Tensor gradient, Tensor positions, Tensor table, float[] scales, int[] resolutions, int[] entries, "
    "bool need_positions, bool need_table) -> (Tensor, Tensor)",
)
def hash_grid_backward(gradient, positions, table, scales, resolutions, entries, need_positions, need_table):
    """Return the gradients of :func:`hash_grid` with respect to positions and table."""
    levels = make_levels(positions.shape[1], scales, resolutions, entries)
    library = find_library(positions.device.type)
    return launch_backward(library, gradient, positions, table, levels, need_positions, need_table)


@hash_grid_backward.register_fake
def _(gradient, positions, table, scales, resolutions, entries, need_positions, need_table):
    to_positions = torch.empty_like(positions) if need_positions else positions.new_empty(0)
    return to_positions, torch.empty_like(table) if need_table else table.new_empty(0)


def _setup_context(ctx, inputs, output):
    positions, table, *ctx.levels = inputs
    ctx.save_for_backward(positions, table)


def _backward(ctx, gradient):
    need_positions, need_table = ctx.needs_input_grad[:2]
    to_positions, to_table = hash_grid_backward(gradient, *ctx.saved_tensors, *ctx.levels, need_positions, need_table)
    return to_positions if need_positions else None, to_table if need_table else None, None, None, None


hash_grid.register_autograd(_backward, setup_context=_setup_context)
