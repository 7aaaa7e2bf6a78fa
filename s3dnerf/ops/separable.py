"""Chains of depthwise separable convolutions, the building blocks of the face networks (BlazeBlocks, MobileNet).

Their maps are small, so that calling an operator costs as much as computing it, and the maps of a large one do not stay
in the cache between operators. The CPU kernel computes a whole chain in one call and each layer row by row.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Sequence
from ctypes import c_int32, c_int64
from ctypes import c_void_p as pointer
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from s3dnerf.ops.backend import Library, find_library
from s3dnerf.ops.layout import needs_grad, runs_on_pytorch

LANES = 16
"""The kernel's channels are padded to a multiple of this."""
ACTIVATIONS = {"prelu": 0, "relu": 1, "hardswish": 2, "none": 3}
"""``enum Activation`` of ``cuda_ext/cpu/separable.cpp``."""
DEPTHWISE, SEPARABLE, DENSE, GATE = range(4)
"""``enum Kind`` of the same file."""
FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "hardswish": F.hardswish,
    "none": lambda x: x,
}


class SeparableLayer(nn.Module):
    """A depthwise and a pointwise convolution with activations and an addition.

    Computes ``activation(pointwise(middle(depthwise(x))) + residual)``.

    Args:
        inputs: number of input channels.
        outputs: number of output channels; None leaves the pointwise convolution and its activation out.
        kernel: side of the depthwise filters, 3 or 5; 1 leaves the depthwise convolution out.
        stride: 1, or 2 to halve a map with even sides.
        residual: 0 for none; 1 adds the input of this layer, n (up to 4) that of the layer n - 1 before it in a chain.
            For a layer that halves, its maxima over 2 x 2 values are added. Missing channels count as zero.
        middle: activation after the depthwise convolution: "relu", "hardswish" or "none".
        activation: activation of the result: "prelu", "relu", "hardswish" or "none".
        symmetric: with stride 2, pad on all sides as PyTorch does; by default as TensorFlow does, mostly at the end.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int | None,
        kernel: int = 3,
        stride: int = 1,
        *,
        residual: int = 0,
        middle: str = "none",
        activation: str = "none",
        symmetric: bool = False,
    ) -> None:
        super().__init__()
        self.inputs, self.outputs, self.kernel, self.stride = inputs, outputs or inputs, kernel, stride
        self.residual, self.middle_name, self.activation_name = residual, middle, activation
        self.begin = kernel // 2 if symmetric or stride == 1 else (kernel - 2) // 2
        self.end = kernel - 1 - self.begin if stride == 1 else kernel - 2 - self.begin
        if kernel > 1:
            self.depthwise = nn.Conv2d(inputs, inputs, kernel, stride, groups=inputs)
        if outputs is not None:
            self.pointwise = nn.Conv2d(inputs, outputs, 1)
            if activation == "prelu":
                self.activation = nn.PReLU(outputs)

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        """Map ``[B, inputs, h, w]`` to ``[B, outputs, h / stride, w / stride]``; the reference implementation.

        Args:
            x: the input.
            skip: what the residual connection adds; by default the input.
        """
        result, skip = x, x if skip is None else skip
        if self.kernel > 1:
            padded = F.pad(x, (self.begin, max(self.end, 0)) * 2)
            result = FUNCTIONS[self.middle_name](self.depthwise(padded))
        if hasattr(self, "pointwise"):
            result = self.pointwise(result)
        if self.residual:
            if self.stride == 2:
                skip = F.max_pool2d(skip, 2)
            added = self.outputs - skip.shape[1]
            result = result + (F.pad(skip, (0, 0, 0, 0, 0, added)) if added else skip)
        if not hasattr(self, "pointwise"):
            return result
        return self.activation(result) if self.activation_name == "prelu" else FUNCTIONS[self.activation_name](result)

    def describe(self) -> list[int]:
        """Return the layer's row of the kernel's plan."""
        activations = (ACTIVATIONS[self.middle_name], ACTIVATIONS[self.activation_name])
        shape = (self.inputs, self.outputs, self.kernel, self.stride, self.begin)
        return [*shape, self.residual, *activations, SEPARABLE if hasattr(self, "pointwise") else DEPTHWISE]

    def pack_weights(self) -> list[Tensor]:
        """Return the weights in the kernel's layout, channels last and padded to whole packs."""
        parts = []
        if self.kernel > 1:
            parts += [self.depthwise.weight.flatten(1).t(), self.depthwise.bias]
        if hasattr(self, "pointwise"):
            weight = self.pointwise.weight.flatten(1).t()
            slopes = self.activation.weight if self.activation_name == "prelu" else torch.zeros_like(weight[0])
            parts += [weight, self.pointwise.bias, slopes]
        return pad_lanes(parts)


class StemLayer(nn.Module):
    """A convolution of all channels that halves an image, with its activation; the first layer of a chain.

    Args:
        inputs: number of input channels.
        outputs: number of output channels.
        kernel: side of the filters, 3 or 5.
        activation: "prelu", "relu", "hardswish" or "none".
        symmetric: pad as PyTorch does and not as TensorFlow does, see :class:`SeparableLayer`.
    """

    stride, residual = 2, 0

    def __init__(
        self, inputs: int, outputs: int, kernel: int = 3, activation: str = "none", *, symmetric: bool = False
    ) -> None:
        super().__init__()
        self.inputs, self.outputs, self.kernel, self.activation_name = inputs, outputs, kernel, activation
        self.begin = kernel // 2 if symmetric else (kernel - 2) // 2
        self.dense = nn.Conv2d(inputs, outputs, kernel, stride=2)
        if activation == "prelu":
            self.activation = nn.PReLU(outputs)

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        """Map ``[B, inputs, h, w]`` to ``[B, outputs, h / 2, w / 2]``; the reference implementation."""
        end = self.kernel - 2 - self.begin
        result = self.dense(F.pad(x, (self.begin, max(end, 0)) * 2))
        return self.activation(result) if self.activation_name == "prelu" else FUNCTIONS[self.activation_name](result)

    def describe(self) -> list[int]:
        """Return the layer's row of the kernel's plan."""
        shape = (self.inputs, self.outputs, self.kernel, self.stride, self.begin)
        return [*shape, 0, ACTIVATIONS["none"], ACTIVATIONS[self.activation_name], DENSE]

    def pack_weights(self) -> list[Tensor]:
        """Return the weights in the kernel's layout."""
        weight = self.dense.weight.permute(2, 3, 1, 0).flatten(0, 2)
        slopes = self.activation.weight if self.activation_name == "prelu" else torch.zeros_like(weight[0])
        return pad_lanes([weight, self.dense.bias, slopes])


class GateLayer(nn.Module):
    """Squeeze and excitation: multiplies each channel by a factor that depends on the means of all.

    Args:
        channels: number of channels.
        narrow: number of squeezed channels.
    """

    stride, residual = 1, 0

    def __init__(self, channels: int, narrow: int) -> None:
        super().__init__()
        self.inputs, self.outputs, self.narrow = channels, channels, narrow
        self.squeeze, self.expand = nn.Conv2d(channels, narrow, 1), nn.Conv2d(narrow, channels, 1)

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        """Gate ``x [B, C, h, w]``; the reference implementation."""
        return x * self.compute_factors(x.mean((2, 3), keepdim=True))

    def compute_factors(self, means: Tensor) -> Tensor:
        """Return the factors of channels with ``means [B, C, 1, 1]``."""
        return self.expand(F.relu(self.squeeze(means))).sigmoid()

    def describe(self) -> list[int]:
        """Return the layer's row of the kernel's plan."""
        none = ACTIVATIONS["none"]
        return [self.outputs, self.outputs, 1, 1, self.narrow, 0, none, none, GATE]

    def pack_weights(self) -> list[Tensor]:
        """Return the weights in the kernel's layout."""
        parts = (layer.weight.flatten(1).t() for layer in (self.squeeze, self.expand))
        squeeze, expand = parts
        return pad_lanes([squeeze, self.squeeze.bias, expand, self.expand.bias])


def pad_lanes(parts: Sequence[Tensor | None]) -> list[Tensor]:
    """Pad the last dimensions to whole packs and flatten each tensor."""
    tensors = (part.detach().float() for part in parts if part is not None)
    return [F.pad(part, (0, -part.shape[-1] % LANES)).flatten() for part in tensors]


class SeparableChain(nn.Sequential):
    """Layer after layer of the kinds above. Without gradients, on a CPU and in float32, one kernel runs them all."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__(*layers)
        self._packed: tuple[Tensor, Tensor, int, int] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[B, inputs, h, w]`` to ``[B, outputs, h', w']``; fastest in channels-last format."""
        if self._runs_on_pytorch(x):
            return chain_reference(self, x)
        if self._packed is None:
            self._packed = self._pack()
        plan, weights, stride, outputs = self._packed
        size = (-(-x.shape[2] // stride), -(-x.shape[3] // stride), outputs)
        return launch_forward(find_library("cpu"), x.permute(0, 2, 3, 1), plan, weights, size).permute(0, 3, 1, 2)

    def _pack(self) -> tuple[Tensor, Tensor, int, int]:
        layers: list[Any] = list(self)
        plan = torch.tensor([layer.describe() for layer in layers], dtype=torch.int32)
        weights = torch.cat([part for layer in layers for part in layer.pack_weights()])
        return plan, weights, math.prod(layer.stride for layer in layers), layers[-1].outputs

    def _runs_on_pytorch(self, x: Tensor) -> bool:
        if x.dtype != torch.float32 or torch.compiler.is_compiling() or torch.is_autocast_enabled(x.device.type):
            return True
        recorded = torch.is_grad_enabled() and needs_grad(x, *self.parameters())
        return recorded or runs_on_pytorch("separable", x)

    def _apply(self, *args: Any, **kwargs: Any) -> SeparableChain:
        self._packed = None
        return super()._apply(*args, **kwargs)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._packed = None
        super()._load_from_state_dict(*args, **kwargs)


def chain_reference(layers: nn.Sequential, x: Tensor) -> Tensor:
    """Reference implementation of :class:`SeparableChain`; differentiable."""
    inputs = [x]
    for layer in layers:
        residual: Any = layer.residual
        inputs.append(layer(inputs[-1], inputs[-residual] if residual else None))
    return inputs[-1]


class S3dSeparable(ctypes.Structure):
    """Mirror of ``S3dSeparable``."""

    _fields_ = (
        ("batch", c_int64),
        *((name, c_int32) for name in ("height", "width", "layers")),
        *((name, pointer) for name in ("plan", "weights", "input", "output")),
    )


ARGUMENTS = S3dSeparable


def launch_forward(library: Library, x: Tensor, plan: Tensor, weights: Tensor, size: tuple[int, int, int]) -> Tensor:
    """Run a chain on ``x [B, H, W, C]``; CPU kernels only.

    Args:
        library: the kernels.
        x: float32.
        plan: ``int32 [layers, 9]``, rows of :meth:`SeparableLayer.describe`.
        weights: ``float32 [n]``, :meth:`SeparableLayer.pack_weights` of all layers in turn.
        size: height, width and channels of the result.
    """
    x = x.contiguous()
    output = x.new_empty(len(x), *size)
    arguments = S3dSeparable(
        batch=x.shape[0],
        height=x.shape[1],
        width=x.shape[2],
        layers=len(plan),
        plan=plan.data_ptr(),
        weights=weights.data_ptr(),
        input=x.data_ptr(),
        output=output.data_ptr(),
    )
    library.call("separable_forward", arguments, x.device)
    return output
