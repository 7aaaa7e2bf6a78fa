"""Foveated rays: mouth and eyes are rendered at twice the density of the rest of the frame.

Open lips and lids are a few pixels apart, no more than the spacing of the rays of the whole frame. Each patch of denser
rays follows its position on the head in steps of whole cells. It fades out at its border, which hides the seam.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from s3dnerf.ops.constant import constant
from s3dnerf.rendering.rays import project_points
from s3dnerf.structures import Camera

MOUTH = (0.0, -0.42, 0.5)
"""Center of the mouth, head space."""
EYES = ((-0.26, 0.2, 0.4), (0.26, 0.2, 0.4))
"""Centers of the eyes, head space."""
MOUTH_SIZE, EYE_SIZE = (0.22, 0.28), (0.11, 0.15)
"""Height and width of the patches as fractions of the frame."""
FADE = 3
"""Cells over which a patch fades in."""


@dataclass(frozen=True)
class FoveatedRays:
    """The denser rays of a batch of frames: cells of a fine grid, rectangle by rectangle."""

    cells: Tensor
    """``[B, N]`` indices of the cells, row by row of the fine grid."""
    opacity: Tensor
    """``[B, N]``, falling to 0 beyond the border of each rectangle. Where rectangles overlap, the sum is at most 1."""
    size: int
    """Cells per side of the fine grid."""

    @property
    def points(self) -> Tensor:
        """Image coordinates of the cells, ``[B, N, 2]``."""
        places = torch.stack([self.cells % self.size, self.cells // self.size], dim=-1)
        return (2.0 * places + 1.0) / self.size - 1.0

    def select(self, indices: Tensor) -> FoveatedRays:
        """Select cells by ``indices [B, M]``."""
        return FoveatedRays(self.cells.gather(1, indices), self.opacity.gather(1, indices), self.size)

    def gather(self, canvas: Tensor) -> Tensor:
        """Gather these cells of ``canvas [B, C, H, W]`` (the fine grid), ``[B, C, N]``."""
        return canvas.flatten(2).gather(2, self.cells[:, None].expand(-1, canvas.shape[1], -1))

    def paste(self, values: Tensor, canvas: Tensor) -> Tensor:
        """Blend ``values [B, C, N]`` of these rays over ``canvas``."""
        cells = self.cells[:, None].expand_as(values)
        change = self.opacity[:, None] * (values - self.gather(canvas))
        return canvas.flatten(2).scatter_add(2, cells, change.to(canvas.dtype)).view_as(canvas)


def place_foveated_rays(
    camera: Camera,
    size: int,
    mouth_size: tuple[float, float] = MOUTH_SIZE,
    eye_size: tuple[float, float] = EYE_SIZE,
) -> FoveatedRays:
    """Place the patches for a batch of cameras on a fine grid of ``size`` cells per side.

    ``mouth_size`` and ``eye_size`` are height and width as fractions of the frame; zeros omit a patch.
    """
    places = [(MOUTH, mouth_size), *((eye, eye_size) for eye in EYES)]
    patches = [place_patch(camera, center, extent, size) for center, extent in places if min(extent) > 0]
    if not patches:
        nothing = camera.scale.new_zeros(len(camera.scale), 0)
        return FoveatedRays(nothing.long(), nothing, size)
    if len(patches) == 1:
        return FoveatedRays(*patches[0], size)
    cells, opacity = (torch.cat(parts, dim=1) for parts in zip(*patches, strict=True))
    # Patches overlap on a head that is turned far. They share the overlapping cells.
    covered = torch.zeros(len(cells), size * size, device=cells.device).scatter_add(1, cells, opacity)
    return FoveatedRays(cells, opacity / covered.gather(1, cells).clamp(min=1.0), size)


def place_patch(
    camera: Camera, center: tuple[float, float, float], extent: tuple[float, float], size: int
) -> tuple[Tensor, Tensor]:
    """Place a rectangle of ``extent`` (height, width, as fractions of the frame) around ``center`` (head space).

    Returns:
        The cells and their opacity, both ``[B, h w]``.
    """
    height, width = (min(max(round(fraction * size), 1), size) for fraction in extent)
    device = camera.center.device
    target = constant(center, device).expand(len(camera.center), 1, 3)
    u, v = project_points(target, camera)[:, 0, :2].unbind(-1)
    left, top = (
        ((place + 1.0) / 2.0 * size - 0.5 * side).round().long().clamp(0, size - side)
        for place, side in ((u, width), (v, height))
    )
    rows, columns = torch.arange(height, device=device), torch.arange(width, device=device)
    cells = (top[:, None, None] + rows[:, None]) * size + left[:, None, None] + columns
    opacity = fade(height, device)[:, None] * fade(width, device)
    return cells.flatten(1), opacity.flatten().expand(len(cells), -1)


def fade(count: int, device: torch.device) -> Tensor:
    """Return ``[count]`` weights that rise to 1 within ``FADE`` cells of both ends."""
    steps = torch.arange(count, device=device)
    distance = torch.minimum(steps, count - 1 - steps)
    return ((distance + 1.0) / (FADE + 1.0)).clamp(max=1.0)
