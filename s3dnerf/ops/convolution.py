"""A 3 x 3 convolution with the activations and the addition around it, in one operator.

In float32 the CPU kernel uses Winograd's minimal filtering (Lavin and Gray, 2016), with a quarter of the products,
forward and backward. In bfloat16 there is a kernel for rendering (``convolution_bf16.py``), where the processor has
instructions for its products, and elsewhere PyTorch convolves.
"""

from __future__ import annotations

import ctypes
from ctypes import c_int32, c_int64
from ctypes import c_void_p as pointer

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from s3dnerf.ops import convolution_bf16 as bf16
from s3dnerf.ops.backend import Library, choose_backend, find_library
from s3dnerf.ops.layout import needs_grad
from s3dnerf.ops.library import define_operator

MIN_PIXELS = 1024
"""Below this number of pixels the filter transform costs more than it saves."""


class Convolution(nn.Conv2d):
    """``nn.Conv2d`` with optional activations and an addition."""

    def forward(
        self, x: Tensor, addend: Tensor | None = None, activate_input: bool = False, activate_output: bool = False
    ) -> Tensor:
        """Convolve.

        Args:
            x: ``[B, C, H, W]``, fastest when channels-last.
            addend: ``[B, D, H', W']`` added to the result before its activation.
            activate_input: apply SiLU to ``x`` first.
            activate_output: apply SiLU to the result.

        Returns:
            ``[B, D, H', W']``.
        """
        step = self.stride[0]
        shape = (self.stride, self.padding, self.dilation, self.groups, self.padding_mode)
        if shape == ((step, step), (1, 1), (1, 1), 1, "zeros"):
            return convolve(x, self.weight, self.bias, addend, activate_input, activate_output, step)
        return apply_epilogue(super().forward(F.silu(x) if activate_input else x), addend, activate_output)


def convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    addend: Tensor | None = None,
    activate_input: bool = False,
    activate_output: bool = False,
    stride: int = 1,
) -> Tensor:
    """Convolve ``x [B, C, H, W]`` by ``weight [D, C, k, k]`` and ``bias [D]``, with one pixel of zero padding.

    See :meth:`Convolution.forward` for the other arguments. The gradient with respect to ``x`` can itself be
    differentiated with respect to everything else.
    """
    tensors = [x, weight, *(part for part in (bias, addend) if part is not None)]
    if bias is None or not has_kernel_shapes(x, weight, bias, addend, stride):
        return convolve_reference(x, weight, bias, addend, activate_input, activate_output, stride)
    if bf16.has_kernel(tensors):
        return bf16.convolve_channels_last(x, weight, bias, addend, activate_input, activate_output, stride)
    if stride != 1 or not is_supported(tensors) or choose_backend("convolution", x.device.type) == "pytorch":
        return convolve_reference(x, weight, bias, addend, activate_input, activate_output, stride)
    if not needs_grad(*tensors):
        return convolve_channels_last(x, weight, bias, addend, activate_input, activate_output)
    # Activations run outside the kernel so that autograd can save their inputs.
    result = convolve_channels_last(F.silu(x) if activate_input else x, weight, bias, addend, False, False)
    return F.silu(result) if activate_output else result


def convolve_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    addend: Tensor | None = None,
    activate_input: bool = False,
    activate_output: bool = False,
    stride: int = 1,
) -> Tensor:
    """Reference implementation of :func:`convolve`."""
    result = F.conv2d(F.silu(x) if activate_input else x, weight, bias, stride, padding=1)
    return apply_epilogue(result, addend, activate_output)


def apply_epilogue(result: Tensor, addend: Tensor | None, activate: bool) -> Tensor:
    """Add ``addend``, if any, and activate the sum, if wanted."""
    if addend is not None:
        result = result + addend
    return F.silu(result) if activate else result


def has_kernel_shapes(x: Tensor, weight: Tensor, bias: Tensor, addend: Tensor | None, stride: int) -> bool:
    """Tell whether shapes are those that kernels take: they check nothing, and PyTorch raises or broadcasts."""
    if x.dim() != 4 or weight.shape[1:] != (x.shape[1], 3, 3) or bias.shape != weight.shape[:1] or stride not in (1, 2):
        return False
    size = [(side - 1) // stride + 1 for side in x.shape[2:]]
    return x.numel() > 0 and (addend is None or addend.shape == (len(x), len(weight), *size))


def is_supported(tensors: list[Tensor]) -> bool:
    """Tell whether the kernel computes this (input and weight come first), and faster than PyTorch."""
    x = tensors[0]
    if torch.is_autocast_enabled(x.device.type) or any(part.dtype != torch.float32 for part in tensors):
        return False
    return x.numel() // x.shape[1] >= MIN_PIXELS


def convolve_channels_last(
    x: Tensor, weight: Tensor, bias: Tensor, addend: Tensor | None, activate_input: bool, activate_output: bool
) -> Tensor:
    """Run the operator on tensors ``[B, C, H, W]``."""
    addend = None if addend is None else addend.permute(0, 2, 3, 1)
    result = convolution(x.permute(0, 2, 3, 1), weight, bias, addend, activate_input, activate_output)
    return result.permute(0, 3, 1, 2)


class S3dConvolution(ctypes.Structure):
    """Mirror of ``S3dConvolution``."""

    _fields_ = (
        ("batch", c_int64),
        *((name, c_int32) for name in ("height", "width", "inputs", "outputs", "activate_input", "activate_output")),
        *((name, pointer) for name in ("input", "weights", "bias", "addend", "output")),
        *((name, pointer) for name in ("output_gradient", "weights_gradient", "bias_gradient")),
    )


ARGUMENTS = S3dConvolution


def launch_forward(
    library: Library,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    addend: Tensor | None,
    activate_input: bool,
    activate_output: bool,
) -> Tensor:
    """Convolve ``x [B, H, W, C]`` by ``weight [D, C, 3, 3]``; CPU kernels only. Returns ``[B, H, W, D]``."""
    x, weight, bias = x.contiguous(), weight.contiguous(), bias.contiguous()
    addend = None if addend is None else addend.contiguous()
    output = x.new_empty(*x.shape[:3], len(weight))
    arguments = S3dConvolution(
        batch=x.shape[0],
        height=x.shape[1],
        width=x.shape[2],
        inputs=x.shape[3],
        outputs=len(weight),
        activate_input=activate_input,
        activate_output=activate_output,
        input=x.data_ptr(),
        weights=weight.data_ptr(),
        bias=bias.data_ptr(),
        addend=None if addend is None else addend.data_ptr(),
        output=output.data_ptr(),
    )
    library.call("convolution_forward", arguments, x.device)
    return output


@define_operator(
    "convolution",
    "(Tensor x, Tensor weight, Tensor bias, Tensor? addend, bool activate_input, bool activate_output) -> Tensor",
)
def convolution(x, weight, bias, addend, activate_input, activate_output):
    """Return the convolution, see :func:`launch_forward`."""
    library = find_library(x.device.type)
    return launch_forward(library, x, weight, bias, addend, activate_input, activate_output)


@convolution.register_fake
def _(x, weight, bias, addend, activate_input, activate_output):
    return x.new_empty(*x.shape[:3], weight.shape[0])


def launch_backward(library: Library, x: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of weight ``[D, C, 3, 3]`` and bias ``[D]`` from that of the output ``[B, H, W, D]``."""
    x, gradient = x.contiguous(), gradient.contiguous()
    outputs = gradient.shape[3]
    weight_gradient, bias_gradient = x.new_empty(outputs, x.shape[3], 3, 3), x.new_empty(outputs)
    arguments = S3dConvolution(
        batch=x.shape[0],
        height=x.shape[1],
        width=x.shape[2],
        inputs=x.shape[3],
        outputs=outputs,
        input=x.data_ptr(),
        output_gradient=gradient.data_ptr(),
        weights_gradient=weight_gradient.data_ptr(),
        bias_gradient=bias_gradient.data_ptr(),
    )
    library.call("convolution_backward", arguments, x.device)
    return weight_gradient, bias_gradient


@define_operator("convolution_backward", "(Tensor x, Tensor gradient) -> (Tensor, Tensor)")
def convolution_backward(x, gradient):
    """Return the gradients with respect to weight and bias, see :func:`launch_backward`."""
    return launch_backward(find_library(x.device.type), x, gradient)


@convolution_backward.register_fake
def _(x, gradient):
    outputs = gradient.shape[3]
    return x.new_empty(outputs, x.shape[3], 3, 3), x.new_empty(outputs)


def _setup_context(ctx, inputs, output):
    x, weight, _, _, activate_input, activate_output = inputs
    if activate_input or activate_output:
        raise RuntimeError("with gradients, activations run outside of the convolution")
    ctx.save_for_backward(x, weight)


def _backward(ctx, gradient):
    x, weight = ctx.saved_tensors
    needed = ctx.needs_input_grad
    by_x = by_weight = by_bias = None
    if needed[0]:
        transposed = weight.flip(2, 3).transpose(0, 1)
        by_x = convolution(gradient, transposed, gradient.new_zeros(weight.shape[1]), None, False, False)
    if needed[1] or needed[2]:
        by_weight, by_bias = convolution_backward(x, gradient)
    return by_x, by_weight, by_bias, gradient if needed[3] else None, None, None


convolution.register_autograd(_backward, setup_context=_setup_context)
