"""The interior of the mouth, which becomes visible when the lips part.

A source with closed lips does not show it, and warping such a source cannot produce it. The part that a source shows is
kept. A small network generates the rest per pixel, from the position of the pixel between the lips, the light on the
source's skin and the colors that the source shows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from s3dnerf.face.points import KEPT_POINTS, LIPS_INNER, LIPS_OUTER
from s3dnerf.face.regions import JAW_AND_CHEEKS, point_regions
from s3dnerf.models.layers import encode_sine, make_mlp
from s3dnerf.ops.constant import select_rows
from s3dnerf.rendering.opening import LOWER_LIP, UPPER_EDGE, UPPER_LIP, Opening
from s3dnerf.rendering.rays import project_points
from s3dnerf.rendering.smoothstep import smoothstep
from s3dnerf.structures import Camera

SKIN = torch.from_numpy((point_regions()[KEPT_POINTS] == JAW_AND_CHEEKS).nonzero()[0])
"""Rows of the kept landmarks on plain skin."""
OUTER_LIPS, INNER_LIPS = (torch.from_numpy(KEPT_POINTS.searchsorted(rows)) for rows in (LIPS_OUTER, LIPS_INNER))
"""Rows of the kept landmarks on both outlines of the lips, in order around them."""
DARKEST_SKIN = 0.05
"""Minimum skin color, so that the colors divided by it stay bounded."""
STRETCH = (1.0, 1.5)
"""Height of the opening relative to that of the source. Up to the first value the deformed field is kept as it is; from
the second value on it is fully replaced."""
BRIGHTNESS_BELOW_TEETH = 0.7
"""Brightness below the teeth that a source shows, relative to the output of the network. The network learns a mean over
people, which is brighter than a deep mouth, and a region as bright as the lips looks like lips."""
THINNEST = 0.005
"""Height of the opening, head units, below which lips count as closed and nothing is visible between them."""
PARTED = 0.02
"""Minimum height of the opening, head units, at which some pixels show only the interior."""
TOOTHED = 0.05
"""Minimum height of the source's opening, head units, at which it shows teeth rather than only a gap."""
SMILE = (0.1, 0.13)
"""Height of the source's opening, head units, up to which it shows little but teeth, and from which it shows the floor
of the mouth too, which rises with the lower lip."""
DEPTHS = (0.25, 0.5, 0.75)
"""Positions from the upper to the lower lip at which the interior of a source's mouth is sampled."""


@dataclass(frozen=True)
class MouthColors:
    """Colors of a source that condition the interior of the mouth."""

    skin: Tensor
    """``[B, 3]`` mean color of cheeks and chin."""
    lips: Tensor
    """``[B, 3]`` mean color of the lips."""
    inside: Tensor
    """``[B, 3]`` mean color between the lips; for closed lips, of the line where they meet."""
    opening: Tensor
    """``[B]`` height of the opening between the lips, head units."""


def measure_mouth_colors(image: Tensor, landmarks: Tensor, camera: Camera) -> MouthColors:
    """Measure the colors of sources ``image [B, 3, S, S]`` with ``landmarks [B, P, 3]`` (head space)."""
    inner = select_rows(landmarks, INNER_LIPS)
    on_lips = (select_rows(landmarks, OUTER_LIPS) + inner) / 2
    upper, lower = inner[:, UPPER_EDGE[1:-1]], inner[:, 1:10]
    between = torch.cat([upper.lerp(lower, depth) for depth in DEPTHS], dim=1)
    skin, lips, inside = (
        F.grid_sample(image.float(), project_points(points, camera)[:, None, :, :2], align_corners=False).mean((2, 3))
        for points in (select_rows(landmarks, SKIN), on_lips, between)
    )
    return MouthColors(skin.clamp(min=DARKEST_SKIN), lips, inside, measure_opening(inner))


def measure_opening(outline: Tensor) -> Tensor:
    """Return the height ``[B]`` of the opening at its middle, given the inner lip ``outline [B, 20, 3]``."""
    return outline[:, UPPER_LIP, 1] - outline[:, LOWER_LIP, 1]


class MouthInterior(nn.Module):
    """A network from positions between the lips to colors."""

    shown: Tensor

    def __init__(self, types: int = 8, hidden: int = 48, type_width: int = 8, frequencies: int = 3) -> None:
        """Build the network.

        Args:
            types: number of mouth types, which differ in how much of teeth, tongue and darkness they show.
            hidden: width of the layers.
            type_width: width of the code of a type.
            frequencies: octaves of the positional encoding.
        """
        super().__init__()
        self.frequencies = frequencies
        inputs = 2 * (1 + 2 * frequencies) + 2 + 3 + 6 + type_width
        self.types = nn.Parameter(0.5 * torch.randn(types, type_width))
        # The type used if the source shows no teeth, and the type used below the teeth that it shows.
        self.register_buffer("shown", torch.zeros(2, dtype=torch.long))
        self.network = make_mlp(inputs, hidden, hidden, 3)

    def forward(self, opening: Opening, colors: MouthColors, code: Tensor | None = None) -> Tensor:
        """Return the colors ``[B, 3, N]`` of the interior at ``N`` pixels.

        ``code [width]`` is the code of the mouth type. By default it is one of the types selected for unseen people.
        """
        if code is None:
            toothed = colors.opening > TOOTHED
            painted = self(opening, colors, self.types[self.shown[toothed.long()]])
            return torch.where(toothed[:, None, None], BRIGHTNESS_BELOW_TEETH * painted, darken(painted, colors))
        sizes = torch.stack([opening.width, 8.0 * opening.height, 8.0 * colors.opening], dim=-1)
        per_frame = torch.cat(
            [sizes, colors.lips / colors.skin, colors.inside / colors.skin, code.expand(len(sizes), -1)], dim=-1
        )
        places = torch.stack([opening.across, 8.0 * opening.below_anchor], dim=-1)
        inputs = [
            encode_sine(places, self.frequencies),
            8.0 * torch.stack([opening.below_upper, opening.above_lower], dim=-1),
            per_frame[:, None].expand(-1, places.shape[1], -1),
        ]
        # Colors are relative to the skin, so that the mouth follows the light on the face. The initial output is dark.
        relative = 3.0 * torch.sigmoid(self.network(torch.cat(inputs, dim=-1)).to(places.dtype) - 1.5)
        return colors.skin[..., None] * relative.transpose(1, 2)


def darken(painted: Tensor, colors: MouthColors) -> Tensor:
    """Darken the colors ``painted [B, 3, N]`` of the interior behind lips that the source shows closed.

    They are multiplied by their brightness relative to the skin, at most 1. The network returns means over people,
    nearly as bright as lips and with less contrast than real mouths (standard deviation of the brightness relative to
    the skin, which training prints: 0.19, real 0.25), so the lips would not appear to part. Darkened, it is 0.23. If
    the lips of the source are far enough apart to show teeth, the colors stay as they are.
    """
    brightness = painted.mean(dim=1) / colors.skin.mean(dim=1, keepdim=True)
    shade = brightness.clamp(max=1.0)
    shade = shade.lerp(torch.ones_like(shade), (colors.opening / TOOTHED).clamp(0.0, 1.0)[:, None])
    return shade[:, None] * painted


def compute_interior_weight(opening: Tensor, source: Tensor) -> Tensor:
    """Return the weight with which the generated interior replaces the deformed field.

    The weight is zero while the mouth is no wider open than in the source.

    Args:
        opening: ``[B]`` height of the opening in the frame, head units, independent of the head pose.
        source: ``[B]`` height of the opening in the source.

    Returns:
        ``[B]`` weights in [0, 1].
    """
    stretched = opening.clamp(min=0.0) / source.clamp(min=THINNEST)
    return smoothstep(stretched, *STRETCH)


def measure_smile(source: Tensor) -> Tensor:
    """Return how much of what sources show between their lips are teeth, ``[B]`` in [0, 1].

    Teeth do not follow lips that close over them, but the deformed field squeezes them to gray streaks.

    Args:
        source: ``[B]`` height of the opening in the source, head units.
    """
    return (source > TOOTHED) * (1.0 - smoothstep(source, *SMILE))
