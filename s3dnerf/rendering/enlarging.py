"""Coarse feature maps, enlarged onto finer ones, in one operator.

Rendering needs no gradients, and there our CPU kernel enlarges and adds in one pass. Elsewhere this runs on PyTorch's
operators, which are its specification.
"""

from __future__ import annotations

import ctypes
from ctypes import c_int32, c_int64
from ctypes import c_void_p as pointer

import torch
from torch import Tensor

from s3dnerf.backend import Library, choose_backend, find_library
from s3dnerf.encoding.operators import STORAGE
from s3dnerf.rendering.photograph import enlarge


def enlarge_onto(coarse: Tensor, fine: Tensor) -> Tensor:
    """Add ``coarse [B, C, h, w]``, enlarged twice, to ``fine [B, C, 2h, 2w]``; fastest when channels-last."""
    given = (coarse, fine)
    learns = torch.is_grad_enabled() and any(part.requires_grad for part in given)
    usual = coarse.dtype == fine.dtype and fine.dtype in (torch.float32, torch.bfloat16)
    if learns or not usual or choose_backend("enlarging", fine.device.type) == "pytorch":
        return fine + enlarge(coarse, 2)
    return enlarging(*(part.permute(0, 2, 3, 1) for part in given)).permute(0, 3, 1, 2)


class EnlargingStructure(ctypes.Structure):
    """S3dEnlarging."""

    _fields_ = (
        ("batch", c_int64),
        *((name, c_int32) for name in ("height", "width", "channels", "storage")),
        *((name, pointer) for name in ("coarse", "addend", "output")),
    )


def run_enlarging(library: Library, coarse: Tensor, fine: Tensor) -> Tensor:
    """Add ``coarse [B, h, w, C]`` to ``fine [B, 2h, 2w, C]``, both float32 or bfloat16; CPU kernels only."""
    coarse, fine = coarse.contiguous(), fine.contiguous()
    output = torch.empty_like(fine)
    batch, height, width, channels = coarse.shape
    arguments = EnlargingStructure(
        batch=batch,
        height=height,
        width=width,
        channels=channels,
        storage=STORAGE[coarse.dtype],
        coarse=coarse.data_ptr(),
        addend=fine.data_ptr(),
        output=output.data_ptr(),
    )
    library.call("enlarging_forward", arguments, fine.device)
    return output


@torch.library.custom_op("s3dnerf::enlarging", mutates_args=(), schema="(Tensor coarse, Tensor fine) -> Tensor")
def enlarging(coarse, fine):
    """The sum, :func:`run_enlarging`."""
    return run_enlarging(find_library(fine.device.type), coarse, fine)


@enlarging.register_fake
def _(coarse, fine):
    return fine.new_empty(fine.shape)
