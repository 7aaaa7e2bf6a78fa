"""Hierarchical facial appearance encoder (S3D-NeRF, section 3.2): source -> tri-planes at several scales."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from s3dnerf.constraints import Width
from s3dnerf.models.layers import ResidualBlock, make_convolution
from s3dnerf.ops.image import make_pixel_grid
from s3dnerf.structures import Camera


@dataclass
class AppearanceEncoderConfig:
    """Widths of the feature pyramid, whose levels are at 1/2, 1/4, 1/8 and 1/16 of the source resolution."""

    widths: tuple[Width, Width, Width, Width] = (16, 40, 64, 96)
    """Channels of the maps D_0 ... D_3."""
    plane_channels: Width = 12
    """Channels per plane of each tri-plane."""


@dataclass(frozen=True)
class Appearance:
    """Appearance features of a source."""

    planes: list[Tensor]
    """Tri-planes ``[B, 3, C, h, h]``, coarse (1/16) to fine (1/4); xy planes are aligned with the source's pixels."""
    detail: Tensor
    """``[B, C_0, H/2, W/2]`` finest feature map, for super-resolution."""
    context: Tensor
    """``[B, C_3, H/16, W/16]`` coarsest feature map, from which face regions are aggregated."""


class HierarchicalFacialAppearanceEncoder(nn.Module):
    """A feature pyramid with a path down (D_0 ... D_3) and up (F_3 ... F_1). Each F is reshaped into three planes."""

    def __init__(self, config: AppearanceEncoderConfig) -> None:
        super().__init__()
        self.config = config
        widths = config.widths
        self.stem = make_convolution(3 + 3, widths[0], stride=2)
        self.down = nn.ModuleList(
            nn.Sequential(nn.SiLU(), make_convolution(inputs, outputs, stride=2), ResidualBlock(outputs))
            for inputs, outputs in pairwise(widths)
        )
        self.up = nn.ModuleList(
            nn.Sequential(make_convolution(coarse + fine, fine), ResidualBlock(fine))
            for coarse, fine in ((widths[3], widths[2]), (widths[2], widths[1]))
        )
        self.to_planes = nn.ModuleList(
            make_convolution(width, 3 * config.plane_channels, kernel=1) for width in (widths[3], widths[2], widths[1])
        )

    def forward(self, image: Tensor, camera: Camera) -> Appearance:
        """Encode sources ``image [B, 3, H, W]`` in [0, 1], taken by ``camera``."""
        x = torch.cat([2.0 * image - 1.0, self.locate_pixels(image, camera)], dim=1)
        # Convolutions are 1.5 times as fast in channels-last format.
        maps = [self.stem(x.contiguous(memory_format=torch.channels_last))]
        for block in self.down:
            maps.append(block(maps[-1]))
        pyramid = [maps[3]]
        for block, skip in zip(self.up, (maps[2], maps[1]), strict=True):
            above = F.interpolate(pyramid[-1], scale_factor=2, mode="bilinear", align_corners=False)
            pyramid.append(block(torch.cat([above, skip], dim=1)))
        planes = [
            head(level).unflatten(1, (3, self.config.plane_channels))
            for head, level in zip(self.to_planes, pyramid, strict=True)
        ]
        return Appearance(planes=planes, detail=maps[0], context=maps[3])

    @staticmethod
    def locate_pixels(image: Tensor, camera: Camera) -> Tensor:
        """Return the position of each pixel on the plane through the head's origin, in head space: ``[B, 3, H, W]``."""
        height, width = image.shape[-2:]
        grid = make_pixel_grid(height, width, image.device)
        offset = (grid - camera.center[:, None, None]) / camera.scale[:, None, None, None]
        on_plane = torch.stack([offset[..., 0], -offset[..., 1]], dim=-1)
        return torch.einsum("bji,bhwj->bihw", camera.rotation[:, :2], on_plane)
