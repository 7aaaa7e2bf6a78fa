"""The opening between lips or lids: which pixels of a frame show it, and which position inside each of them shows.

The deformation is smooth. Where lips part that touch in the source, it stretches them over the opening, and they do not
end where they should. It does locate the edges of the lips well, and there is no lip between these edges.

The teeth that a source shows between parted lips are not stretched by the lips either; they keep their shape.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from s3dnerf.rendering.rays import intersect_plane, project_points
from s3dnerf.structures import Camera

EDGE = 1.5
"""Pixels over which the edge of a lip or lid fades into the opening."""
UPPER_EDGE = (0, *range(19, 9, -1))
"""Indices of the upper lip's edge in the outline of the mouth, from the viewer's left to the right."""
LOWER_LIP, UPPER_LIP = 5, 15
"""Indices of the midpoints of both edges of the mouth."""
LIP_SHADE = 0.5
"""Margin of the source's opening, along the lower lip and at the corners, that still shows lip, in edge widths."""


@dataclass(frozen=True)
class Opening:
    """The opening between lips or lids at some pixels. Lengths are in head units, and y points down."""

    coverage: Tensor
    """``[B, N]`` fraction of each pixel inside the opening, in [0, 1]."""
    across: Tensor
    """``[B, N]`` horizontal position, from -1 at the corner on the viewer's left to 1 at the other corner."""
    below_upper: Tensor
    """``[B, N]`` distance below the upper edge."""
    above_lower: Tensor
    """``[B, N]`` distance above the lower edge."""
    below_anchor: Tensor
    """``[B, N]`` distance below a point that lips and lids do not move: the upper teeth, or the iris."""
    beside_anchor: Tensor
    """``[B, N]`` distance to the right of that point."""
    width: Tensor
    """``[B]`` projected distance between the corners."""
    height: Tensor
    """``[B]`` height of the opening at its middle; negative if the edges overlap."""

    def select(self, indices: Tensor) -> Opening:
        """Select pixels by ``indices [B, M]``."""
        parts = {name: value.gather(1, indices) if value.dim() == 2 else value for name, value in vars(self).items()}
        return Opening(**parts)


@dataclass(frozen=True)
class SourceInterior:
    """The part of the interior of a frame's mouth that the source shows, at some pixels."""

    points: Tensor
    """``[B, N, 2]`` position in the source, image coordinates."""
    visibility: Tensor
    """``[B, N]`` visibility in the source, in [0, 1]."""


def measure_opening_at(outline: Tensor, anchor: Tensor, camera: Camera, pixels: Tensor, size: int) -> Opening:
    """Measure the position of pixels in an opening.

    Args:
        outline: ``[B, 2K, 3]`` edge of the lips (K is 10) or lids (8), head space, from the corner on the viewer's left
            along the lower edge to the other corner and back along the upper edge.
        anchor: ``[B, 3]`` point that lips and lids do not move (head space).
        camera: cameras of the frames.
        pixels: ``[B, N, 2]`` image coordinates.
        size: side of the frame in pixels.
    """
    seen = project_points(torch.cat([outline, anchor[:, None]], dim=1), camera)[..., :2]
    half_way, count = outline.shape[1] // 2, outline.shape[1]
    left, right = seen[:, 0], seen[:, half_way]
    middle, half = (left + right) / 2, (right - left) / 2
    reach = half.norm(dim=-1).clamp(min=1e-4)
    direction = half / reach[:, None]
    # Axes along the line from corner to corner, and downward from it. This is not a matrix product because mixed
    # precision would round it.
    axes = direction, torch.stack([-direction[:, 1], direction[:, 0]], dim=-1)
    places, points = (
        torch.stack([((x - middle[:, None]) * axis[:, None]).sum(-1) for axis in axes], dim=-1) for x in (pixels, seen)
    )
    lower = interpolate_curve(points[:, : half_way + 1], places[..., 0])
    upper = interpolate_curve(points[:, [0, *range(count - 1, half_way - 1, -1)]], places[..., 0])
    down = places[..., 1]
    across = places[..., 0] / reach[:, None]
    above, below = (((distance * size / 2 / EDGE) + 0.5).clamp(0.0, 1.0) for distance in (down - upper, lower - down))
    coverage = (above + below - 1.0).clamp(min=0.0) * (across.abs() < 1.0)
    unit = camera.scale
    distances = (down - upper, lower - down, down - points[:, -1:, 1], places[..., 0] - points[:, -1:, 0])
    below_upper, above_lower, below_anchor, beside_anchor = (distance / unit[:, None] for distance in distances)
    height = (points[:, half_way // 2, 1] - points[:, half_way + half_way // 2, 1]) / unit
    width = 2 * reach / unit
    return Opening(coverage, across, below_upper, above_lower, below_anchor, beside_anchor, width, height)


def find_source_interior(
    outline: Tensor, lips: Tensor, frame: Camera, source: Camera, pixels: Tensor, size: int
) -> SourceInterior:
    """Find the part of the interior of a mouth that the source shows.

    These are mostly the upper teeth. They move with the skull and follow the edge of the upper lip, because the small
    motion of this edge in speech must not open a gap above them. They are never stretched by the lips.

    Args:
        outline: ``[B, 20, 3]`` inner edge of the lips in the frames (head space), in the order of
            :func:`measure_opening_at`.
        lips: ``[B, 20, 3]`` inner edge of the lips in the sources.
        frame: cameras of the frames.
        source: cameras of the sources.
        pixels: ``[B, N, 2]`` image coordinates in the frames.
        size: side of frames and sources in pixels.
    """
    anchor = lips[:, UPPER_LIP]
    x, y, z = intersect_plane(pixels, frame, anchor[:, 2]).unbind(-1)
    before, now = lips[:, UPPER_EDGE], outline[:, UPPER_EDGE]
    fall = interpolate_curve(torch.stack([now[..., 0], (before - now)[..., 1]], dim=-1), x)
    places = project_points(torch.stack([x, y + fall, z], dim=-1), source)[..., :2]
    opening = measure_opening_at(lips, anchor, source, places, size)
    edge = 2 * EDGE / size / source.scale[:, None]
    # The upper lip's edge is where the opening in the frame begins. Only the other edges can occlude the interior.
    room = opening.above_lower, (1.0 - opening.across.abs()) * opening.width[:, None] / 2
    share = torch.stack([(distance / edge - LIP_SHADE).clamp(0.0, 1.0) for distance in room]).prod(dim=0)
    return SourceInterior(places, share)


def interpolate_curve(knots: Tensor, x: Tensor) -> Tensor:
    """Interpolate curves through ``knots [B, K, 2]`` (left to right) linearly at ``x [B, N]``, with constant ends."""
    # In profile views, the order of the knots may change.
    along = knots[..., 0].cummax(dim=1).values.contiguous()
    index = torch.searchsorted(along, x.contiguous()).clamp(1, along.shape[1] - 1)
    (x0, y0), (x1, y1) = ((along.gather(1, i), knots[..., 1].gather(1, i)) for i in (index - 1, index))
    share = ((x - x0) / (x1 - x0).clamp(min=1e-6)).clamp(0.0, 1.0)
    return y0.lerp(y1, share)
