"""Canonical radiance field (S3D-NeRF, section 3.4): tri-plane features -> density, color and features."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from s3dnerf.models.layers import encode_sine, make_mlp


@dataclass
class RadianceFieldConfig:
    """Sizes of the decoder."""

    hidden: int = 64
    """Width of its layers."""
    features: int = 16
    """Channels handed to super-resolution beside color."""


@dataclass(frozen=True)
class Radiance:
    """The field at some samples."""

    density: Tensor
    """``[..., S]`` per head unit."""
    color: Tensor
    """``[..., S, 3]`` in [0, 1]."""
    features: Tensor
    """``[..., S, features]``."""


class RadianceField(nn.Module):
    """Two layers over appearance, ambient coordinates and the *undeformed* position.

    All points between open lips warp to the one line where the portrait's lips meet: only the undeformed position and
    the ambient coordinates tell them apart.
    """

    def __init__(self, config: RadianceFieldConfig, plane_features: int, ambient: int) -> None:
        super().__init__()
        self.frequencies = 3
        self.network = make_mlp(
            plane_features + ambient + 3 + 3 * (1 + 2 * self.frequencies),
            config.hidden,
            config.hidden,
            1 + 3 + config.features,
        )

    def forward(self, appearance: Tensor, ambient: Tensor, positions: Tensor, offsets: Tensor) -> Radiance:
        """All arguments are ``[..., S, channels]``: tri-plane features at the warped samples, ambient coordinates,
        undeformed head-space positions and the offsets that warp them."""
        place = encode_sine(positions, self.frequencies)
        result = self.network(torch.cat([appearance, ambient, 4.0 * offsets, place], dim=-1)).float()
        density = 4.0 * F.softplus(result[..., 0])
        return Radiance(density, result[..., 1:4].sigmoid(), result[..., 4:])
