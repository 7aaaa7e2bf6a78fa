"""Super-resolution (S3D-NeRF, section 3.4): adds outer face, texture and background to the rendered inner face.

The volume renderer also returns the position *in the source* of each ray. The source is warped by this flow at full
resolution, and the network corrects the result by a residual that is initially zero. Where the residual is small, the
detail of the source is kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from s3dnerf.constraints import NonNegativeInt, PositiveInt, Width
from s3dnerf.models.layers import ResidualBlock, make_convolution, zero_initialize
from s3dnerf.ops.add_residual import add_residual_to_source
from s3dnerf.ops.upsample_add import add_upsampled

MAX_BLOCKS = 64
"""Largest plausible number of residual blocks in a row."""


@dataclass
class SuperResolutionConfig:
    """Widths and depths of the U-Net, at 1/2, 1/4 and 1/8 of the frame resolution."""

    widths: tuple[Width, Width, Width] = (32, 64, 64)
    """Channels at each resolution."""
    blocks: tuple[
        Annotated[NonNegativeInt, Field(le=MAX_BLOCKS)],
        Annotated[PositiveInt, Field(le=MAX_BLOCKS)],
        Annotated[PositiveInt, Field(le=MAX_BLOCKS)],
    ] = (1, 1, 2)
    """Residual blocks at each resolution; at the first two, as many before the coarser ones as after them."""


class SuperResolution(nn.Module):
    """A small U-Net at half the frame resolution with a pixel-shuffle head."""

    def __init__(self, config: SuperResolutionConfig, rendered: int, detail: int) -> None:
        super().__init__()
        fine, middle, coarse = config.widths
        fine_blocks, middle_blocks, coarse_blocks = config.blocks
        self.without_fine_blocks = fine_blocks == 0
        self.enter = make_convolution(12 + detail + rendered, fine)
        self.fine_in = make_blocks(fine, fine_blocks)
        self.down_middle = make_convolution(fine, middle, stride=2)
        self.enter_rendered = make_convolution(rendered, middle)
        self.middle_in = make_blocks(middle, middle_blocks)
        self.down_coarse = make_convolution(middle, coarse, stride=2)
        self.coarse = nn.Sequential(*(ResidualBlock(coarse) for _ in range(coarse_blocks)))
        self.up_middle = make_convolution(coarse, middle)
        self.middle_out = make_blocks(middle, middle_blocks)
        self.up_fine = make_convolution(middle, fine)
        self.fine_out = make_blocks(fine, fine_blocks)
        self.leave = zero_initialize(make_convolution(fine, 12))

    def forward(self, rendered: Tensor, inputs: Tensor, warped: Tensor, detail_scale: float = 1.0) -> Tensor:
        """Refine a frame.

        Args:
            rendered: ``[B, C, h, w]`` volume-rendered channels.
            inputs: ``[B, 12 + D + C, 2h, 2w]``, channels-last, from
                :func:`s3dnerf.ops.warp_source.warp_source_image`: the warped source in 2 x 2 pixel blocks, its warped
                finest features, and the volume-rendered channels, which are sharper where rays are denser.
            warped: ``[B, 3, 4h, 4w]`` the source warped to the frame.
            detail_scale: fraction of the source's own detail that is kept where the residual is small.

        Returns:
            ``[B, 3, 4h, 4w]``, approximately in [0, 1], not clamped.
        """
        # Without blocks, which activate their inputs, the outer convolutions would be linear.
        activate = self.without_fine_blocks
        fine = self.fine_in(self.enter(inputs, activate_output=activate))
        middle = self.middle_in(self.enter_rendered(rendered, addend=self.down_middle(fine)))
        coarse = self.coarse(self.down_coarse(middle))
        middle = self.middle_out(add_upsampled(self.up_middle(coarse), middle))
        fine = self.fine_out(add_upsampled(self.up_fine(middle), fine))
        return add_residual_to_source(warped, self.leave(fine, activate_input=activate), detail_scale)


def make_blocks(channels: int, count: int) -> nn.Module:
    """Return a sequence of residual blocks. One alone is not wrapped, as in the shipped weights."""
    blocks = [ResidualBlock(channels) for _ in range(count)]
    return blocks[0] if count == 1 else nn.Sequential(*blocks)
