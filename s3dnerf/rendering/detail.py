"""The photograph's own detail, kept where little else is changed.

A network that cannot know where exactly each hair and pore will be does best, on average, to blur them. Where the
photograph is right but for that, a viewer likes its own detail better. Rendering needs no gradients, and there our CPU
kernel does all of it in one pass. Elsewhere this runs on PyTorch's operators, which are its specification.
"""

from __future__ import annotations

import ctypes
from ctypes import c_float, c_int32, c_int64
from ctypes import c_void_p as pointer

import torch
from torch import Tensor
from torch.nn import functional as F

from s3dnerf.backend import Library, choose_backend, find_library
from s3dnerf.encoding.operators import STORAGE
from s3dnerf.rendering.photograph import enlarge

AGREEMENT = 0.1
"""Mean change of four by four pixels at which the photograph counts for a third as right, detail and all."""


def change_photograph(warped: Tensor, change: Tensor, share: float) -> Tensor:
    """Change a warped photograph, but leave it its detail where the change is small otherwise.

    Args:
        warped: ``[B, 3, 2h, 2w]``.
        change: ``[B, 12, h, w]`` what is added to it, two by two pixels in turn of each color.
        share: how much of the change's detail is taken out there, in [0, 1].

    Returns:
        ``[B, 3, 2h, 2w]``, float32 (float64 if an argument is).
    """
    given = (warped, change)
    device = warped.device.type
    learns = torch.is_grad_enabled() and any(part.requires_grad for part in given)
    even = not any(side % 2 for side in change.shape[2:])
    usual = even and warped.dtype == torch.float32 and change.dtype in (torch.float32, torch.bfloat16)
    if learns or not usual or choose_backend("detail", device) == "pytorch":
        return change_photograph_reference(warped, change, share)
    return detail(warped, change.permute(0, 2, 3, 1), share)


def change_photograph_reference(warped: Tensor, change: Tensor, share: float) -> Tensor:
    """The twin of :func:`change_photograph`, on PyTorch's operators; differentiable."""
    # Mixed precision chooses for each of these operators by itself, and they must agree.
    change = change.to(torch.promote_types(change.dtype, torch.float32))
    pixels = F.pixel_shuffle(change, 2)
    if share > 0.0:
        smooth = change.unflatten(1, (3, 4)).mean(dim=2)
        size = F.avg_pool2d(smooth, 2).abs().mean(dim=1, keepdim=True)
        agreement = enlarge(torch.exp(-(size / AGREEMENT).square()), 4)
        pixels = pixels.lerp(enlarge(smooth, 2), share * agreement)
    return warped + pixels


class DetailStructure(ctypes.Structure):
    """S3dDetail."""

    _fields_ = (
        ("batch", c_int64),
        *((name, c_int32) for name in ("height", "width", "storage")),
        *((name, c_float) for name in ("share", "agreement")),
        *((name, pointer) for name in ("change", "warped", "image")),
    )


def run_detail(library: Library, warped: Tensor, change: Tensor, share: float) -> Tensor:
    """Change ``warped [B, 3, 2h, 2w]`` by ``change [B, h, w, 12]`` (float32 or bfloat16); CPU kernels only."""
    warped, change = warped.contiguous(), change.contiguous()
    image = torch.empty_like(warped)
    arguments = DetailStructure(
        batch=change.shape[0],
        height=change.shape[1],
        width=change.shape[2],
        storage=STORAGE[change.dtype],
        share=share,
        agreement=AGREEMENT,
        change=change.data_ptr(),
        warped=warped.data_ptr(),
        image=image.data_ptr(),
    )
    library.call("detail_forward", arguments, warped.device)
    return image


@torch.library.custom_op(
    "s3dnerf::detail", mutates_args=(), schema="(Tensor warped, Tensor change, float share) -> Tensor"
)
def detail(warped, change, share):
    """The changed photograph, :func:`run_detail`."""
    return run_detail(find_library(warped.device.type), warped, change, share)


@detail.register_fake
def _(warped, change, share):
    return warped.new_empty(warped.shape)
