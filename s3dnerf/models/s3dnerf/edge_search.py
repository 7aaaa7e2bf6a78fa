"""Search for the edges of lips and lids of a source in a frame: the inverse of the deformation along vertical lines.

The deformation maps frames to the source. It has no simple inverse at these edges: all positions between open lips
deform to the line where the lips of the source meet, and where the lips of an open-mouthed source close, positions just
above and below the edge deform to places far apart.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from s3dnerf.ops.constant import constant
from s3dnerf.rendering.volume_rendering import DeformedField, interpolate_lattice

ROUNDS = 2
"""Number of searches. The second one uses the horizontal offset that the first one found."""
START, END = 0.16, -0.24
"""Heights of both ends of a line, head units from the edge in the source, positive outside of the mouth or eye. The
largest distance observed between an edge in a frame and in the source is 0.16."""
STEPS = 41
"""Positions on a line. They are closer together than the points of the lattice."""
STEP = (START - END) / (STEPS - 1)
FLAT = 0.007
"""Where the deformation is flat, as between open lips, an edge is this far, head units, from where the height of the
edge in the source is reached. Otherwise noise would decide where on the flat part it is reached."""
MAX_ASIDE = 0.1
"""Maximum horizontal distance and depth of a line from the edge in the source; the largest one observed is 0.03."""


def make_search_lines(is_lower: Tensor) -> Tensor:
    """Return the lines ``[P, steps, 3]`` along which ``P`` edges are searched for, relative to these, from outside.

    Args:
        is_lower: ``bool [P]``, which of the edges belong to a lower lip or lid and are searched for from below.
    """
    lines = torch.zeros(len(is_lower), STEPS, 3)
    lines[..., 1] = START - STEP * torch.arange(STEPS)
    lines[is_lower] *= -1.0
    return lines


def find_search_box(points: Tensor) -> tuple[Tensor, Tensor]:
    """Return opposite corners, ``[3]`` each, of the part of head space in which edges ``points [B, P, 3]`` may be."""
    margin = constant((MAX_ASIDE, -END, MAX_ASIDE), points.device)
    return points.amin(dim=(0, 1)) - margin, points.amax(dim=(0, 1)) + margin


@torch.no_grad()
def locate_edges(field: DeformedField, points: Tensor, lines: Tensor) -> Tensor:
    """Locate edges ``points [B, P, 3]`` of the sources' lips or lids in frames (head space), without gradients.

    An edge is the first position on its line that deforms to the height of the edge in the source, or almost to it
    where the deformation is flat.

    Args:
        field: the fields of the frames.
        points: the edges in the sources.
        lines: ``[P, steps, 3]`` from :func:`make_search_lines`.
    """
    offsets = replace(field, lattice=field.lattice[..., :3])
    heights = lines[..., 1]
    side = heights[:, :1].sign()
    horizontal = constant((1.0, 0.0, 1.0), points.device)
    positions = start = points[:, :, None] + lines
    edges = points
    for _ in range(ROUNDS):
        moved = interpolate_lattice(offsets, positions.flatten(1, 2)).unflatten(1, lines.shape[:2])
        outside = side * (heights + moved[..., 1])
        slope = -outside.diff(dim=-1) / STEP
        outside[..., 1:] -= (FLAT * (1.0 - slope)).clamp(min=0.0)
        is_inside = outside <= 0.0
        is_inside[..., -1] = True
        inside = is_inside.int().argmax(dim=-1, keepdim=True).clamp(min=1)
        pair = torch.cat([inside - 1, inside], dim=-1)
        outer, inner = outside.gather(2, pair).unbind(2)
        share = (outer / (outer - inner).clamp(min=1e-6)).clamp(0.0, 1.0)
        before, after = moved.gather(2, pair[..., None].expand(-1, -1, -1, 3)).unbind(2)
        beside = before.lerp(after, share[..., None]) * horizontal
        height = side[:, 0] * (START - STEP * (inside[..., 0] - 1.0 + share))
        edges = points - beside + height[..., None] * (1.0 - horizontal)
        positions = start - beside.clamp(-MAX_ASIDE, MAX_ASIDE)[:, :, None]
    return edges
