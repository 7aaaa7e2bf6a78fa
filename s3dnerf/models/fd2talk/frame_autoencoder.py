"""The autoencoder of FD2Talk's frames: an eighth of the size, with a decoder that also sees a warped portrait.

What the portrait shows need not pass through the latents: teeth, hair and skin come from it at full size, and the
latents tell what differs. Without a portrait the decoder paints everything from the latents.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from s3dnerf.config import check_config
from s3dnerf.models.fd2talk.frame_config import LATENT_STRIDE, FrameAutoencoderConfig
from s3dnerf.models.layers import ResidualBlock, make_convolution
from s3dnerf.models.pretrained import PretrainedModel
from s3dnerf.ops.image import upsample

BLOCK = 4
"""Side of the squares of pixels that become the channels of one place. At the full size, a CPU is slow."""


class FrameAutoencoder(PretrainedModel):
    """Frames to latents and back."""

    def __init__(self, config: FrameAutoencoderConfig) -> None:
        """Build the networks."""
        super().__init__()
        check_config(config, "frame autoencoder")
        self.config = config
        fine, coarse = config.widths
        self.encoder = nn.Sequential(
            make_convolution(3 * BLOCK**2, fine),
            ResidualBlock(fine),
            make_convolution(fine, coarse, stride=2),
            ResidualBlock(coarse),
            ResidualBlock(coarse),
            make_convolution(coarse, config.channels),
        )
        self.decoder = FrameDecoder(config)

    def encode(self, image: Tensor) -> Tensor:
        """Encode images ``[B, 3, H, W]`` in [0, 1], of sides that are multiples of 8: ``[B, C, H / 8, W / 8]``."""
        return self.encoder(split_pixels(image)).float()

    def decode(self, latents: Tensor, warped: Tensor | None) -> Tensor:
        """Decode latents with the help of a warped portrait.

        Args:
            latents: ``[B, C, h, w]``.
            warped: ``[B, 3, 8 h, 8 w]`` in [0, 1]; None for none.

        Returns:
            ``[B, 3, 8 h, 8 w]``, not limited to [0, 1].
        """
        batch, _, height, width = latents.shape
        seen = latents.new_ones(batch)
        if warped is None:
            warped = latents.new_zeros(batch, 3, height * LATENT_STRIDE, width * LATENT_STRIDE)
            seen = latents.new_zeros(batch)
        return self.decoder(latents, warped, seen)


class FrameDecoder(nn.Module):
    """Latents and a warped portrait -> frames."""

    def __init__(self, config: FrameAutoencoderConfig) -> None:
        super().__init__()
        fine, coarse = config.widths
        self.portrait_fine = nn.Sequential(make_convolution(3 * BLOCK**2 + 1, fine), ResidualBlock(fine))
        self.portrait_coarse = make_convolution(fine, coarse, stride=2)
        self.enter = make_convolution(config.channels, coarse)
        self.coarse = nn.Sequential(ResidualBlock(coarse), ResidualBlock(coarse))
        self.to_fine = make_convolution(coarse, fine)
        self.fine = nn.Sequential(ResidualBlock(fine), ResidualBlock(fine))
        self.leave = make_convolution(fine, 4 * BLOCK**2)

    def forward(self, latents: Tensor, warped: Tensor, seen: Tensor) -> Tensor:
        """Decode latents ``[B, C, h, w]``; ``warped`` counts where ``seen [B]`` is 1 and must be zero where it is 0."""
        seen = seen[:, None, None, None].to(warped.dtype)
        pixels = split_pixels(warped)
        flag = seen.expand(-1, 1, *pixels.shape[2:])
        fine = self.portrait_fine(torch.cat([pixels, flag], dim=1))
        x = self.coarse(self.enter(latents) + self.portrait_coarse(F.silu(fine)))
        x = self.fine(upsample(self.to_fine(F.silu(x)), 2) + fine)
        color, gate = F.pixel_shuffle(self.leave(F.silu(x)).float(), BLOCK).split((3, 1), dim=1)
        return color + seen * gate.sigmoid() * warped


def split_pixels(image: Tensor) -> Tensor:
    """Turn squares of four by four pixels into channels about zero: ``[B, 3, H, W]`` -> ``[B, 48, H / 4, W / 4]``."""
    return F.pixel_unshuffle(2.0 * image - 1.0, BLOCK).contiguous(memory_format=torch.channels_last)
