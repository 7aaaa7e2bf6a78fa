"""Rays where people look: the mouth and the eyes are seen at twice the density of the rest of the frame.

Open lips and lids are a few pixels apart, no more than one ray of the whole frame. Each patch of denser rays follows
its place on the head from frame to frame in steps of whole cells and fades out at its border, so that it never shows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from s3dnerf.constraints import Share
from s3dnerf.rendering.rays import Camera, project_points

MOUTH = (0.0, -0.42, 0.5)
"""Where the mouth is in head space."""
EYES = ((-0.26, 0.2, 0.4), (0.26, 0.2, 0.4))
"""Where the eyes are."""
FADE = 3
"""Cells over which a patch fades in."""


@dataclass
class FoveaConfig:
    """Sizes of the denser patches as shares of the frame (height, width); zeros leave a patch out."""

    mouth: tuple[Share, Share] = (0.22, 0.28)
    """Around the mouth."""
    eye: tuple[Share, Share] = (0.11, 0.15)
    """Around each eye."""


@dataclass(frozen=True)
class Fovea:
    """The denser rays of a batch of frames: cells of a fine grid, one rectangle after another."""

    cells: Tensor
    """``[B, N]`` numbers of the cells, row by row of the fine grid."""
    opacity: Tensor
    """``[B, N]``, falling to 0 beyond the border of each rectangle; no more than 1 where several cover a cell."""
    size: int
    """Cells a side of the fine grid."""

    @property
    def points(self) -> Tensor:
        """Image coordinates of the cells, ``[B, N, 2]``."""
        places = torch.stack([self.cells % self.size, self.cells // self.size], dim=-1)
        return (2.0 * places + 1.0) / self.size - 1.0

    def take(self, indices: Tensor) -> Fovea:
        """Return some of the cells, ``indices [B, M]``."""
        return Fovea(self.cells.gather(1, indices), self.opacity.gather(1, indices), self.size)

    def cut(self, canvas: Tensor) -> Tensor:
        """Return ``[B, C, N]``, these cells of ``canvas [B, C, H, W]`` (the fine grid)."""
        return canvas.flatten(2).gather(2, self.cells[:, None].expand(-1, canvas.shape[1], -1))

    def paste(self, values: Tensor, canvas: Tensor) -> Tensor:
        """Lay what these rays saw, ``values [B, C, N]``, over ``canvas``."""
        cells = self.cells[:, None].expand_as(values)
        change = self.opacity[:, None] * (values - self.cut(canvas))
        return canvas.flatten(2).scatter_add(2, cells, change.to(canvas.dtype)).view_as(canvas)


def place_fovea(camera: Camera, config: FoveaConfig, size: int) -> Fovea:
    """Place the patches for a batch of cameras on a fine grid of ``size`` cells a side."""
    places = [(MOUTH, config.mouth), *((eye, config.eye) for eye in EYES)]
    patches = [place_patch(camera, center, shares, size) for center, shares in places if min(shares) > 0]
    if not patches:
        nothing = camera.scale.new_zeros(len(camera.scale), 0)
        return Fovea(nothing.long(), nothing, size)
    cells, opacity = (torch.cat(parts, dim=1) for parts in zip(*patches, strict=True))
    # Where a head turned far brings patches together, they share the cells.
    covered = torch.zeros(len(cells), size * size, device=cells.device).scatter_add(1, cells, opacity)
    return Fovea(cells, opacity / covered.gather(1, cells).clamp(min=1.0), size)


def place_patch(
    camera: Camera, center: tuple[float, float, float], shares: tuple[float, float], size: int
) -> tuple[Tensor, Tensor]:
    """Place a rectangle that covers ``shares`` (height, width) of the frame around ``center`` (head space).

    Returns:
        its cells and their opacity, ``[B, h w]`` both.
    """
    height, width = (min(max(round(share * size), 1), size) for share in shares)
    device = camera.center.device
    target = torch.tensor(center, device=device).expand(len(camera.center), 1, 3)
    u, v = project_points(target, camera)[:, 0, :2].unbind(-1)
    left, top = (
        ((place + 1.0) / 2.0 * size - 0.5 * extent).round().long().clamp(0, size - extent)
        for place, extent in ((u, width), (v, height))
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
