"""Resampling and rounding of images in plain PyTorch; the reference implementations and the renderer share it."""

from __future__ import annotations

from typing import Literal

import cv2
import torch
from torch import Tensor
from torch.nn import functional as F


def make_pixel_grid(height: int, width: int, device: torch.device | None = None) -> Tensor:
    """Return the image coordinates of all pixel centers, ``[height, width, 2]`` in (u, v) order.

    Pixel ``i`` of ``N`` has its center at ``(2 i + 1) / N - 1``.
    """
    u = (2 * torch.arange(width, device=device) + 1) / width - 1
    v = (2 * torch.arange(height, device=device) + 1) / height - 1
    return torch.stack(torch.meshgrid(v, u, indexing="ij")[::-1], dim=-1)


def warp_image(image: Tensor, flow: Tensor, mode: Literal["bilinear", "bicubic"] = "bilinear") -> Tensor:
    """Sample ``image [B, C, H, W]`` at the pixel centers plus ``flow [B, 2, H, W]`` (image coordinates).

    The border is replicated. Returns float32 (float64 for an image in float64).
    """
    dtype = torch.promote_types(image.dtype, torch.float32)
    height, width = flow.shape[-2:]
    grid = make_pixel_grid(height, width, flow.device).to(dtype) + flow.permute(0, 2, 3, 1).to(dtype)
    return F.grid_sample(image.to(dtype), grid, mode, padding_mode="border", align_corners=False)


def upsample(x: Tensor, factor: int) -> Tensor:
    """Upsample ``[B, C, h, w]`` bilinearly by a whole factor."""
    return F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)


def downsample(x: Tensor, factor: int) -> Tensor:
    """Average ``[B, C, H, W]`` over squares of ``factor`` pixels."""
    return F.avg_pool2d(x, factor)


def to_bytes(images: Tensor) -> Tensor:
    """Round ``images [B, C, H, W]`` in [0, 1] to ``uint8 [B, H, W, C]``, dense on a CPU. Not differentiable."""
    planes = images.detach().mul(255.0).add_(0.5).to(torch.uint8)
    if planes.device.type != "cpu":
        return planes.permute(0, 2, 3, 1)
    result = planes.new_empty(*planes.shape[:1], *planes.shape[2:], planes.shape[1])
    for frame, channels in zip(result, planes, strict=True):
        # OpenCV interleaves them ten times as fast as PyTorch.
        cv2.merge(list(channels.numpy()), frame.numpy())
    return result


def measure_psnr(a: Tensor, b: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio in dB of each pair of images ``[B, 3, S, S]`` in [0, 1]."""
    return -10.0 * (a - b).square().mean(dim=(1, 2, 3)).clamp(min=1e-10).log10()
