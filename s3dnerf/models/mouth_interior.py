"""The inside of the mouth: what is seen between lips that part.

A portrait with closed lips does not show it, and no warp of such a portrait can. This small network paints it, pixel by
pixel, from where between the lips a pixel looks and from the light on the portrait's skin.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from s3dnerf.face.points import KEPT_POINTS, LIPS_INNER, LIPS_OUTER
from s3dnerf.face.regions import JAW_AND_CHEEKS, region_of_point
from s3dnerf.models.layers import encode_sine, make_mlp
from s3dnerf.rendering.mouth import MouthOpening
from s3dnerf.rendering.rays import Camera, project_points

SKIN = torch.from_numpy((region_of_point()[KEPT_POINTS] == JAW_AND_CHEEKS).nonzero()[0])
"""Rows of the kept landmarks on plain skin."""
OUTER_LIPS, INNER_LIPS = (torch.from_numpy(KEPT_POINTS.searchsorted(rows)) for rows in (LIPS_OUTER, LIPS_INNER))
"""Rows of the kept landmarks on both outlines of the lips, in order around them."""
LOWER_LIP, UPPER_LIP = 5, 15
"""Places of their middles in the inner outline."""
DARKEST_SKIN = 0.05
"""Level below which colors are no longer compared with the skin's."""
STRETCH = (1.5, 4.0)
"""How many times the portrait's opening is stretched before painting begins, and when nothing of it is left."""
THINNEST = 0.005
"""Height of the opening, head units, below which lips are closed and nothing between them is seen."""


@dataclass
class MouthInteriorConfig:
    """Sizes of the network."""

    hidden: int = 48
    """Width of its layers."""
    frequencies: int = 3
    """Octaves of sines for places."""
    types: int = 8
    """Types of mouths that it tells apart: more or less teeth, tongue, darkness."""
    type_width: int = 8
    """Width of the code of a type."""


@dataclass(frozen=True)
class MouthTones:
    """What a portrait says about the light on its mouth and about what is in it."""

    skin: Tensor
    """``[B, 3]`` mean color of cheeks and chin."""
    lips: Tensor
    """``[B, 3]`` mean color of the lips."""
    opening: Tensor
    """``[B]`` height of the opening between the lips, head units."""


def measure_tones(image: Tensor, landmarks: Tensor, camera: Camera) -> MouthTones:
    """Measure portraits ``image [B, 3, S, S]`` with ``landmarks [B, P, 3]`` (head space)."""
    on_lips = (landmarks[:, OUTER_LIPS] + landmarks[:, INNER_LIPS]) / 2
    skin, lips = (
        F.grid_sample(image.float(), project_points(points, camera)[:, None, :, :2], align_corners=False).mean((2, 3))
        for points in (landmarks[:, SKIN], on_lips)
    )
    inner = landmarks[:, INNER_LIPS, 1]
    return MouthTones(skin.clamp(min=DARKEST_SKIN), lips, inner[:, UPPER_LIP] - inner[:, LOWER_LIP])


class MouthInterior(nn.Module):
    """A network from places between the lips to colors."""

    def __init__(self, config: MouthInteriorConfig) -> None:
        super().__init__()
        self.frequencies = config.frequencies
        inputs = 2 * (1 + 2 * config.frequencies) + 2 + 3 + 3 + config.type_width
        self.types = nn.Parameter(0.5 * torch.randn(config.types, config.type_width))
        self.register_buffer("shown", torch.zeros((), dtype=torch.long))
        self.network = make_mlp(inputs, config.hidden, config.hidden, 3)

    def forward(self, opening: MouthOpening, tones: MouthTones, code: Tensor | None = None) -> Tensor:
        """Return the colors ``[B, 3, N]`` of what is seen at ``N`` places, in mouths of the type ``code``."""
        code = self.types[self.shown] if code is None else code
        sizes = torch.stack([opening.width, 8.0 * opening.height, 8.0 * tones.opening], dim=-1)
        per_frame = torch.cat([sizes, tones.lips / tones.skin, code.expand(len(sizes), -1)], dim=-1)
        places = torch.stack([opening.across, 8.0 * opening.below_anchor], dim=-1)
        inputs = [
            encode_sine(places, self.frequencies),
            8.0 * torch.stack([opening.below_upper, opening.above_lower], dim=-1),
            per_frame[:, None].expand(-1, places.shape[1], -1),
        ]
        # Relative to the skin, so that less light on the face is less light in the mouth. It starts dark.
        relative = 3.0 * torch.sigmoid(self.network(torch.cat(inputs, dim=-1)).float() - 1.5)
        return tones.skin[..., None] * relative.transpose(1, 2)


def measure_need(opening: Tensor, portrait: Tensor) -> Tensor:
    """Say how much of a mouth has to be painted: none of it where the portrait shows it, all where that is a mere slit.

    Args:
        opening: ``[B]`` height of the opening in the frame, head units.
        portrait: ``[B]`` the same in the portrait.

    Returns ``[B]`` in [0, 1].
    """
    least, most = STRETCH
    stretched = opening.clamp(min=0.0) / portrait.clamp(min=THINNEST)
    share = ((stretched - least) / (most - least)).clamp(0.0, 1.0)
    return share.square() * (3.0 - 2.0 * share)
