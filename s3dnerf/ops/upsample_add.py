"""Bilinear upsampling by two and addition in one pass.

The CPU kernel serves rendering, where no gradients are needed.
"""

from __future__ import annotations

import ctypes
from ctypes import c_int32, c_int64
from ctypes import c_void_p as pointer

import torch
from torch import Tensor

from s3dnerf.ops.backend import Library, find_library
from s3dnerf.ops.image import upsample
from s3dnerf.ops.layout import STORAGE, needs_grad, runs_on_pytorch
from s3dnerf.ops.library import define_operator


def add_upsampled(coarse: Tensor, fine: Tensor) -> Tensor:
    """Upsample ``coarse [B, C, h, w]`` by two and add ``fine [B, C, 2h, 2w]``; fastest in channels-last format."""
    supported = coarse.dtype == fine.dtype and fine.dtype in (torch.float32, torch.bfloat16)
    if needs_grad(coarse, fine) or not supported or runs_on_pytorch("upsample_add", fine):
        return add_upsampled_reference(coarse, fine)
    return upsample_add(*(part.permute(0, 2, 3, 1) for part in (coarse, fine))).permute(0, 3, 1, 2)


def add_upsampled_reference(coarse: Tensor, fine: Tensor) -> Tensor:
    """Reference implementation of :func:`add_upsampled`; differentiable."""
    return fine + upsample(coarse, 2)


class S3dUpsampleAdd(ctypes.Structure):
    """Mirror of ``S3dUpsampleAdd``."""

    _fields_ = (
        ("batch", c_int64),
        *((name, c_int32) for name in ("height", "width", "channels", "storage")),
        *((name, pointer) for name in ("coarse", "addend", "output")),
    )


ARGUMENTS = S3dUpsampleAdd


def launch_forward(library: Library, coarse: Tensor, fine: Tensor) -> Tensor:
    """Add ``coarse [B, h, w, C]`` to ``fine [B, 2h, 2w, C]``, both float32 or bfloat16; CPU kernels only."""
    coarse, fine = coarse.contiguous(), fine.contiguous()
    output = torch.empty_like(fine)
    batch, height, width, channels = coarse.shape
    arguments = S3dUpsampleAdd(
        batch=batch,
        height=height,
        width=width,
        channels=channels,
        storage=STORAGE[coarse.dtype],
        coarse=coarse.data_ptr(),
        addend=fine.data_ptr(),
        output=output.data_ptr(),
    )
    library.call("upsample_add_forward", arguments, fine.device)
    return output


@define_operator("upsample_add", "(Tensor coarse, Tensor fine) -> Tensor")
def upsample_add(coarse, fine):
    """Return the sum, see :func:`launch_forward`."""
    return launch_forward(find_library(fine.device.type), coarse, fine)


@upsample_add.register_fake
def _(coarse, fine):
    return fine.new_empty(fine.shape)
