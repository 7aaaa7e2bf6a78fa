"""MediaPipe's person segmentation: a MobileNetV3 (Howard et al., 2019, arXiv 1905.02244) with a decoder."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from s3dnerf.face.face_mesh import pad_for_stride
from s3dnerf.ops.separable import SeparableChain, SeparableLayer

SEGMENTATION_WEIGHTS = Path(__file__).parents[1] / "weights" / "person_segmentation" / "person_segmentation.safetensors"
SEGMENTATION_SIZE = 256
"""Side of the network's input and output in pixels."""


class SegmentationNetwork(nn.Module):
    """The model for square images, with fixed weights.

    Args:
        pretrained: load the shipped weights.
    """

    def __init__(self, pretrained: bool = True) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, stride=2)
        self.encoder1 = SeparableChain(
            SeparableLayer(16, 16, kernel=1, activation="relu"), SeparableLayer(16, None, stride=2, middle="relu")
        )
        self.gate1 = Gate(16, 8)
        self.project1 = nn.Conv2d(16, 16, 1)
        self.encoder2 = SeparableChain(
            SeparableLayer(16, 72, kernel=1, activation="relu"),
            SeparableLayer(72, 24, stride=2, middle="relu"),
        )
        self.encoder3 = SeparableChain(
            SeparableLayer(24, 88, kernel=1, activation="relu"),
            SeparableLayer(88, 24, middle="relu", residual=2),
        )
        self.blocks = nn.ModuleList(
            [
                GatedBlock(24, 96, downsample=True),
                GatedBlock(32, 128),
                GatedBlock(32, 128),
                GatedBlock(32, 96),
                GatedBlock(32, 96),
            ]
        )
        self.context, self.context_gate = nn.Conv2d(32, 128, 1), nn.Conv2d(32, 128, 1)
        self.decoders = nn.ModuleList([Decoder(128, 24), Decoder(24, 16), Decoder(16, 16)])
        self.matte = nn.ConvTranspose2d(16, 1, 2, stride=2)
        if pretrained:
            self.load_state_dict({name: value.float() for name, value in load_file(SEGMENTATION_WEIGHTS).items()})
        self.requires_grad_(False)

    def forward(self, image: Tensor) -> Tensor:
        """Map ``[B, 3, 256, 256]`` in [0, 1] to the probability of a person ``[B, 256, 256]``."""
        large = F.hardswish(self.stem(pad_for_stride(image, 3)))
        medium = self.project1(self.gate1(self.encoder1(large)))
        small = self.encoder3(self.encoder2(medium))
        x = small
        for block in self.blocks:
            x = block(x)
        x = F.relu(self.context(x)) * self.context_gate(x.mean((2, 3), keepdim=True)).sigmoid()
        for decoder, skip in zip(self.decoders, (small, medium, large), strict=True):
            x = decoder(x, skip)
        # Patches of a transposed convolution whose stride is its size do not overlap.
        weight = self.matte.weight.permute(1, 2, 3, 0).reshape(4, 16, 1, 1)
        return F.pixel_shuffle(F.conv2d(x, weight, self.matte.bias.expand(4)), 2)[:, 0].sigmoid()


class Gate(nn.Module):
    """Squeeze and excitation: multiplies each channel by a factor that depends on the means of all."""

    def __init__(self, channels: int, narrow: int) -> None:
        super().__init__()
        self.squeeze, self.expand = nn.Conv2d(channels, narrow, 1), nn.Conv2d(narrow, channels, 1)

    def forward(self, x: Tensor, means_of: Tensor | None = None) -> Tensor:
        """Gate ``x [B, C, h, w]``, by the means of another map if it is given."""
        means = (x if means_of is None else means_of).mean((2, 3), keepdim=True)
        return x * self.expand(F.relu(self.squeeze(means))).sigmoid()


class GatedBlock(nn.Module):
    """An inverted residual block with a gate; halving leaves the residual connection out."""

    def __init__(self, inputs: int, wide: int, downsample: bool = False) -> None:
        super().__init__()
        self.downsample = downsample
        self.depthwise = SeparableChain(
            SeparableLayer(inputs, wide, kernel=1, activation="hardswish"),
            SeparableLayer(wide, None, kernel=5, stride=2 if downsample else 1, middle="hardswish"),
        )
        self.gate = Gate(wide, wide // 4)
        self.pointwise = nn.Conv2d(wide, 32, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[B, inputs, h, w]`` to ``[B, 32, h, w]``, or half the size."""
        result = self.pointwise(self.gate(self.depthwise(x)))
        return result if self.downsample else result + x


class Decoder(nn.Module):
    """Upsamples by two and adds a gated map of the encoder."""

    def __init__(self, inputs: int, channels: int) -> None:
        super().__init__()
        self.project = nn.Conv2d(inputs, channels, 1)
        self.gate = Gate(channels, channels)
        self.refine = SeparableChain(
            SeparableLayer(channels, channels, kernel=1, activation="relu"),
            SeparableLayer(channels, None, middle="relu", residual=1),
        )

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Map ``x [B, inputs, h, w]`` and ``skip [B, C, 2h, 2w]`` to ``[B, C, 2h, 2w]``."""
        # The projection is linear and pointwise, so that it may come before upsampling.
        x = F.interpolate(self.project(x), scale_factor=2, mode="bilinear", align_corners=False)
        return self.refine(self.gate(skip, means_of=skip + x) + x)
