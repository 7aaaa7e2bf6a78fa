"""The photograph, warped to a frame: what super-resolution reads, in one operator.

Rendering needs no gradients, and there our CPU kernel warps the photograph and its features, puts them beside what was
rendered and rounds them, in one pass. Elsewhere this runs on PyTorch's operators, which are its specification.
"""

from __future__ import annotations

import ctypes
from ctypes import c_int32, c_int64
from ctypes import c_void_p as pointer
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from s3dnerf.backend import Library, choose_backend, find_library
from s3dnerf.encoding.operators import STORAGE
from s3dnerf.rendering.rays import make_pixel_grid

MAX_INPUTS = 512
"""Most channels that the kernel puts side by side."""


def warp_photograph(image: Tensor, detail: Tensor, fine: Tensor) -> tuple[Tensor, Tensor]:
    """Warp a photograph and its features by the flow that rays saw.

    Args:
        image: ``[B, 3, H, W]``; nothing is copied if it is expanded to the batch.
        detail: ``[B, D, h, w]`` its features, fastest when channels-last; expanded likewise.
        fine: ``[B, C + 2, n, m]`` what was rendered; the last two channels are the flow (image coordinates, relative).

    Returns:
        The warped photograph ``[B, 3, 2n, 2m]``, and ``[B, 12 + D + C, n, m]``: its pixels two by two, the warped
        features and what was rendered, channels-last; in bfloat16 under autocast to it, where no gradients are wanted.
    """
    device = fine.device.type
    given = (image, detail, fine)
    learns = torch.is_grad_enabled() and any(part.requires_grad for part in given)
    if learns or not _fits(*given) or choose_backend("photograph", device) == "pytorch":
        return warp_photograph_reference(*given)
    narrow = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.bfloat16
    warped, inputs = photograph(*(part[:1] if part.stride(0) == 0 else part for part in (image, detail)), fine, narrow)
    return warped, inputs.permute(0, 3, 1, 2)


def warp_photograph_reference(image: Tensor, detail: Tensor, fine: Tensor) -> tuple[Tensor, Tensor]:
    """The twin of :func:`warp_photograph`, on PyTorch's operators; differentiable."""
    flow = fine[:, -2:]
    # Bilinear reading averages neighboring pixels, which blurs what the portrait shows sharp.
    warped = warp(image, enlarge(flow, 2), "bicubic")
    inputs = torch.cat([F.pixel_unshuffle(warped, 2), warp(detail, flow), fine[:, :-2]], dim=1)
    return warped, inputs.contiguous(memory_format=torch.channels_last)


def warp(image: Tensor, flow: Tensor, mode: Literal["bilinear", "bicubic"] = "bilinear") -> Tensor:
    """Read ``image [B, C, H, W]`` where ``flow [B, 2, H, W]`` (image coordinates, relative) points."""
    dtype = torch.promote_types(image.dtype, torch.float32)
    grid = make_pixel_grid(*flow.shape[-2:], device=flow.device).to(dtype) + flow.permute(0, 2, 3, 1).to(dtype)
    return F.grid_sample(image.to(dtype), grid, mode, padding_mode="border", align_corners=False)


def enlarge(x: Tensor, factor: int) -> Tensor:
    """Enlarge ``[B, C, h, w]`` bilinearly."""
    return F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)


class PhotographStructure(ctypes.Structure):
    """S3dPhotograph."""

    _fields_ = (
        ("batch", c_int64),
        *((name, c_int32) for name in ("height", "width", "rendered", "image_height", "image_width")),
        *((f"detail_{name}", c_int32) for name in ("channels", "height", "width", "storage")),
        ("inputs_storage", c_int32),
        *((name, c_int64) for name in ("image_stride", "detail_stride")),
        *((name, pointer) for name in ("fine", "image", "detail", "warped", "inputs")),
    )


def run_photograph(
    library: Library, image: Tensor, detail: Tensor, fine: Tensor, bfloat_inputs: bool
) -> tuple[Tensor, Tensor]:
    """Warp ``image [B or 1, 3, H, W]`` and ``detail [B or 1, D, h, w]``; CPU kernels only.

    Returns the warped photograph, and the inputs ``[B, n, m, 12 + D + C]``.
    """
    image, fine = image.float().contiguous(), fine.float().contiguous()
    detail = detail if detail.dtype in (torch.float32, torch.bfloat16) else detail.float()
    detail = detail.permute(0, 2, 3, 1).contiguous()
    batch, channels, height, width = fine.shape
    warped = fine.new_empty(batch, 3, 2 * height, 2 * width)
    dtype = torch.bfloat16 if bfloat_inputs else torch.float32
    inputs = fine.new_empty(batch, height, width, 12 + detail.shape[3] + channels - 2, dtype=dtype)
    arguments = PhotographStructure(
        batch=batch,
        height=height,
        width=width,
        rendered=channels - 2,
        image_height=image.shape[2],
        image_width=image.shape[3],
        detail_channels=detail.shape[3],
        detail_height=detail.shape[1],
        detail_width=detail.shape[2],
        detail_storage=STORAGE[detail.dtype],
        inputs_storage=STORAGE[dtype],
        image_stride=image.stride(0) if len(image) > 1 else 0,
        detail_stride=detail.stride(0) if len(detail) > 1 else 0,
        fine=fine.data_ptr(),
        image=image.data_ptr(),
        detail=detail.data_ptr(),
        warped=warped.data_ptr(),
        inputs=inputs.data_ptr(),
    )
    library.call("photograph_forward", arguments, fine.device)
    return warped, inputs


@torch.library.custom_op(
    "s3dnerf::photograph",
    mutates_args=(),
    schema="(Tensor image, Tensor detail, Tensor fine, bool bfloat_inputs) -> (Tensor, Tensor)",
)
def photograph(image, detail, fine, bfloat_inputs):
    """The warped photograph, :func:`run_photograph`."""
    return run_photograph(find_library(fine.device.type), image, detail, fine, bfloat_inputs)


@photograph.register_fake
def _(image, detail, fine, bfloat_inputs):
    batch, channels, height, width = fine.shape
    dtype = torch.bfloat16 if bfloat_inputs else torch.float32
    inputs = fine.new_empty(batch, height, width, 12 + detail.shape[1] + channels - 2, dtype=dtype)
    return fine.new_empty(batch, 3, 2 * height, 2 * width, dtype=torch.float32), inputs


def _fits(image: Tensor, detail: Tensor, fine: Tensor) -> bool:
    """Whether the kernel is made for these sizes and types."""
    wide = any(part.dtype == torch.float64 for part in (image, detail, fine))
    return not wide and image.shape[1] == 3 and 12 + detail.shape[1] + fine.shape[1] - 2 <= MAX_INPUTS
