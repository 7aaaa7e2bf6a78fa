"""The lattice of head space on which the deformation field is evaluated once per frame."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from s3dnerf.ops import mark_cells as kernel
from s3dnerf.ops.constant import constant

CENTER = (0.0, -0.38, 0.45)
"""Point where the lattice is finest, in head units: the mouth."""
REACH = (1.4, 1.5, 1.0)
"""Half extent of the lattice around the center; positions outside are clamped to the border."""
FOCUS = (0.35, 0.4, 1.0)
"""Distance from the center, in head units, within which the points are about evenly spaced."""


class Lattice(nn.Module):
    """Points of head space, dense around the mouth, at which the field is evaluated and interpolated trilinearly."""

    points: Tensor

    def __init__(
        self,
        size: tuple[int, int, int],
        center: tuple[float, float, float] = CENTER,
        reach: tuple[float, float, float] = REACH,
        focus: tuple[float, float, float] = FOCUS,
    ) -> None:
        super().__init__()
        self.size, self.center, self.focus = size, center, focus
        width, height, depth = (math.asinh(far / near) for far, near in zip(reach, focus, strict=True))
        self.extent = (width, height, depth)
        axes = [torch.linspace(-1.0, 1.0, points) for points in size]
        unit = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).permute(2, 1, 0, 3)
        points = torch.tensor(center) + torch.tensor(focus) * torch.sinh(unit * torch.tensor(self.extent))
        self.register_buffer("points", points.reshape(-1, 3), persistent=False)

    def find_cells(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Find the lattice cells around head-space ``points [B, N, 3]``. Points outside are clamped to the border.

        Returns:
            The indices of the corners, ``[B, N, 8]``, and their interpolation weights, which sum to one.
        """
        center, focus, extent, size = (
            constant(part, points.device, points.dtype) for part in (self.center, self.focus, self.extent, self.size)
        )
        last = size - 1.0
        place = 0.5 * last * (torch.asinh((points - center) / focus) / extent + 1.0)
        low = place.floor().clamp(min=0.0).minimum(last - 1.0)
        weight = (place - low).clamp(0.0, 1.0)[..., None, :]
        corner = torch.cartesian_prod(*[torch.arange(2, device=points.device)] * 3)
        weights = torch.where(corner.bool(), weight, 1.0 - weight).prod(dim=-1)
        x, y, z = (low.long()[..., None, :] + corner).unbind(-1)
        return (z * self.size[1] + y) * self.size[0] + x, weights

    def mark_cells(self, positions: Tensor) -> Tensor | None:
        """Return which points interpolation at head-space ``positions [..., 3]`` reads, ``bool [points]``.

        None if no kernel finds them: then marking them would take longer than evaluating all points.
        """
        if not kernel.has_kernel(positions):
            return None
        return kernel.mark_cells(positions, list(self.size), [*self.center, *self.focus, *self.extent])

    def mark_box(self, low: Tensor, high: Tensor) -> Tensor:
        """Return which points interpolation within a box reads, ``bool [points]``.

        Args:
            low: ``[3]`` corner of the box, head units.
            high: ``[3]`` the opposite corner.
        """
        # A point is read if the cells around it, up to the points next to it, reach into the box.
        points = self.points.view(*self.size[::-1], 3)
        x, y, z = (
            (_next(line) >= low[axis]) & (_previous(line) <= high[axis])
            for axis, line in enumerate((points[0, 0, :, 0], points[0, :, 0, 1], points[:, 0, 0, 2]))
        )
        return (z[:, None, None] & y[:, None] & x).flatten()

    def grow_vertically(self, marks: Tensor) -> Tensor:
        """Return marks ``bool [points]`` with those of the points above and below."""
        column = marks.view(self.size[::-1])
        grown = column.clone()
        grown[:, 1:] |= column[:, :-1]
        grown[:, :-1] |= column[:, 1:]
        return grown.flatten()

    @property
    def heights(self) -> Tensor:
        """``[size of y]`` heights of the points."""
        return self.points[:, 1].view(self.size[::-1])[0, :, 0]


def _next(line: Tensor) -> Tensor:
    """Return, for each coordinate of an axis, the next one. The cells at the end reach to infinity."""
    return torch.cat([line[1:], line.new_tensor([math.inf])])


def _previous(line: Tensor) -> Tensor:
    return torch.cat([line.new_tensor([-math.inf]), line[:-1]])
