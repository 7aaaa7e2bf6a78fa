"""The source image and its features, warped to a frame: the input of super-resolution, in one operator.

The CPU kernel serves rendering, where no gradients are needed: it warps the source and its features, concatenates the
rendered channels and rounds them in one pass.
"""

from __future__ import annotations

import ctypes
from ctypes import c_int32, c_int64
from ctypes import c_void_p as pointer

import torch
from torch import Tensor
from torch.nn import functional as F

from s3dnerf.ops.backend import Library, find_library
from s3dnerf.ops.image import upsample, warp_image
from s3dnerf.ops.layout import STORAGE, is_bf16_autocast, needs_grad, runs_on_pytorch
from s3dnerf.ops.library import define_operator

MAX_INPUTS = 512
"""Most channels that the kernel concatenates."""


def warp_source_image(image: Tensor, detail: Tensor, rendered: Tensor) -> tuple[Tensor, Tensor]:
    """Warp a source image and its features by the rendered flow.

    Args:
        image: ``[B, 3, H, W]``; nothing is copied if it is expanded to the batch.
        detail: ``[B, D, h, w]`` features of the source, fastest in channels-last format; expanded likewise.
        rendered: ``[B, C + 2, n, m]`` rendered channels; the last two are the flow (image coordinates, relative).

    Returns:
        The warped image ``[B, 3, 2n, 2m]``, and ``[B, 12 + D + C, n, m]`` in channels-last format: its pixels two by
        two, the warped features and the rendered channels. Without gradients, the latter is in bfloat16 under autocast
        to it.
    """
    tensors = (image, detail, rendered)
    supported = image.shape[1] == 3 and 12 + detail.shape[1] + rendered.shape[1] - 2 <= MAX_INPUTS
    if needs_grad(*tensors) or not supported or runs_on_pytorch("warp_source", rendered, image, detail):
        return warp_source_reference(*tensors)
    shared = (part[:1] if part.stride(0) == 0 else part for part in (image, detail))
    warped, inputs = warp_source(*shared, rendered, is_bf16_autocast(rendered.device))
    return warped, inputs.permute(0, 3, 1, 2)


def warp_source_reference(image: Tensor, detail: Tensor, rendered: Tensor) -> tuple[Tensor, Tensor]:
    """Reference implementation of :func:`warp_source_image`; differentiable."""
    flow = rendered[:, -2:]
    # Bilinear sampling averages neighboring pixels, which would blur the source.
    warped = warp_image(image, upsample(flow, 2), "bicubic")
    inputs = torch.cat([F.pixel_unshuffle(warped, 2), warp_image(detail, flow), rendered[:, :-2]], dim=1)
    return warped, inputs.contiguous(memory_format=torch.channels_last)


class S3dWarpSource(ctypes.Structure):
    """Mirror of ``S3dWarpSource``."""

    _fields_ = (
        ("batch", c_int64),
        *((name, c_int32) for name in ("height", "width", "rendered", "image_height", "image_width")),
        *((f"detail_{name}", c_int32) for name in ("channels", "height", "width", "storage")),
        ("inputs_storage", c_int32),
        *((name, c_int64) for name in ("image_stride", "detail_stride")),
        *((name, pointer) for name in ("fine", "image", "detail", "warped", "inputs")),
    )


ARGUMENTS = S3dWarpSource


def launch_forward(
    library: Library, image: Tensor, detail: Tensor, rendered: Tensor, bf16_inputs: bool
) -> tuple[Tensor, Tensor]:
    """Warp ``image [B or 1, 3, H, W]`` and ``detail [B or 1, D, h, w]``; CPU kernels only.

    Returns the warped image, and the inputs of super-resolution ``[B, n, m, 12 + D + C]``.
    """
    image, rendered = image.float().contiguous(), rendered.float().contiguous()
    detail = detail if detail.dtype in (torch.float32, torch.bfloat16) else detail.float()
    detail = detail.permute(0, 2, 3, 1).contiguous()
    batch, channels, height, width = rendered.shape
    warped = rendered.new_empty(batch, 3, 2 * height, 2 * width)
    dtype = torch.bfloat16 if bf16_inputs else torch.float32
    inputs = rendered.new_empty(batch, height, width, 12 + detail.shape[3] + channels - 2, dtype=dtype)
    arguments = S3dWarpSource(
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
        fine=rendered.data_ptr(),
        image=image.data_ptr(),
        detail=detail.data_ptr(),
        warped=warped.data_ptr(),
        inputs=inputs.data_ptr(),
    )
    library.call("warp_source_forward", arguments, rendered.device)
    return warped, inputs


@define_operator(
    "warp_source",
    "(Tensor image, Tensor detail, Tensor rendered, bool bf16_inputs) -> (Tensor, Tensor)",
)
def warp_source(image, detail, rendered, bf16_inputs):
    """Return the warped image and the inputs of super-resolution, see :func:`launch_forward`."""
    return launch_forward(find_library(rendered.device.type), image, detail, rendered, bf16_inputs)


@warp_source.register_fake
def _(image, detail, rendered, bf16_inputs):
    batch, channels, height, width = rendered.shape
    dtype = torch.bfloat16 if bf16_inputs else torch.float32
    inputs = rendered.new_empty(batch, height, width, 12 + detail.shape[1] + channels - 2, dtype=dtype)
    return rendered.new_empty(batch, 3, 2 * height, 2 * width, dtype=torch.float32), inputs
