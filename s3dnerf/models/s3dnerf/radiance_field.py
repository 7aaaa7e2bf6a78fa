"""Canonical radiance field (S3D-NeRF, section 3.4): tri-plane features -> density, color and features."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from s3dnerf.constraints import Width
from s3dnerf.models.layers import encode_sine, make_mlp
from s3dnerf.ops.field import DENSITY_GAIN, OFFSET_GAIN


@dataclass
class RadianceFieldConfig:
    """Sizes of the network."""

    hidden: Width = 64
    """Width of its layers."""
    features: Width = 16
    """Channels passed to super-resolution in addition to color."""


class RadianceField(nn.Module):
    """Two hidden layers over appearance, ambient coordinates, offsets and the *undeformed* position.

    All points between open lips deform to the line where the lips of the source meet. Only the undeformed position and
    the ambient coordinates distinguish them.

    For rendering, :mod:`s3dnerf.ops.field` computes the same function fused with deformation and compositing.
    """

    def __init__(self, config: RadianceFieldConfig, plane_features: int, ambient: int) -> None:
        super().__init__()
        self.frequencies = 3
        inputs = plane_features + ambient + 3 + 3 * (1 + 2 * self.frequencies)
        self.network = make_mlp(inputs, config.hidden, config.hidden, 1 + 3 + config.features)

    @property
    def layers(self) -> list[tuple[Tensor, Tensor]]:
        """Weight and bias of each layer."""
        return [(layer.weight, layer.bias) for layer in self.network if isinstance(layer, nn.Linear)]

    def forward(
        self, features: Tensor, ambient: Tensor, offsets: Tensor, points: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Evaluate the field.

        Args:
            features: ``[..., F]`` tri-plane features at the deformed points.
            ambient: ``[..., A]`` ambient coordinates.
            offsets: ``[..., 3]`` offsets of the deformation, head units.
            points: ``[..., 3]`` points before the deformation, head space.

        Returns:
            Non-negative density ``[...]``, color ``[..., 3]`` in [0, 1] and features ``[..., C]``.
        """
        inputs = torch.cat([features, ambient, OFFSET_GAIN * offsets, encode_sine(points, self.frequencies)], dim=-1)
        # Autocast applies to the matrix products; compositing runs in float32.
        density, color, others = self.network(inputs).to(points.dtype).split([1, 3, self.width], dim=-1)
        return DENSITY_GAIN * F.softplus(density[..., 0]), color.sigmoid(), others

    @property
    def width(self) -> int:
        """Number of features."""
        return len(self.layers[-1][1]) - 4
