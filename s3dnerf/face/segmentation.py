"""MediaPipe's person segmentation: a MobileNetV3 (Howard et al., 2019, arXiv 1905.02244) with a decoder."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from s3dnerf.ops.separable import GateLayer, SeparableChain, SeparableLayer, StemLayer
from s3dnerf.ops.upsample_add import add_upsampled

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
        self.large = SeparableChain(StemLayer(3, 16, activation="hardswish"))
        self.medium = SeparableChain(
            SeparableLayer(16, 16, kernel=1, activation="relu"),
            SeparableLayer(16, None, stride=2, middle="relu"),
            GateLayer(16, 8),
            SeparableLayer(16, 16, kernel=1),
        )
        self.small = SeparableChain(
            SeparableLayer(16, 72, kernel=1, activation="relu"),
            SeparableLayer(72, 24, stride=2, middle="relu"),
            SeparableLayer(24, 88, kernel=1, activation="relu"),
            SeparableLayer(88, 24, middle="relu", residual=2),
        )
        self.blocks = SeparableChain(
            *_gated_block(24, 96, downsample=True),
            *_gated_block(32, 128),
            *_gated_block(32, 128),
            *_gated_block(32, 96),
            *_gated_block(32, 96),
        )
        self.context, self.context_gate = nn.Conv2d(32, 128, 1), nn.Conv2d(32, 128, 1)
        self.decoders = nn.ModuleList([Decoder(128, 24), Decoder(24, 16), Decoder(16, 16)])
        self.matte = nn.ConvTranspose2d(16, 1, 2, stride=2)
        if pretrained:
            self.load_state_dict({name: value.float() for name, value in load_file(SEGMENTATION_WEIGHTS).items()})
        self.requires_grad_(False)

    def forward(self, image: Tensor) -> Tensor:
        """Map ``[B, 3, 256, 256]`` in [0, 1] to the probability of a person ``[B, 256, 256]``."""
        large = self.large(image)
        medium = self.medium(large)
        small = self.small(medium)
        x = self.blocks(small)
        x = F.relu(self.context(x)) * self.context_gate(x.mean((2, 3), keepdim=True)).sigmoid()
        for decoder, skip in zip(self.decoders, (small, medium, large), strict=True):
            x = decoder(x, skip)
        # Patches of a transposed convolution whose stride is its size do not overlap: one product gives all of them.
        weight, bias = self.matte.weight.reshape(16, 4).t(), self.matte.bias
        assert bias is not None
        patches = F.linear(x.permute(0, 2, 3, 1), weight, bias.expand(4))
        return patches.sigmoid().unflatten(-1, (2, 2)).transpose(2, 3).flatten(3).flatten(1, 2)


@cache
def load_segmentation_network() -> SegmentationNetwork:
    """Return the network, loaded once per process. All callers share it, so it must not be changed."""
    return SegmentationNetwork()


class Decoder(nn.Module):
    """Upsamples by two and adds a gated map of the encoder."""

    def __init__(self, inputs: int, channels: int) -> None:
        super().__init__()
        self.project = nn.Conv2d(inputs, channels, 1)
        self.gate = GateLayer(channels, channels)
        self.refine = SeparableChain(
            SeparableLayer(channels, channels, kernel=1, activation="relu"),
            SeparableLayer(channels, None, middle="relu", residual=1),
        )

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Map ``x [B, inputs, h, w]`` and ``skip [B, C, 2h, 2w]`` to ``[B, C, 2h, 2w]``."""
        # The projection is linear and pointwise, so that it may come before upsampling, which keeps the means.
        x = self.project(x)
        means = x.mean((2, 3), keepdim=True) + skip.mean((2, 3), keepdim=True)
        return self.refine(add_upsampled(x, skip * self.gate.compute_factors(means)))


def _gated_block(inputs: int, wide: int, downsample: bool = False) -> list[nn.Module]:
    """An inverted residual block with a gate; halving leaves the residual connection out."""
    return [
        SeparableLayer(inputs, wide, kernel=1, activation="hardswish"),
        SeparableLayer(wide, None, kernel=5, stride=2 if downsample else 1, middle="hardswish"),
        GateLayer(wide, wide // 4),
        SeparableLayer(wide, 32, kernel=1, residual=0 if downsample else 4),
    ]
