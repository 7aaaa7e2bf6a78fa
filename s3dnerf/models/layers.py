"""Small building blocks shared by several components."""

from __future__ import annotations

from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor, nn

from s3dnerf.ops.convolution import Convolution

Layer = TypeVar("Layer", bound=nn.Module)


def make_convolution(inputs: int, outputs: int, stride: int = 1, kernel: int = 3) -> Convolution:
    """Return a convolution with "same" padding; a ``stride`` divides the size of the input."""
    return Convolution(inputs, outputs, kernel, stride=stride, padding=kernel // 2)


def zero_initialize(layer: Layer) -> Layer:
    """Set all parameters of ``layer`` to zero, so that it initially adds nothing."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


class ResidualBlock(nn.Module):
    """Two convolutions with a residual connection, initialized to the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = make_convolution(channels, channels)
        self.second = zero_initialize(make_convolution(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        """``[B, channels, H, W]`` -> the same shape."""
        hidden = self.first(x, activate_input=True, activate_output=True)
        return self.second(hidden, addend=x)


def make_mlp(*widths: int) -> nn.Sequential:
    """Return linear layers of the given widths with SiLU between them."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.SiLU()]
    return nn.Sequential(*layers[:-1])


def encode_sine(positions: Tensor, frequencies: int) -> Tensor:
    """Positional encoding by octaves: ``[..., D] -> [..., D (1 + 2 frequencies)]`` (Mildenhall et al., 2020)."""
    parts = [positions]
    for octave in range(frequencies):
        angle = positions * (torch.pi * 2**octave)
        parts += [angle.sin(), angle.cos()]
    return torch.cat(parts, dim=-1)
