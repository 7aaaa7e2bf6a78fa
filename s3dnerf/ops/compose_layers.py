"""Rendered rays as images: the whole frame, the same with the foveated rays, both over the hair layer.

The CPU kernel serves rendering, where no gradients are needed. It computes in one operator what otherwise takes three
dozen passes over images of a few megabytes.
"""

from __future__ import annotations

import ctypes
from ctypes import c_int32, c_int64
from ctypes import c_void_p as pointer
from typing import NamedTuple

import torch
from torch import Tensor

from s3dnerf.ops.backend import Library, find_library
from s3dnerf.ops.layout import needs_grad, runs_on_pytorch
from s3dnerf.ops.library import define_operator

COLORS = 3


class RenderedImages(NamedTuple):
    """Colors, features, opacity and flow of each pixel."""

    coarse: Tensor
    """``[B, C + 3, n, n]``."""
    fine: Tensor
    """``[B, C + 3, 2n, 2n]``: the same upsampled, with the foveated rays blended over it."""


def has_kernel(values: Tensor, *others: Tensor) -> bool:
    """Tell whether :func:`compose_layers` runs for these tensors: without gradients, in float32, on the CPU."""
    tensors = (values, *others)
    single = all(part.dtype == torch.float32 for part in tensors)
    return single and not needs_grad(*tensors) and not runs_on_pytorch("compose_layers", *tensors)


class S3dComposeLayers(ctypes.Structure):
    """Mirror of ``S3dComposeLayers``."""

    _fields_ = (
        *((name, c_int64) for name in ("batch", "foveated")),
        *((name, c_int32) for name in ("size", "channels")),
        *((name, c_int64) for name in ("image_stride", "hair_stride")),
        *((name, pointer) for name in ("values", "alpha", "cells", "opacity", "image", "hair", "plane")),
        *((name, pointer) for name in ("coarse", "fine")),
    )


ARGUMENTS = S3dComposeLayers


def launch_forward(
    library: Library,
    values: Tensor,
    alpha: Tensor,
    cells: Tensor,
    opacity: Tensor,
    image: Tensor,
    hair: Tensor,
    plane: Tensor,
) -> RenderedImages:
    """Compose the images; CPU kernels only.

    Args:
        library: the library of kernels.
        values: ``[B, R, C + 2]`` colors, features and position in the source of each ray: those of the whole frame, row
            by row, and the foveated ones.
        alpha: ``[B, R]`` opacity.
        cells: ``[B, N]`` pixels of the fine image that the foveated rays belong to.
        opacity: ``[B, N]`` their weights.
        image: ``[B or 1, 3, 2n, 2n]`` sources.
        hair: ``[B or 1, 1, 2n, 2n]`` masks of the hair.
        plane: ``[B, 3, 2]`` flow of the hair at (0, 0), its change along u, and along v (image coordinates).
    """
    values, alpha, cells, opacity, plane = (part.contiguous() for part in (values, alpha, cells, opacity, plane))
    image, hair = image.contiguous(), hair.contiguous()
    batch, _, channels = values.shape
    side = image.shape[-1]
    coarse = values.new_empty(batch, channels + 1, side // 2, side // 2)
    fine = values.new_empty(batch, channels + 1, side, side)
    arguments = S3dComposeLayers(
        batch=batch,
        foveated=cells.shape[1],
        size=side // 2,
        channels=channels - 2,
        image_stride=image.stride(0) if len(image) > 1 else 0,
        hair_stride=hair.stride(0) if len(hair) > 1 else 0,
        values=values.data_ptr(),
        alpha=alpha.data_ptr(),
        cells=cells.data_ptr(),
        opacity=opacity.data_ptr(),
        image=image.data_ptr(),
        hair=hair.data_ptr(),
        plane=plane.data_ptr(),
        coarse=coarse.data_ptr(),
        fine=fine.data_ptr(),
    )
    library.call("compose_layers_forward", arguments, values.device)
    return RenderedImages(coarse, fine)


@define_operator(
    "compose_layers",
    "(Tensor values, Tensor alpha, Tensor cells, Tensor opacity, Tensor image, Tensor hair, Tensor plane) "
    "-> (Tensor, Tensor)",
)
def compose_layers(values, alpha, cells, opacity, image, hair, plane):
    """Return both images, see :func:`launch_forward`."""
    return launch_forward(find_library(values.device.type), values, alpha, cells, opacity, image, hair, plane)


@compose_layers.register_fake
def _(values, alpha, cells, opacity, image, hair, plane):
    batch, _, channels = values.shape
    side = image.shape[-1]
    return values.new_empty(batch, channels + 1, side // 2, side // 2), values.new_empty(
        batch, channels + 1, side, side
    )
