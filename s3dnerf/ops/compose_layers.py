"""Rendered rays as images: the whole frame, the same with the foveated rays, both over the person layer.

The CPU kernel serves rendering, where no gradients are needed. It computes in one operator what otherwise takes three
dozen passes over images of a few megabytes.
"""

from __future__ import annotations

import ctypes
from ctypes import c_float, c_int32, c_int64
from ctypes import c_void_p as pointer
from typing import NamedTuple

import torch
from torch import Tensor

from s3dnerf.ops.backend import Library, find_library
from s3dnerf.ops.layout import needs_grad, runs_on_pytorch
from s3dnerf.ops.library import define_operator

COLORS = 3
HEAD_FROM = (-0.9, -0.3)
"""Heights over which the body gives way to the head, head units, see ``s3dnerf.rendering.person_layer``."""


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
        *((name, c_int64) for name in ("image_stride", "person_stride")),
        *((name, c_float) for name in ("head_low", "head_high")),
        *((name, pointer) for name in ("values", "alpha", "cells", "opacity", "image", "person", "plane", "body")),
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
    person: Tensor,
    plane: Tensor,
    body: Tensor,
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
        person: ``[B or 1, 1, 2n, 2n]`` their coverage by the person.
        plane: ``[B, 3, 3]`` and
        body: ``[B, 2]``, see :class:`s3dnerf.rendering.person_layer.LayerMotion`.
    """
    values, alpha, cells, opacity = (part.contiguous() for part in (values, alpha, cells, opacity))
    image, person, plane, body = (part.contiguous() for part in (image, person, plane, body))
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
        person_stride=person.stride(0) if len(person) > 1 else 0,
        head_low=HEAD_FROM[0],
        head_high=HEAD_FROM[1],
        values=values.data_ptr(),
        alpha=alpha.data_ptr(),
        cells=cells.data_ptr(),
        opacity=opacity.data_ptr(),
        image=image.data_ptr(),
        person=person.data_ptr(),
        plane=plane.data_ptr(),
        body=body.data_ptr(),
        coarse=coarse.data_ptr(),
        fine=fine.data_ptr(),
    )
    library.call("compose_layers_forward", arguments, values.device)
    return RenderedImages(coarse, fine)


@define_operator(
    "compose_layers",
    "(Tensor values, Tensor alpha, Tensor cells, Tensor opacity, Tensor image, Tensor person, Tensor plane, "
    "Tensor body) -> (Tensor, Tensor)",
)
def compose_layers(values, alpha, cells, opacity, image, person, plane, body):
    """Return both images, see :func:`launch_forward`."""
    return launch_forward(find_library(values.device.type), values, alpha, cells, opacity, image, person, plane, body)


@compose_layers.register_fake
def _(values, alpha, cells, opacity, image, person, plane, body):
    batch, _, channels = values.shape
    side = image.shape[-1]
    return values.new_empty(batch, channels + 1, side // 2, side // 2), values.new_empty(
        batch, channels + 1, side, side
    )
