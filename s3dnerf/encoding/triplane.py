"""Tri-planes: a volume of features stored as three planes (Chan et al., 2022)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

PLANE_AXES = ((0, 1), (1, 2), (0, 2))
"""The coordinates that address each plane: xy, yz, xz. The first of a pair runs along the plane's width."""


def sample_triplane(planes: Tensor, positions: Tensor) -> Tensor:
    """Read a tri-plane bilinearly and average over its planes.

    Args:
        planes: ``[B, 3, C, H, W]``, in the order of :data:`PLANE_AXES`; y runs from top to bottom as in images.
        positions: ``[B, N, 3]`` in [-1, 1]; pixel centers as in ``grid_sample(align_corners=False)``. Positions outside
            read the border.

    Returns:
        ``[B, N, C]``. Differentiable in both arguments.
    """
    batch, count = planes.shape[:2]
    coordinates = torch.stack([positions[..., axes] for axes in map(list, PLANE_AXES)], dim=1)  # [B, 3, N, 2]
    sampled = F.grid_sample(
        planes.flatten(0, 1).float(),
        coordinates.flatten(0, 1).unsqueeze(1).float(),
        mode="bilinear",
        padding_mode="border",
        align_corners=False,
    )  # [B * 3, C, 1, N]
    return sampled.reshape(batch, count, -1, positions.shape[1]).mean(dim=1).transpose(1, 2)
