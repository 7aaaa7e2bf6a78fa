"""The 3 x 3 convolution of :mod:`s3dnerf.ops.convolution` in bfloat16, on processors with AMX or AVX512_BF16.

The kernel reads tiles from the map itself and applies the activations and the addition on the way, which PyTorch does
in passes of their own. It serves rendering, where no gradients are needed.
"""

from __future__ import annotations

import ctypes
from ctypes import c_int32, c_int64
from ctypes import c_void_p as pointer

import torch
from torch import Tensor

from s3dnerf.ops.backend import Library, choose_backend, find_library
from s3dnerf.ops.layout import is_bf16_autocast, needs_grad
from s3dnerf.ops.library import define_operator

TYPES = (torch.float32, torch.bfloat16)


def has_kernel(tensors: list[Tensor]) -> bool:
    """Tell whether the kernel computes these types of tensors here: under autocast to bfloat16, with its products."""
    device = tensors[0].device
    if device.type != "cpu" or any(part.dtype not in TYPES for part in tensors):
        return False
    if needs_grad(*tensors) or not is_bf16_autocast(device):
        return False
    return choose_backend("convolution_bf16", "cpu") == "cpu" and uses_bf16_products()


def uses_bf16_products() -> bool:
    """Tell whether the CPU kernels use instructions for products in bfloat16, without which there is no kernel."""
    return find_library("cpu").handle.s3d_cpu_variant() in (b"amx", b"avx512bf16")


# The compiler cannot trace it; see `choose_backend`.
uses_bf16_products._dynamo_marked_constant = True  # type: ignore[attr-defined]


def convolve_channels_last(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    addend: Tensor | None,
    activate_input: bool,
    activate_output: bool,
    stride: int,
) -> Tensor:
    """Run the operator on tensors ``[B, C, H, W]`` of :data:`TYPES`; returns bfloat16."""
    x = x.permute(0, 2, 3, 1).bfloat16()
    addend = None if addend is None else addend.permute(0, 2, 3, 1).bfloat16()
    result = convolution_bf16(x, weight.float(), bias.float(), addend, stride, activate_input, activate_output)
    return result.permute(0, 3, 1, 2)


class S3dConvolutionBf16(ctypes.Structure):
    """Mirror of ``S3dConvolutionBf16``."""

    _fields_ = (
        ("batch", c_int64),
        *((name, c_int32) for name in ("height", "width", "inputs", "outputs", "stride")),
        *((name, c_int32) for name in ("activate_input", "activate_output")),
        *((name, pointer) for name in ("input", "weights", "bias", "addend", "output")),
    )


ARGUMENTS = S3dConvolutionBf16


def launch_forward(
    library: Library,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    addend: Tensor | None,
    stride: int,
    activate_input: bool,
    activate_output: bool,
) -> Tensor:
    """Convolve ``x bfloat16 [B, H, W, C]``; CPU kernels only.

    Args:
        library: the kernels.
        x: the input, with finite values: one that is not spoils pixels beyond its neighbors too.
        weight: ``float32 [D, C, 3, 3]``, rounded to bfloat16.
        bias: ``float32 [D]``.
        addend: bfloat16, of the result's shape.
        stride: 1 or 2.
        activate_input: apply SiLU to ``x`` first.
        activate_output: apply SiLU to the result.

    Returns:
        ``bfloat16 [B, H', W', D]``, computed in float32 and rounded once.
    """
    x, weight, bias = x.contiguous(), weight.contiguous(), bias.contiguous()
    addend = None if addend is None else addend.contiguous()
    output = x.new_empty(compute_shape(x, weight, stride))
    arguments = S3dConvolutionBf16(
        batch=x.shape[0],
        height=x.shape[1],
        width=x.shape[2],
        inputs=x.shape[3],
        outputs=len(weight),
        stride=stride,
        activate_input=activate_input,
        activate_output=activate_output,
        input=x.data_ptr(),
        weights=weight.data_ptr(),
        bias=bias.data_ptr(),
        addend=None if addend is None else addend.data_ptr(),
        output=output.data_ptr(),
    )
    library.call("convolution_bf16_forward", arguments, x.device)
    return output


def compute_shape(x: Tensor, weight: Tensor, stride: int) -> tuple[int, int, int, int]:
    """Return the shape of the result for ``x [B, H, W, C]`` and ``weight [D, C, 3, 3]``."""
    return x.shape[0], (x.shape[1] - 1) // stride + 1, (x.shape[2] - 1) // stride + 1, weight.shape[0]


@define_operator(
    "convolution_bf16",
    "(Tensor x, Tensor weight, Tensor bias, Tensor? addend, int stride, bool activate_input, bool activate_output)"
    " -> Tensor",
)
def convolution_bf16(x, weight, bias, addend, stride, activate_input, activate_output):
    """Return the convolution, see :func:`launch_forward`."""
    library = find_library(x.device.type)
    return launch_forward(library, x, weight, bias, addend, stride, activate_input, activate_output)


@convolution_bf16.register_fake
def _(x, weight, bias, addend, stride, activate_input, activate_output):
    return x.new_empty(compute_shape(x, weight, stride))
