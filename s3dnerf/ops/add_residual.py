"""Addition of the super-resolution residual to the warped source, which keeps the source's own detail.

A network that cannot know where every hair and pore will be minimizes its error by blurring them. Where the warped
source is right otherwise, viewers prefer its own detail. The CPU kernel serves rendering, which needs no gradients.
"""

from __future__ import annotations

import ctypes
from ctypes import c_float, c_int32, c_int64
from ctypes import c_void_p as pointer

import torch
from torch import Tensor
from torch.nn import functional as F

from s3dnerf.ops.backend import Library, find_library
from s3dnerf.ops.image import upsample
from s3dnerf.ops.layout import STORAGE, needs_grad, runs_on_pytorch
from s3dnerf.ops.library import define_operator

DETAIL_THRESHOLD = 0.1
"""Mean residual of four by four pixels at which the source's detail is kept to ``1 / e``."""


def add_residual_to_source(warped: Tensor, residual: Tensor, detail_scale: float) -> Tensor:
    """Add a residual to the warped source, but keep the source's detail where the residual is small on average.

    Args:
        warped: ``[B, 3, 2h, 2w]``.
        residual: ``[B, 12, h, w]``, pixel-shuffled: two by two pixels of each color in turn.
        detail_scale: fraction of the residual's detail that is removed there, in [0, 1].

    Returns:
        ``[B, 3, 2h, 2w]``, float32 (float64 if an argument is).
    """
    even = not any(side % 2 for side in residual.shape[2:])
    supported = even and warped.dtype == torch.float32 and residual.dtype in (torch.float32, torch.bfloat16)
    if needs_grad(warped, residual) or not supported or runs_on_pytorch("add_residual", warped):
        return add_residual_reference(warped, residual, detail_scale)
    return add_residual(warped, residual.permute(0, 2, 3, 1), detail_scale)


def add_residual_reference(warped: Tensor, residual: Tensor, detail_scale: float) -> Tensor:
    """Reference implementation of :func:`add_residual_to_source`; differentiable."""
    # Autocast chooses a type for each of these operators by itself, and they must agree.
    residual = residual.to(torch.promote_types(residual.dtype, torch.float32))
    pixels = F.pixel_shuffle(residual, 2)
    if detail_scale > 0.0:
        smooth = residual.unflatten(1, (3, 4)).mean(dim=2)
        size = F.avg_pool2d(smooth, 2).abs().mean(dim=1, keepdim=True)
        agreement = upsample(torch.exp(-(size / DETAIL_THRESHOLD).square()), 4)
        pixels = pixels.lerp(upsample(smooth, 2), detail_scale * agreement)
    return warped + pixels


class S3dAddResidual(ctypes.Structure):
    """Mirror of ``S3dAddResidual``."""

    _fields_ = (
        ("batch", c_int64),
        *((name, c_int32) for name in ("height", "width", "storage")),
        *((name, c_float) for name in ("detail_scale", "detail_threshold")),
        *((name, pointer) for name in ("residual", "warped", "image")),
    )


ARGUMENTS = S3dAddResidual


def launch_forward(library: Library, warped: Tensor, residual: Tensor, detail_scale: float) -> Tensor:
    """Add ``residual [B, h, w, 12]`` (float32 or bfloat16) to ``warped [B, 3, 2h, 2w]``; CPU kernels only."""
    warped, residual = warped.contiguous(), residual.contiguous()
    image = torch.empty_like(warped)
    arguments = S3dAddResidual(
        batch=residual.shape[0],
        height=residual.shape[1],
        width=residual.shape[2],
        storage=STORAGE[residual.dtype],
        detail_scale=detail_scale,
        detail_threshold=DETAIL_THRESHOLD,
        residual=residual.data_ptr(),
        warped=warped.data_ptr(),
        image=image.data_ptr(),
    )
    library.call("add_residual_forward", arguments, warped.device)
    return image


@define_operator("add_residual", "(Tensor warped, Tensor residual, float detail_scale) -> Tensor")
def add_residual(warped, residual, detail_scale):
    """Return the sum, see :func:`launch_forward`."""
    return launch_forward(find_library(warped.device.type), warped, residual, detail_scale)


@add_residual.register_fake
def _(warped, residual, detail_scale):
    return warped.new_empty(warped.shape)
