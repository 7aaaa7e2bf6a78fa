"""Frames over a static background, in one operator.

The CPU kernel serves rendering, where no gradients are needed.
"""

from __future__ import annotations

import ctypes
from ctypes import c_float, c_int32, c_int64
from ctypes import c_void_p as pointer

import torch
from torch import Tensor

from s3dnerf.ops.backend import Library, find_library
from s3dnerf.ops.image import upsample, warp_image
from s3dnerf.ops.layout import needs_grad, runs_on_pytorch
from s3dnerf.ops.library import define_operator

UNCOVERED_FROM, UNCOVERED_TO = 0.4, 0.7
"""Range of the decrease of opacity, from the source to the frame, over which the head uncovers the background. The flow
of uncovered pixels is that of empty space, which is static."""


def composite_over(
    image: Tensor, flow: Tensor, alpha: Tensor, background: Tensor, person: Tensor, head: Tensor, inpainted: Tensor
) -> Tensor:
    """Composite frames over a background.

    Args:
        image: ``[B, 3, S, S]`` frames; values outside [0, 1] are clamped.
        flow: ``[B, 2, n, n]`` position in the source of the content of a pixel, minus its own (image coordinates).
        alpha: ``[B, 1, r, r]`` opacity of the field.
        background: ``[1, 3, S, S]``.
        person: ``[1, 1, h, h]`` coverage of each pixel of the source by the person.
        head: ``[1, 1, h, h]`` opacity of the field when the source is rendered.
        inpainted: ``[1, 1, h, h]`` fraction of each background pixel that is inpainted.

    Returns:
        ``[B, 3, S, S]``.
    """
    tensors = (image, flow, alpha, background, person, head, inpainted)
    side = flow.shape[-1]
    sizes = (image.shape[-1], 2 * alpha.shape[-1], *(part.shape[-1] for part in (person, head, inpainted)))
    single = all(part.dtype == torch.float32 for part in tensors)
    if sizes != (2 * side, *[side] * 4) or not single or needs_grad(*tensors):
        return composite_over_reference(*tensors)
    if runs_on_pytorch("composite_background", *tensors):
        return composite_over_reference(*tensors)
    return composite_background(*tensors)


def composite_over_reference(
    image: Tensor, flow: Tensor, alpha: Tensor, background: Tensor, person: Tensor, head: Tensor, inpainted: Tensor
) -> Tensor:
    """Reference implementation of :func:`composite_over`; differentiable."""
    hidden = find_hidden(flow, alpha, person, head, inpainted)
    return image.clamp(0.0, 1.0).lerp(background, 1.0 - upsample(hidden, image.shape[-1] // hidden.shape[-1]))


def find_hidden(flow: Tensor, alpha: Tensor, person: Tensor, head: Tensor, inpainted: Tensor) -> Tensor:
    """Return the fraction ``[B, 1, h, h]`` of the background that the person hides, see :func:`composite_over`."""
    size = person.shape[-1]
    flow, alpha = upsample(flow, size // flow.shape[-1]), upsample(alpha, size // alpha.shape[-1])
    known = torch.cat([person, head], dim=1).expand(len(flow), -1, -1, -1)
    person, head = warp_image(known, flow).split(1, dim=1)
    uncovered = ((head - alpha - UNCOVERED_FROM) / (UNCOVERED_TO - UNCOVERED_FROM)).clamp(0.0, 1.0)
    return (1.0 - (1.0 - person) * (1.0 - inpainted)) * (1.0 - person * uncovered)


class S3dCompositeBackground(ctypes.Structure):
    """Mirror of ``S3dCompositeBackground``."""

    _fields_ = (
        ("batch", c_int64),
        ("size", c_int32),
        *((name, c_float) for name in ("uncovered_from", "uncovered_to")),
        *((name, c_int64) for name in ("flow_stride", "alpha_stride")),
        *((name, pointer) for name in ("image", "flow", "alpha", "background", "person", "head", "inpainted")),
        ("output", pointer),
    )


ARGUMENTS = S3dCompositeBackground


def launch_forward(
    library: Library,
    image: Tensor,
    flow: Tensor,
    alpha: Tensor,
    background: Tensor,
    person: Tensor,
    head: Tensor,
    inpainted: Tensor,
) -> Tensor:
    """Composite frames ``[B, 3, 2n, 2n]``; flow and masks have half, ``alpha`` a quarter of the size. CPU only."""
    side = flow.shape[-1]
    # Flow and opacity are channels of one image. They are read in place.
    flow = flow if flow.stride()[1:] == (side * side, side, 1) else flow.contiguous()
    alpha = alpha if alpha.stride()[2:] == (side // 2, 1) else alpha.contiguous()
    image, background, person, head, inpainted = (
        part.contiguous() for part in (image, background, person, head, inpainted)
    )
    output = torch.empty_like(image)
    arguments = S3dCompositeBackground(
        batch=len(image),
        size=side,
        uncovered_from=UNCOVERED_FROM,
        uncovered_to=UNCOVERED_TO,
        flow_stride=flow.stride(0),
        alpha_stride=alpha.stride(0),
        image=image.data_ptr(),
        flow=flow.data_ptr(),
        alpha=alpha.data_ptr(),
        background=background.data_ptr(),
        person=person.data_ptr(),
        head=head.data_ptr(),
        inpainted=inpainted.data_ptr(),
        output=output.data_ptr(),
    )
    library.call("composite_background_forward", arguments, image.device)
    return output


@define_operator(
    "composite_background",
    "(Tensor image, Tensor flow, Tensor alpha, Tensor background, Tensor person, Tensor head, Tensor inpainted) "
    "-> Tensor",
)
def composite_background(image, flow, alpha, background, person, head, inpainted):
    """Return the frames, see :func:`launch_forward`."""
    library = find_library(image.device.type)
    return launch_forward(library, image, flow, alpha, background, person, head, inpainted)


@composite_background.register_fake
def _(image, flow, alpha, background, person, head, inpainted):
    return torch.empty_like(image, memory_format=torch.contiguous_format)
