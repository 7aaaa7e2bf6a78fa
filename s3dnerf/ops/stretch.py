"""The deformed lattice: offsets and ambient coordinates, with the stretch of the deformation added to the first one.

The CPU kernel serves rendering, where no gradients are needed.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import c_int32, c_int64
from ctypes import c_void_p as pointer

import torch
from torch import Tensor

from s3dnerf.ops.backend import Library, find_library
from s3dnerf.ops.layout import needs_grad, runs_on_pytorch
from s3dnerf.ops.library import define_operator

LEAST, MOST = -1.0, 1.5
"""Range of the stretch."""


def add_stretch(offsets: Tensor, ambient: Tensor, heights: Tensor, size: Sequence[int]) -> Tensor:
    """Measure how much a deformation shrinks vertical distances, and add it to the first ambient coordinate.

    Args:
        offsets: ``[B, points, 3]`` on the lattice, x fastest, then y, then z. The stretch gives them no gradient.
        ambient: ``[B, points, A]``.
        heights: ``[size of y]`` heights of the points, uneven, at least two.
        size: points along x, y and z.

    Returns:
        ``[B, points, 3 + A]``: offsets and ambient coordinates. The stretch is 0 for a translation and 1 where a whole
        interval deforms to one height.
    """
    tensors = (offsets, ambient, heights)
    single = all(part.dtype == torch.float32 for part in tensors)
    if not single or needs_grad(*tensors) or runs_on_pytorch("stretch", *tensors):
        return add_stretch_reference(offsets, ambient, heights, size)
    return stretch(offsets, ambient, heights, list(size))


def add_stretch_reference(offsets: Tensor, ambient: Tensor, heights: Tensor, size: Sequence[int]) -> Tensor:
    """Reference implementation of :func:`add_stretch`; differentiable."""
    up = offsets.detach()[..., 1].unflatten(1, tuple(size[::-1]))
    (slope,) = torch.gradient(up, spacing=(heights,), dim=2)
    stretched = ambient[..., :1] - slope.flatten(1)[..., None].clamp(-MOST, -LEAST)
    return torch.cat([offsets, stretched, ambient[..., 1:]], dim=-1)


class S3dStretch(ctypes.Structure):
    """Mirror of ``S3dStretch``."""

    _fields_ = (
        ("batch", c_int64),
        ("size", c_int32 * 3),
        ("ambient", c_int32),
        *((name, c_int64) for name in ("offsets_stride", "ambient_stride")),
        *((name, pointer) for name in ("offsets", "ambient_values", "heights", "output")),
    )


ARGUMENTS = S3dStretch


def launch_forward(library: Library, offsets: Tensor, ambient: Tensor, heights: Tensor, size: Sequence[int]) -> Tensor:
    """Return the lattice ``[B, points, 3 + A]``; CPU kernels only."""
    # Both may be columns of the network's output, which are read in place.
    offsets, ambient = (part if is_dense(part) else part.contiguous() for part in (offsets, ambient))
    heights = heights.contiguous()
    output = offsets.new_empty(*offsets.shape[:2], 3 + ambient.shape[2])
    arguments = S3dStretch(
        batch=len(offsets),
        size=tuple(size),
        ambient=ambient.shape[2],
        offsets_stride=offsets.stride(1),
        ambient_stride=ambient.stride(1),
        offsets=offsets.data_ptr(),
        ambient_values=ambient.data_ptr(),
        heights=heights.data_ptr(),
        output=output.data_ptr(),
    )
    library.call("stretch_forward", arguments, offsets.device)
    return output


def is_dense(part: Tensor) -> bool:
    """Tell whether the rows of ``[B, points, C]`` are evenly spaced and their values adjacent."""
    return part.stride(2) == 1 and part.stride(0) == part.shape[1] * part.stride(1)


@define_operator(
    "stretch",
    "(Tensor offsets, Tensor ambient, Tensor heights, int[] size) -> Tensor",
)
def stretch(offsets, ambient, heights, size):
    """Return the lattice, see :func:`launch_forward`."""
    return launch_forward(find_library(offsets.device.type), offsets, ambient, heights, size)


@stretch.register_fake
def _(offsets, ambient, heights, size):
    return offsets.new_empty(*offsets.shape[:2], 3 + ambient.shape[2])
