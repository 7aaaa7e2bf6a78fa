"""Super-resolution (S3D-NeRF, section 3.4): adds outer face, texture and background to the rendered inner face.

The volume renderer also returns the position *in the source* of each ray. The source is warped by this flow at full
resolution, and the network corrects the result by a residual that is initially zero. Where the residual is small, the
detail of the source is kept.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from s3dnerf.constraints import Width
from s3dnerf.models.layers import ResidualBlock, make_convolution, zero_initialize
from s3dnerf.ops.add_residual import add_residual_to_source
from s3dnerf.ops.upsample_add import add_upsampled


@dataclass
class SuperResolutionConfig:
    """Widths of the U-Net, at 1/2, 1/4 and 1/8 of the frame resolution."""

    widths: tuple[Width, Width, Width] = (32, 64, 64)
    """Channels at each resolution."""


class SuperResolution(nn.Module):
    """A small U-Net at half the frame resolution with a pixel-shuffle head."""

    def __init__(self, config: SuperResolutionConfig, rendered: int, detail: int) -> None:
        super().__init__()
        fine, middle, coarse = config.widths
        self.enter = make_convolution(12 + detail + rendered, fine)
        self.fine_in = ResidualBlock(fine)
        self.down_middle = make_convolution(fine, middle, stride=2)
        self.enter_rendered = make_convolution(rendered, middle)
        self.middle_in = ResidualBlock(middle)
        self.down_coarse = make_convolution(middle, coarse, stride=2)
        self.coarse = nn.Sequential(ResidualBlock(coarse), ResidualBlock(coarse))
        self.up_middle = make_convolution(coarse, middle)
        self.middle_out = ResidualBlock(middle)
        self.up_fine = make_convolution(middle, fine)
        self.fine_out = ResidualBlock(fine)
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
        fine = self.fine_in(self.enter(inputs))
        middle = self.middle_in(self.enter_rendered(rendered, addend=self.down_middle(fine)))
        coarse = self.coarse(self.down_coarse(middle))
        middle = self.middle_out(add_upsampled(self.up_middle(coarse), middle))
        fine = self.fine_out(add_upsampled(self.up_fine(middle), fine))
        return add_residual_to_source(warped, self.leave(fine), detail_scale)
