"""The inside of the mouth: what is seen between lips that part.

A portrait with closed lips does not show it, and no warp of such a portrait can. What a portrait shows of it stays as
it is. This small network paints the rest, pixel by pixel, from where between the lips a pixel looks, from the light on
the portrait's skin and from what the portrait shows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from s3dnerf.constraints import NonNegativeInt, Width
from s3dnerf.face.points import KEPT_POINTS, LIPS_INNER, LIPS_OUTER
from s3dnerf.face.regions import JAW_AND_CHEEKS, region_of_point
from s3dnerf.models.layers import encode_sine, make_mlp
from s3dnerf.rendering.mouth import LOWER_LIP, UPPER_EDGE, UPPER_LIP, MouthOpening
from s3dnerf.rendering.rays import Camera, project_points

SKIN = torch.from_numpy((region_of_point()[KEPT_POINTS] == JAW_AND_CHEEKS).nonzero()[0])
"""Rows of the kept landmarks on plain skin."""
OUTER_LIPS, INNER_LIPS = (torch.from_numpy(KEPT_POINTS.searchsorted(rows)) for rows in (LIPS_OUTER, LIPS_INNER))
"""Rows of the kept landmarks on both outlines of the lips, in order around them."""
DARKEST_SKIN = 0.05
"""Level below which colors are no longer compared with the skin's."""
STRETCH = (1.0, 1.5)
"""How many times the portrait's opening is as high before anything is put between the lips, and when nothing is left of
what a warp makes of it."""
BELOW_TEETH = 0.7
"""Light below the teeth that a portrait shows, beside that in the mouths learned from: a mean is lighter than any mouth
is deep, and what is as light as lips looks like lips."""
BEHIND_CLOSED_LIPS = 0.45
"""Mean light of the inside, beside that of the skin, that a portrait with closed lips gets at most. Real insides have
0.63 on average, their darkest fifth 0.42. What was learned is 0.73 to 0.81: nearly as light as lips, so that lips do
not seem to have parted."""
THINNEST = 0.005
"""Height of the opening, head units, below which lips are closed and nothing between them is seen."""
PARTED = 0.02
"""Height of the opening, head units, from which on pixels are seen that show nothing but the mouth's inside."""
TOOTHED = 0.05
"""Height of the portrait's opening, head units, from which on it shows teeth, not only a gap."""
DEPTHS = (0.25, 0.5, 0.75)
"""Where, from the upper to the lower lip, the inside of a portrait's mouth is looked at."""


@dataclass
class MouthInteriorConfig:
    """Sizes of the network."""

    hidden: Width = 48
    """Width of its layers."""
    frequencies: Annotated[NonNegativeInt, Field(le=16)] = 3
    """Octaves of sines for places."""
    types: Width = 8
    """Types of mouths that it tells apart: more or less teeth, tongue, darkness."""
    type_width: Width = 8
    """Width of the code of a type."""


@dataclass(frozen=True)
class MouthTones:
    """What a portrait says about the light on its mouth and about what is in it."""

    skin: Tensor
    """``[B, 3]`` mean color of cheeks and chin."""
    lips: Tensor
    """``[B, 3]`` mean color of the lips."""
    inside: Tensor
    """``[B, 3]`` mean color of what is between the lips; where they are closed, of their seam."""
    opening: Tensor
    """``[B]`` height of the opening between the lips, head units."""


def measure_tones(image: Tensor, landmarks: Tensor, camera: Camera) -> MouthTones:
    """Measure portraits ``image [B, 3, S, S]`` with ``landmarks [B, P, 3]`` (head space)."""
    inner = landmarks[:, INNER_LIPS]
    on_lips = (landmarks[:, OUTER_LIPS] + inner) / 2
    upper, lower = inner[:, UPPER_EDGE[1:-1]], inner[:, 1:10]
    between = torch.cat([upper.lerp(lower, depth) for depth in DEPTHS], dim=1)
    skin, lips, inside = (
        F.grid_sample(image.float(), project_points(points, camera)[:, None, :, :2], align_corners=False).mean((2, 3))
        for points in (landmarks[:, SKIN], on_lips, between)
    )
    return MouthTones(skin.clamp(min=DARKEST_SKIN), lips, inside, measure_opening(inner))


def measure_opening(outline: Tensor) -> Tensor:
    """Height ``[B]`` in the middle of the opening within the lips' inner edge ``outline [B, 20, 3]`` (head space)."""
    return outline[:, UPPER_LIP, 1] - outline[:, LOWER_LIP, 1]


class MouthInterior(nn.Module):
    """A network from places between the lips to colors."""

    def __init__(self, config: MouthInteriorConfig) -> None:
        super().__init__()
        self.frequencies = config.frequencies
        inputs = 2 * (1 + 2 * config.frequencies) + 2 + 3 + 6 + config.type_width
        self.types = nn.Parameter(0.5 * torch.randn(config.types, config.type_width))
        # Shown where the portrait shows no teeth, and below the teeth that it shows.
        self.register_buffer("shown", torch.zeros(2, dtype=torch.long))
        self.network = make_mlp(inputs, config.hidden, config.hidden, 3)

    def forward(self, opening: MouthOpening, tones: MouthTones, code: Tensor | None = None) -> Tensor:
        """Return the colors ``[B, 3, N]`` of what is seen at ``N`` places.

        In mouths of the type ``code [width]``, or else of the types that strangers are shown.
        """
        if code is None:
            toothed = tones.opening > TOOTHED
            colors = self(opening, tones, self.types[self.shown[toothed.long()]])
            light = torch.where(toothed, BELOW_TEETH, measure_shade(colors, opening, tones))
            return light[:, None, None] * colors
        sizes = torch.stack([opening.width, 8.0 * opening.height, 8.0 * tones.opening], dim=-1)
        per_frame = torch.cat(
            [sizes, tones.lips / tones.skin, tones.inside / tones.skin, code.expand(len(sizes), -1)], dim=-1
        )
        places = torch.stack([opening.across, 8.0 * opening.below_anchor], dim=-1)
        inputs = [
            encode_sine(places, self.frequencies),
            8.0 * torch.stack([opening.below_upper, opening.above_lower], dim=-1),
            per_frame[:, None].expand(-1, places.shape[1], -1),
        ]
        # Relative to the skin, so that less light on the face is less light in the mouth. It starts dark.
        relative = 3.0 * torch.sigmoid(self.network(torch.cat(inputs, dim=-1)).float() - 1.5)
        return tones.skin[..., None] * relative.transpose(1, 2)


def measure_shade(colors: Tensor, opening: MouthOpening, tones: MouthTones) -> Tensor:
    """Return the factors ``[B]`` by which painted ``colors [B, 3, N]`` are darkened.

    Behind closed lips down to ``BEHIND_CLOSED_LIPS``; not at all where the portrait's lips are far enough apart to show
    teeth.
    """
    covered = opening.coverage[:, None]
    inside = ((colors * covered).sum(2) / covered.sum(2).clamp(min=1e-3)).mean(1)
    shade = (BEHIND_CLOSED_LIPS * tones.skin.mean(1) / inside.clamp(min=1e-3)).clamp(max=1.0)
    return shade.lerp(torch.ones_like(shade), (tones.opening / TOOTHED).clamp(0.0, 1.0))


def measure_need(opening: Tensor, portrait: Tensor) -> Tensor:
    """Say how far a warp is wrong about the inside of a mouth: not at all while it is no wider open than before.

    Args:
        opening: ``[B]`` height of the opening in the frame, head units, however the head is turned.
        portrait: ``[B]`` the same in the portrait.

    Returns ``[B]`` in [0, 1].
    """
    least, most = STRETCH
    stretched = opening.clamp(min=0.0) / portrait.clamp(min=THINNEST)
    share = ((stretched - least) / (most - least)).clamp(0.0, 1.0)
    return share.square() * (3.0 - 2.0 * share)
