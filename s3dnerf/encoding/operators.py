"""Hash grid and tri-planes on our kernels, as PyTorch operators: eager, under autograd and ``torch.compile``.

Each operator comes in three layers: a function that fills the C structure of ``cuda_ext/include/s3d.h`` and calls a
library; a registered operator around it with a fake twin that only knows shapes; and its formula of differentiation.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from s3dnerf.backend import Library, find_library
from s3dnerf.encoding.layout import GridLevel

MAX_LEVELS = 32
STORAGE = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}

c_int64, c_int32, c_uint32, c_float = ctypes.c_int64, ctypes.c_int32, ctypes.c_uint32, ctypes.c_float
pointer = ctypes.c_void_p


class GridLevelStructure(ctypes.Structure):
    """S3dGridLevel."""

    _fields_ = (
        ("scale", c_float),
        ("resolution", c_uint32),
        ("entries", c_uint32),
        ("hashed", c_uint32),
        ("offset", c_int64),
    )


class HashGridStructure(ctypes.Structure):
    """S3dHashGrid."""

    _fields_ = (
        ("points", c_int64),
        *((name, c_int32) for name in ("dimensions", "features", "levels", "storage")),
        *((name, pointer) for name in ("positions", "table", "output")),
        *((name, pointer) for name in ("output_gradient", "table_gradient", "positions_gradient")),
        ("level", GridLevelStructure * MAX_LEVELS),
    )


class TriplaneStructure(ctypes.Structure):
    """S3dTriplane."""

    _fields_ = (
        *((name, c_int64) for name in ("batch", "points")),
        *((name, c_int32) for name in ("channels", "height", "width", "storage")),
        *((name, c_int64) for name in ("batch_stride", "plane_stride", "row_stride", "column_stride")),
        ("output_stride", c_int64),
        *((name, pointer) for name in ("planes", "positions", "output")),
        *((name, pointer) for name in ("output_gradient", "planes_gradient", "positions_gradient")),
    )


def list_levels(
    dimensions: int, scales: Sequence[float], resolutions: Sequence[int], entries: Sequence[int]
) -> list[GridLevel]:
    """Return the levels of a grid from what an operator's arguments can carry."""
    offsets = accumulate(entries, initial=0)
    return [
        GridLevel(scale, resolution, offset, count, hashed=resolution**dimensions > count)
        for scale, resolution, count, offset in zip(scales, resolutions, entries, offsets, strict=False)
    ]


def describe_hash_grid(positions: Tensor, table: Tensor, levels: Sequence[GridLevel]) -> HashGridStructure:
    """Fill in what forward and backward pass share. ``positions`` and ``table`` must be contiguous."""
    points, dimensions = positions.shape
    filled = HashGridStructure(
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
        filled.level[index] = GridLevelStructure(*part)
    return filled


def read_hash_grid(library: Library, positions: Tensor, table: Tensor, levels: Sequence[GridLevel]) -> Tensor:
    """``positions [N, D]`` (float32) and ``table [entries, F]`` -> ``[N, levels * F]`` (float32)."""
    positions, table = positions.contiguous(), table.contiguous()
    output = positions.new_empty(len(positions), len(levels) * table.shape[1])
    arguments = describe_hash_grid(positions, table, levels)
    arguments.output = output.data_ptr()
    library.call("hash_grid_forward", arguments, positions.device)
    return output


def differentiate_hash_grid(
    library: Library,
    gradient: Tensor,
    positions: Tensor,
    table: Tensor,
    levels: Sequence[GridLevel],
    need_positions: bool,
    need_table: bool,
) -> tuple[Tensor, Tensor]:
    """Return the gradients to positions and table; what is not needed is empty."""
    positions, table, gradient = positions.contiguous(), table.contiguous(), gradient.contiguous()
    to_positions = torch.empty_like(positions) if need_positions else positions.new_empty(0)
    to_table = torch.zeros_like(table, dtype=torch.float32) if need_table else table.new_empty(0)
    arguments = describe_hash_grid(positions, table, levels)
    arguments.output_gradient = gradient.data_ptr()
    arguments.positions_gradient = to_positions.data_ptr() if need_positions else None
    arguments.table_gradient = to_table.data_ptr() if need_table else None
    library.call("hash_grid_backward", arguments, positions.device)
    return to_positions, to_table.to(table.dtype)


def describe_triplane(planes: Tensor, positions: Tensor, output: Tensor, first: int) -> TriplaneStructure:
    """Fill in what forward and backward pass share; ``output [B, N, *]`` holds this scale from channel ``first`` on."""
    batch, _, height, width, channels = planes.shape
    strides = ("batch_stride", "plane_stride", "row_stride", "column_stride")
    return TriplaneStructure(
        batch=batch,
        points=positions.shape[1],
        channels=channels,
        height=height,
        width=width,
        storage=STORAGE[planes.dtype],
        **dict(zip(strides, planes.stride()[:4], strict=True)),
        output_stride=output.shape[2],
        planes=planes.data_ptr(),
        positions=positions.data_ptr(),
        output=output.data_ptr() + first * output.element_size(),
    )


def store_channels_last(planes: Tensor) -> Tensor:
    """Return ``planes [B, 3, H, W, C]`` in float32 or bfloat16 with channels innermost in memory."""
    if planes.dtype not in (torch.float32, torch.bfloat16):
        planes = planes.float()
    return planes if planes.stride(-1) == 1 else planes.contiguous()


def read_triplanes(library: Library, planes: Sequence[Tensor], positions: Tensor) -> Tensor:
    """``planes`` of ``[B, 3, H, W, C]`` each, ``positions [B, N, 3]`` (float32) -> ``[B, N, sum of C]`` (float32)."""
    positions = positions.contiguous()
    output = positions.new_empty(*positions.shape[:2], sum(scale.shape[-1] for scale in planes))
    first = 0
    for scale in map(store_channels_last, planes):
        arguments = describe_triplane(scale, positions, output, first)
        library.call("triplane_forward", arguments, positions.device)
        first += scale.shape[-1]
    return output


def differentiate_triplanes(
    library: Library,
    gradient: Tensor,
    planes: Sequence[Tensor],
    positions: Tensor,
    need_positions: bool,
    need_planes: bool,
) -> list[Tensor]:
    """Return the gradients to positions and to every scale; what is not needed is empty."""
    positions, gradient = positions.contiguous(), gradient.contiguous()
    to_positions = torch.zeros_like(positions) if need_positions else positions.new_empty(0)
    to_planes = []
    first = 0
    for scale in map(store_channels_last, planes):
        to_scale = positions.new_zeros(scale.shape if need_planes else 0)
        arguments = describe_triplane(scale, positions, gradient, first)
        arguments.output, arguments.output_gradient = None, arguments.output
        arguments.positions_gradient = to_positions.data_ptr() if need_positions else None
        arguments.planes_gradient = to_scale.data_ptr() if need_planes else None
        library.call("triplane_backward", arguments, positions.device)
        to_planes.append(to_scale.to(scale.dtype))
        first += scale.shape[-1]
    return [to_positions, *to_planes]


@torch.library.custom_op(
    "s3dnerf::hash_grid",
    mutates_args=(),
    schema="(Tensor positions, Tensor table, float[] scales, int[] resolutions, int[] entries) -> Tensor",
)
def hash_grid(positions, table, scales, resolutions, entries):
    """Interpolate a hash grid: ``positions [N, D]`` float32, ``table [entries, F]``, lists with a number a level."""
    levels = list_levels(positions.shape[1], scales, resolutions, entries)
    return read_hash_grid(find_library(positions.device.type), positions, table, levels)


@hash_grid.register_fake
def _(positions, table, scales, resolutions, entries):
    return positions.new_empty(positions.shape[0], len(scales) * table.shape[1])


@torch.library.custom_op(
    "s3dnerf::hash_grid_backward",
    mutates_args=(),
    schema="(Tensor gradient, Tensor positions, Tensor table, float[] scales, int[] resolutions, int[] entries, "
    "bool need_positions, bool need_table) -> (Tensor, Tensor)",
)
def hash_grid_backward(gradient, positions, table, scales, resolutions, entries, need_positions, need_table):
    """The gradients of :func:`hash_grid` to positions and table."""
    levels = list_levels(positions.shape[1], scales, resolutions, entries)
    library = find_library(positions.device.type)
    return differentiate_hash_grid(library, gradient, positions, table, levels, need_positions, need_table)


@hash_grid_backward.register_fake
def _(gradient, positions, table, scales, resolutions, entries, need_positions, need_table):
    to_positions = torch.empty_like(positions) if need_positions else positions.new_empty(0)
    return to_positions, torch.empty_like(table) if need_table else table.new_empty(0)


def _save_hash_grid(ctx, inputs, output):
    positions, table, *ctx.levels = inputs
    ctx.save_for_backward(positions, table)


def _differentiate_hash_grid(ctx, gradient):
    need_positions, need_table = ctx.needs_input_grad[:2]
    to_positions, to_table = hash_grid_backward(gradient, *ctx.saved_tensors, *ctx.levels, need_positions, need_table)
    return to_positions if need_positions else None, to_table if need_table else None, None, None, None


hash_grid.register_autograd(_differentiate_hash_grid, setup_context=_save_hash_grid)


@torch.library.custom_op("s3dnerf::triplane", mutates_args=(), schema="(Tensor[] planes, Tensor positions) -> Tensor")
def triplane(planes, positions):
    """Read tri-planes of several scales: each ``[B, 3, H, W, C]``, ``positions [B, N, 3]`` float32."""
    return read_triplanes(find_library(positions.device.type), planes, positions)


@triplane.register_fake
def _(planes, positions):
    return positions.new_empty(*positions.shape[:2], sum(scale.shape[-1] for scale in planes))


@torch.library.custom_op(
    "s3dnerf::triplane_backward",
    mutates_args=(),
    schema="(Tensor gradient, Tensor[] planes, Tensor positions, bool need_positions, bool need_planes) -> Tensor[]",
)
def triplane_backward(gradient, planes, positions, need_positions, need_planes):
    """The gradients of :func:`triplane` to positions, then to every scale."""
    library = find_library(positions.device.type)
    return differentiate_triplanes(library, gradient, planes, positions, need_positions, need_planes)


@triplane_backward.register_fake
def _(gradient, planes, positions, need_positions, need_planes):
    to_planes = [scale.new_empty(scale.shape if need_planes else 0) for scale in planes]
    return [positions.new_empty(positions.shape if need_positions else 0), *to_planes]


def _save_triplane(ctx, inputs, output):
    planes, positions = inputs
    ctx.save_for_backward(positions, *planes)


def _differentiate_triplane(ctx, gradient):
    positions, *planes = ctx.saved_tensors
    need_positions = ctx.needs_input_grad[1]
    need_planes = any(scale.requires_grad for scale in planes)
    to_positions, *to_planes = triplane_backward(gradient, planes, positions, need_positions, need_planes)
    return to_planes if need_planes else [None] * len(planes), to_positions if need_positions else None


triplane.register_autograd(_differentiate_triplane, setup_context=_save_triplane)
