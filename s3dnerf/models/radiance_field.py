"""Canonical radiance field (S3D-NeRF, section 3.4): the network from tri-plane features to density, color and features.

Rays go through deformation, tri-planes, this network and compositing in one operator: see
:func:`s3dnerf.rendering.field.see_field`.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from s3dnerf.constraints import Width
from s3dnerf.models.layers import make_mlp


@dataclass
class RadianceFieldConfig:
    """Sizes of the decoder."""

    hidden: Width = 64
    """Width of its layers."""
    features: Width = 16
    """Channels handed to super-resolution beside color."""


class RadianceField(nn.Module):
    """Two hidden layers over appearance, ambient coordinates, offsets and the *undeformed* position.

    All points between open lips warp to the one line where the portrait's lips meet: only the undeformed position and
    the ambient coordinates tell them apart.
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
