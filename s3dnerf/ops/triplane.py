"""Tri-planes: a feature volume stored as three planes (Chan et al., 2022)."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import c_int32, c_int64
from ctypes import c_void_p as pointer

import torch
from torch import Tensor
from torch.nn import functional as F

from s3dnerf.ops.backend import Library, find_library
from s3dnerf.ops.layout import PLANE_AXES, STORAGE, runs_on_pytorch
from s3dnerf.ops.library import define_operator


def sample_triplane(planes: Tensor, positions: Tensor) -> Tensor:
    """Sample a tri-plane bilinearly and average over its planes.

    Args:
        planes: ``[B, 3, C, H, W]``, in the order of :data:`s3dnerf.ops.layout.PLANE_AXES`; y runs from top to bottom as
            in images. Fastest in channels-last memory format, in float32 or bfloat16.
        positions: ``[B, N, 3]`` in [-1, 1]; pixel centers as in ``grid_sample(align_corners=False)``. Positions outside
            read the border.

    Returns:
        ``[B, N, C]``, float32 (float64 for planes in float64). Differentiable in both arguments.
    """
    return sample_triplanes([planes], positions)


def sample_triplanes(planes: Sequence[Tensor], positions: Tensor) -> Tensor:
    """Sample tri-planes of several scales at the same ``positions``, as :func:`sample_triplane` does.

    Returns:
        ``[B, N, sum of C]``, in the order of ``planes``.
    """
    if runs_on_pytorch("triplane", positions, *planes):
        return torch.cat([sample_triplane_reference(scale, positions) for scale in planes], dim=-1)
    # Planes from a channels-last convolution already have their channels innermost.
    return triplane([scale.permute(0, 1, 3, 4, 2) for scale in planes], positions.float())


def sample_triplane_reference(planes: Tensor, positions: Tensor) -> Tensor:
    """Reference implementation of :func:`sample_triplane`: any precision and device, differentiable twice."""
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


class S3dTriplane(ctypes.Structure):
    """Mirror of ``S3dTriplane``."""

    _fields_ = (
        *((name, c_int64) for name in ("batch", "points")),
        *((name, c_int32) for name in ("channels", "height", "width", "storage")),
        *((name, c_int64) for name in ("batch_stride", "plane_stride", "row_stride", "column_stride")),
        ("output_stride", c_int64),
        *((name, pointer) for name in ("planes", "positions", "output")),
        *((name, pointer) for name in ("output_gradient", "planes_gradient", "positions_gradient")),
    )


ARGUMENTS = S3dTriplane


def make_arguments(planes: Tensor, positions: Tensor, output: Tensor, first: int) -> S3dTriplane:
    """Fill in what forward and backward pass share; this scale starts at channel ``first`` of ``output [B, N, *]``."""
    batch, _, height, width, channels = planes.shape
    strides = ("batch_stride", "plane_stride", "row_stride", "column_stride")
    return S3dTriplane(
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


def launch_forward(library: Library, planes: Sequence[Tensor], positions: Tensor) -> Tensor:
    """``planes`` of ``[B, 3, H, W, C]`` each, ``positions [B, N, 3]`` (float32) -> ``[B, N, sum of C]`` (float32)."""
    positions = positions.contiguous()
    output = positions.new_empty(*positions.shape[:2], sum(scale.shape[-1] for scale in planes))
    first = 0
    for scale in map(store_channels_last, planes):
        arguments = make_arguments(scale, positions, output, first)
        library.call("triplane_forward", arguments, positions.device)
        first += scale.shape[-1]
    return output


def launch_backward(
    library: Library,
    gradient: Tensor,
    planes: Sequence[Tensor],
    positions: Tensor,
    need_positions: bool,
    need_planes: bool,
) -> list[Tensor]:
    """Return the gradients with respect to positions and to every scale; one that is not needed is empty."""
    positions, gradient = positions.contiguous(), gradient.contiguous()
    to_positions = torch.zeros_like(positions) if need_positions else positions.new_empty(0)
    to_planes = []
    first = 0
    for scale in map(store_channels_last, planes):
        to_scale = positions.new_zeros(scale.shape if need_planes else 0)
        arguments = make_arguments(scale, positions, gradient, first)
        arguments.output, arguments.output_gradient = None, arguments.output
        arguments.positions_gradient = to_positions.data_ptr() if need_positions else None
        arguments.planes_gradient = to_scale.data_ptr() if need_planes else None
        library.call("triplane_backward", arguments, positions.device)
        to_planes.append(to_scale.to(scale.dtype))
        first += scale.shape[-1]
    return [to_positions, *to_planes]


@define_operator("triplane", "(Tensor[] planes, Tensor positions) -> Tensor")
def triplane(planes, positions):
    """Sample tri-planes of several scales: each ``[B, 3, H, W, C]``, ``positions [B, N, 3]`` float32."""
    return launch_forward(find_library(positions.device.type), planes, positions)


@triplane.register_fake
def _(planes, positions):
    return positions.new_empty(*positions.shape[:2], sum(scale.shape[-1] for scale in planes))


@define_operator(
    "triplane_backward",
    "(Tensor gradient, Tensor[] planes, Tensor positions, bool need_positions, bool need_planes) -> Tensor[]",
)
def triplane_backward(gradient, planes, positions, need_positions, need_planes):
    """Return the gradients of :func:`triplane` with respect to positions, then to every scale."""
    library = find_library(positions.device.type)
    return launch_backward(library, gradient, planes, positions, need_positions, need_planes)


@triplane_backward.register_fake
def _(gradient, planes, positions, need_positions, need_planes):
    to_planes = [scale.new_empty(scale.shape if need_planes else 0) for scale in planes]
    return [positions.new_empty(positions.shape if need_positions else 0), *to_planes]


def _setup_context(ctx, inputs, output):
    planes, positions = inputs
    ctx.save_for_backward(positions, *planes)


def _backward(ctx, gradient):
    positions, *planes = ctx.saved_tensors
    need_positions = ctx.needs_input_grad[1]
    need_planes = any(scale.requires_grad for scale in planes)
    to_positions, *to_planes = triplane_backward(gradient, planes, positions, need_positions, need_planes)
    return to_planes if need_planes else [None] * len(planes), to_positions if need_positions else None


triplane.register_autograd(_backward, setup_context=_setup_context)
