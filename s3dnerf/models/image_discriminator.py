"""Image discriminator (S3D-NeRF, section 3.5): tells rendered crops from real ones. Used in training only.

This is a small version of the residual discriminator of StyleGAN2 (Karras et al., 2020): equalized learning rates,
downsampling by average pooling, and minibatch standard deviation before the last layers. Training uses two of them: one
for the mouth, where teeth are the first detail to be lost, and one for texture at a random place of the face.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from s3dnerf.constraints import PositiveInt, Width
from s3dnerf.ops.convolution import convolve

SQRT_HALF = math.sqrt(0.5)
SLOPE = 0.2
VARIANCE_EPS = 1e-8


@dataclass
class ImageDiscriminatorConfig:
    """Sizes of a discriminator."""

    side: PositiveInt = 64
    """Side of the crops in pixels; a multiple of ``2 ** len(widths)``."""
    widths: Annotated[tuple[Width, ...], Field(min_length=1)] = (16, 32, 64, 96)
    """Channels before each halving of the feature map."""

    @model_validator(mode="after")
    def check_side(self) -> ImageDiscriminatorConfig:
        """Check that the side stays a whole number of pixels at each halving."""
        if self.side % 2 ** len(self.widths):
            factor = f"2 ** {len(self.widths)}, a halving for each of the widths"
            raise ValueError(f"side ({self.side}) should be a multiple of {2 ** len(self.widths)} ({factor})")
        return self


@dataclass(frozen=True)
class DiscriminatorOutput:
    """Output of a discriminator for a batch."""

    logits: Tensor
    """``[B]``; positive for real."""
    features: list[Tensor]
    """Feature maps after each block, fine to coarse."""


class ImageDiscriminator(nn.Module):
    """Crops -> logits of being real."""

    def __init__(self, config: ImageDiscriminatorConfig) -> None:
        super().__init__()
        widths = config.widths
        self.enter = EqualizedConvolution(3, widths[0], 1)
        self.blocks = nn.ModuleList(
            DiscriminatorBlock(inputs, outputs)
            for inputs, outputs in zip(widths, (*widths[1:], widths[-1]), strict=True)
        )
        self.mix = EqualizedConvolution(widths[-1] + 1, widths[-1], 3)
        left = config.side // 2 ** len(widths)
        self.leave = EqualizedLinear(widths[-1] * left * left, 1)

    def forward(self, image: Tensor) -> DiscriminatorOutput:
        """Classify crops ``image [B, 3, side, side]`` in [0, 1]."""
        x = activate(self.enter((2.0 * image - 1.0).contiguous(memory_format=torch.channels_last)))
        features = []
        for block in self.blocks:
            x = block(x)
            features.append(x)
        # At equal crops, the R1 penalty needs a second derivative that the square root has only off zero.
        spread = (x.float().var(dim=0, correction=0) + VARIANCE_EPS).sqrt().mean().to(x.dtype)
        x = activate(self.mix(torch.cat([x, spread.expand(len(x), 1, *x.shape[2:])], dim=1)))
        return DiscriminatorOutput(self.leave(x.flatten(1))[:, 0].float(), features)


class DiscriminatorBlock(nn.Module):
    """Two convolutions with a shortcut; halves the feature map."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first = EqualizedConvolution(inputs, inputs, 3)
        self.second = EqualizedConvolution(inputs, outputs, 3)
        self.shortcut = EqualizedConvolution(inputs, outputs, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, inputs, H, W]`` -> ``[B, outputs, H / 2, W / 2]``."""
        changed = F.avg_pool2d(activate(self.second(activate(self.first(x)))), 2)
        return (changed + self.shortcut(F.avg_pool2d(x, 2))) * SQRT_HALF


class EqualizedConvolution(nn.Module):
    """A convolution whose weights are stored at unit variance and scaled at run time (Karras et al., 2018)."""

    def __init__(self, inputs: int, outputs: int, kernel: int, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None
        self.scale, self.is_pointwise = 1.0 / math.sqrt(inputs * kernel * kernel), kernel == 1

    def forward(self, x: Tensor) -> Tensor:
        """``[B, inputs, H, W]`` -> ``[B, outputs, H, W]``."""
        weight = self.scale * self.weight
        return F.conv2d(x, weight, self.bias) if self.is_pointwise else convolve(x, weight, self.bias)


class EqualizedLinear(nn.Module):
    """A linear layer with the weight scaling of :class:`EqualizedConvolution`."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.scale = 1.0 / math.sqrt(inputs)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, inputs]`` -> ``[B, outputs]``."""
        return F.linear(x, self.scale * self.weight, self.bias)


def activate(x: Tensor) -> Tensor:
    """Leaky ReLU, scaled to preserve variance."""
    return F.leaky_relu(x, SLOPE) * math.sqrt(2.0)
