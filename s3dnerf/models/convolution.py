"""A 3 x 3 convolution with the activations and the sum around it, in one operator.

In float32 our CPU kernel computes it by Winograd's minimal filtering (Lavin and Gray, 2016) with a quarter of the
products, forward and backward. Elsewhere this runs on PyTorch's operators, which are its specification: in bfloat16 a
processor with AVX-512 is faster without.
"""

from __future__ import annotations

import ctypes
from ctypes import c_int32, c_int64
from ctypes import c_void_p as pointer

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from s3dnerf.backend import Library, choose_backend, find_library

FEWEST_PIXELS = 1024
"""Of fewer, transforming the filters takes longer than it saves."""


class Convolution(nn.Conv2d):
    """``nn.Conv2d`` that also does what stands around it."""

    def forward(
        self, x: Tensor, addend: Tensor | None = None, activate_input: bool = False, activate_output: bool = False
    ) -> Tensor:
        """Convolve.

        Args:
            x: ``[B, C, H, W]``, fastest when channels-last.
            addend: ``[B, D, H', W']`` what is added to the result before that is activated.
            activate_input: apply SiLU to ``x`` first.
            activate_output: apply SiLU to the result.

        Returns:
            ``[B, D, H', W']``.
        """
        usual = (self.stride, self.dilation, self.groups, self.padding_mode) == ((1, 1), (1, 1), 1, "zeros")
        if usual and self.padding == (1, 1):
            return convolve(x, self.weight, self.bias, addend, activate_input, activate_output)
        return finish(super().forward(F.silu(x) if activate_input else x), addend, activate_output)


def convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    addend: Tensor | None = None,
    activate_input: bool = False,
    activate_output: bool = False,
) -> Tensor:
    """Convolve ``x [B, C, H, W]`` by ``weight [D, C, k, k]`` and ``bias [D]``, with one pixel of zeros around ``x``.

    For the rest see :meth:`Convolution.forward`. It can be differentiated by ``x``, and that by all else.
    """
    given = [x, weight, *(part for part in (bias, addend) if part is not None)]
    if bias is None or not suits(given) or choose_backend("convolution", x.device.type) == "pytorch":
        return convolve_reference(x, weight, bias, addend, activate_input, activate_output)
    learns = torch.is_grad_enabled() and any(part.requires_grad for part in given)
    if not learns:
        return run_channels_last(x, weight, bias, addend, activate_input, activate_output)
    # What the activations need for their way back is kept outside of the kernel.
    result = run_channels_last(F.silu(x) if activate_input else x, weight, bias, addend, False, False)
    return F.silu(result) if activate_output else result


def convolve_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    addend: Tensor | None = None,
    activate_input: bool = False,
    activate_output: bool = False,
) -> Tensor:
    """The twin of :func:`convolve`, on PyTorch's operators."""
    result = F.conv2d(F.silu(x) if activate_input else x, weight, bias, padding=1)
    return finish(result, addend, activate_output)


def finish(result: Tensor, addend: Tensor | None, activate: bool) -> Tensor:
    """Do what stands behind a convolution."""
    if addend is not None:
        result = result + addend
    return F.silu(result) if activate else result


def suits(given: list[Tensor]) -> bool:
    """Whether our kernel computes this (input and weight come first), and faster."""
    x, weight = given[:2]
    narrow = torch.is_autocast_enabled(x.device.type)
    if weight.shape[2:] != (3, 3) or narrow or any(part.dtype != torch.float32 for part in given):
        return False
    return x.numel() // x.shape[1] >= FEWEST_PIXELS


def run_channels_last(
    x: Tensor, weight: Tensor, bias: Tensor, addend: Tensor | None, activate_input: bool, activate_output: bool
) -> Tensor:
    """Run the operator on tensors ``[B, C, H, W]``."""
    addend = None if addend is None else addend.permute(0, 2, 3, 1)
    result = convolution(x.permute(0, 2, 3, 1), weight, bias, addend, activate_input, activate_output)
    return result.permute(0, 3, 1, 2)


class ConvolutionStructure(ctypes.Structure):
    """S3dConvolution."""

    _fields_ = (
        ("batch", c_int64),
        *((name, c_int32) for name in ("height", "width", "inputs", "outputs", "activate_input", "activate_output")),
        *((name, pointer) for name in ("input", "weights", "bias", "addend", "output")),
        *((name, pointer) for name in ("output_gradient", "weights_gradient", "bias_gradient")),
    )


def run_convolution(
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
    arguments = ConvolutionStructure(
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


@torch.library.custom_op(
    "s3dnerf::convolution",
    mutates_args=(),
    schema="(Tensor x, Tensor weight, Tensor bias, Tensor? addend, bool activate_input, bool activate_output) "
    "-> Tensor",
)
def convolution(x, weight, bias, addend, activate_input, activate_output):
    """The convolution, :func:`run_convolution`."""
    library = find_library(x.device.type)
    return run_convolution(library, x, weight, bias, addend, activate_input, activate_output)


@convolution.register_fake
def _(x, weight, bias, addend, activate_input, activate_output):
    return x.new_empty(*x.shape[:3], weight.shape[0])


def run_convolution_backward(library: Library, x: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients ``[D, C, 3, 3]`` to the weight and ``[D]`` to the bias, from that to the output ``[B, H, W, D]``."""
    x, gradient = x.contiguous(), gradient.contiguous()
    outputs = gradient.shape[3]
    weight_gradient, bias_gradient = x.new_empty(outputs, x.shape[3], 3, 3), x.new_empty(outputs)
    arguments = ConvolutionStructure(
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


@torch.library.custom_op(
    "s3dnerf::convolution_backward", mutates_args=(), schema="(Tensor x, Tensor gradient) -> (Tensor, Tensor)"
)
def convolution_backward(x, gradient):
    """The way back to weight and bias, :func:`run_convolution_backward`."""
    return run_convolution_backward(find_library(x.device.type), x, gradient)


@convolution_backward.register_fake
def _(x, gradient):
    outputs = gradient.shape[3]
    return x.new_empty(outputs, x.shape[3], 3, 3), x.new_empty(outputs)


def _save(ctx, inputs, output):
    x, weight, _, _, activate_input, activate_output = inputs
    if activate_input or activate_output:
        raise RuntimeError("where gradients are wanted, activations stay outside of the convolution")
    ctx.save_for_backward(x, weight)


def _differentiate(ctx, gradient):
    x, weight = ctx.saved_tensors
    wanted = ctx.needs_input_grad
    by_x = by_weight = by_bias = None
    if wanted[0]:
        turned = weight.flip(2, 3).transpose(0, 1)
        by_x = convolution(gradient, turned, gradient.new_zeros(weight.shape[1]), None, False, False)
    if wanted[1] or wanted[2]:
        by_weight, by_bias = convolution_backward(x, gradient)
    return by_x, by_weight, by_bias, gradient if wanted[3] else None, None, None


convolution.register_autograd(_differentiate, setup_context=_save)
