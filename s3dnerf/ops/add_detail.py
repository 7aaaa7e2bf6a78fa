"""Enlarged frames with the detail of a photograph, as bytes, in one operator.

The CPU kernel serves rendering. It computes in one pass what otherwise takes two dozen passes over images of a few
megabytes, see ``s3dnerf.rendering.photo_detail``.
"""

from __future__ import annotations

import ctypes
from ctypes import c_int32, c_int64
from ctypes import c_void_p as pointer

import torch
from torch import Tensor

from s3dnerf.ops.backend import Library, find_library
from s3dnerf.ops.layout import needs_grad, runs_on_pytorch
from s3dnerf.ops.library import define_operator

DETAIL_SCALE = 16384
"""Stored detail of 1, ``S3D_DETAIL_SCALE`` of ``cuda_ext/include/s3d.h``."""


def has_kernel(image: Tensor, *others: Tensor) -> bool:
    """Tell whether :func:`add_detail` runs for these tensors: without gradients, in float32, on the CPU."""
    tensors = (image, *others)
    single = all(part.dtype == torch.float32 for part in tensors)
    return single and not needs_grad(*tensors) and not runs_on_pytorch("add_detail", *tensors)


def pack_detail(detail: Tensor) -> Tensor:
    """Store ``detail [1, 3, N, N]`` in [-2, 2) as ``int16 [N, N, 4]``, in which the colors of a pixel lie together."""
    limit = torch.iinfo(torch.int16)
    stored = (DETAIL_SCALE * detail[0]).round().clamp(limit.min, limit.max).to(torch.int16)
    packed = stored.new_zeros(*stored.shape[1:], 4)
    packed[..., :3] = stored.permute(1, 2, 0)
    return packed


class S3dAddDetail(ctypes.Structure):
    """Mirror of ``S3dAddDetail``."""

    _fields_ = (
        ("batch", c_int64),
        *((name, c_int32) for name in ("channels", "size", "flow_size", "side")),
        ("flow_stride", c_int64),
        *((name, pointer) for name in ("image", "shares", "flow", "moving", "still", "output")),
    )


ARGUMENTS = S3dAddDetail


def launch_forward(
    library: Library, image: Tensor, shares: Tensor, flow: Tensor, moving: Tensor, still: Tensor
) -> Tensor:
    """Enlarge frames and add detail; CPU kernels only.

    Args:
        library: the library of kernels.
        image: ``[B, C, S, S]`` frames in [0, 1]; three colors, or also opacity.
        shares: ``[B, 2, S, S]`` of the detail that moves, and of that which stays in place.
        flow: ``[B, 2, n, n]`` position in the photograph of the content of a pixel, minus its own (image coordinates).
        moving: ``int16 [N, N, 4]`` detail that moves, from :func:`pack_detail`.
        still: ``int16 [N, N, 4]`` detail that stays in place.

    Returns:
        ``uint8 [B, N, N, C]``.
    """
    batch, channels, size, _ = image.shape
    side, flow_size = len(moving), flow.shape[-1]
    # The flow is a channel of a larger image. It is read in place.
    flow = flow if flow.stride()[1:] == (flow_size * flow_size, flow_size, 1) else flow.contiguous()
    image, shares, moving, still = (part.contiguous() for part in (image, shares, moving, still))
    output = image.new_empty(batch, side, side, channels, dtype=torch.uint8)
    arguments = S3dAddDetail(
        batch=batch,
        channels=channels,
        size=size,
        flow_size=flow_size,
        side=side,
        flow_stride=flow.stride(0) if len(flow) > 1 else 0,
        image=image.data_ptr(),
        shares=shares.data_ptr(),
        flow=flow.data_ptr(),
        moving=moving.data_ptr(),
        still=still.data_ptr(),
        output=output.data_ptr(),
    )
    library.call("add_detail_forward", arguments, image.device)
    return output


@define_operator("add_detail", "(Tensor image, Tensor shares, Tensor flow, Tensor moving, Tensor still) -> Tensor")
def add_detail(image, shares, flow, moving, still):
    """Return the frames, see :func:`launch_forward`."""
    return launch_forward(find_library(image.device.type), image, shares, flow, moving, still)


@add_detail.register_fake
def _(image, shares, flow, moving, still):
    side = moving.shape[0]
    return image.new_empty(image.shape[0], side, side, image.shape[1], dtype=torch.uint8)
