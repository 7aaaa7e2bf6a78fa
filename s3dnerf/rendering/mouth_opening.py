"""The opening between the lips: which pixels of a frame show it, and where in the mouth each of them looks.

A warp is smooth. Where lips part that touch in the source, it stretches them over the opening, and no lip ends where
it should. But it says well where the edges of the lips have gone, and between these edges there is no lip.

What the source shows between parted lips is not stretched either: it is teeth, which keep their shape.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from s3dnerf.rendering.rays import intersect_plane, project_points
from s3dnerf.structures import Camera

EDGE = 1.5
"""Pixels over which the edge of a lip fades into the opening."""
CORNERS = (0, 10)
"""Places of the corners in the outline of the opening: viewer's left, viewer's right."""
UPPER_EDGE = (0, *range(19, 9, -1))
"""Places of the upper lip's edge in that outline, from the viewer's left to the right."""
LOWER_LIP, UPPER_LIP = 5, 15
"""Places of the middles of both edges."""
LIP_SHADE = 0.5
"""How much of the source's opening along its lower lip and in its corners is lip as well, in widths of an edge."""


@dataclass(frozen=True)
class MouthOpening:
    """The opening between the lips at some pixels; lengths are in head units, y runs down."""

    coverage: Tensor
    """``[B, N]`` how much of each pixel is between the lips, in [0, 1]."""
    across: Tensor
    """``[B, N]`` from -1 in the corner at the viewer's left to 1 in the other one."""
    below_upper: Tensor
    """``[B, N]`` how far below the edge of the upper lip."""
    above_lower: Tensor
    """``[B, N]`` how far above the edge of the lower lip."""
    below_anchor: Tensor
    """``[B, N]`` how far below a point that is fixed to the skull, as the upper teeth are."""
    width: Tensor
    """``[B]`` between the corners, as seen."""
    height: Tensor
    """``[B]`` of the opening in its middle; negative where the lips have been pressed past each other."""

    def select(self, indices: Tensor) -> MouthOpening:
        """Select pixels by ``indices [B, M]``."""
        parts = {name: value.gather(1, indices) if value.dim() == 2 else value for name, value in vars(self).items()}
        return MouthOpening(**parts)


@dataclass(frozen=True)
class SourceInterior:
    """What the source shows of the inside of a frame's mouth, at some pixels."""

    points: Tensor
    """``[B, N, 2]`` where in the source it is, image coordinates."""
    visibility: Tensor
    """``[B, N]`` how much of it the source shows there, in [0, 1]."""


def measure_mouth_opening(outline: Tensor, anchor: Tensor, camera: Camera, pixels: Tensor, size: int) -> MouthOpening:
    """Locate pixels relative to the opening between the lips.

    Args:
        outline: ``[B, 20, 3]`` the inner edge of the lips (head space), from the corner at the viewer's left along the
            lower lip to the other corner and back along the upper lip.
        anchor: ``[B, 3]`` the point of the skull (head space).
        camera: of the frames.
        pixels: ``[B, N, 2]`` image coordinates.
        size: pixels a side of the frame.
    """
    seen = project_points(torch.cat([outline, anchor[:, None]], dim=1), camera)[..., :2]
    left, right = (seen[:, corner] for corner in CORNERS)
    middle, half = (left + right) / 2, (right - left) / 2
    reach = half.norm(dim=-1).clamp(min=1e-4)
    direction = half / reach[:, None]
    # Axes along the line between the corners, and down from it. Autocast would round a matrix product.
    axes = direction, torch.stack([-direction[:, 1], direction[:, 0]], dim=-1)
    places, points = (
        torch.stack([((x - middle[:, None]) * axis[:, None]).sum(-1) for axis in axes], dim=-1) for x in (pixels, seen)
    )
    lower = interpolate_curve(points[:, 0:11], places[..., 0])
    upper = interpolate_curve(points[:, UPPER_EDGE], places[..., 0])
    down = places[..., 1]
    across = places[..., 0] / reach[:, None]
    above, below = (((distance * size / 2 / EDGE) + 0.5).clamp(0.0, 1.0) for distance in (down - upper, lower - down))
    coverage = (above + below - 1.0).clamp(min=0.0) * (across.abs() < 1.0)
    unit = camera.scale
    distances = (down - upper, lower - down, down - points[:, -1:, 1])
    below_upper, above_lower, below_anchor = (distance / unit[:, None] for distance in distances)
    height = (points[:, LOWER_LIP, 1] - points[:, UPPER_LIP, 1]) / unit
    return MouthOpening(coverage, across, below_upper, above_lower, below_anchor, 2 * reach / unit, height)


def find_source_interior(
    outline: Tensor, lips: Tensor, frame: Camera, source: Camera, pixels: Tensor, size: int
) -> SourceInterior:
    """Find what the source shows of the interior of the mouth.

    Mostly these are the upper teeth. They move with the skull and are attached to the edge of the upper lip, so that
    the small motion of this edge in speech opens no gap above them. They are never stretched.

    Args:
        outline: ``[B, 20, 3]`` the inner edge of the lips in the frames (head space), in the order of
            :func:`measure_mouth_opening`.
        lips: ``[B, 20, 3]`` the same in the sources.
        frame: cameras of the frames.
        source: cameras of the sources.
        pixels: ``[B, N, 2]`` image coordinates in the frames.
        size: pixels a side of frames and sources.
    """
    anchor = lips[:, UPPER_LIP]
    x, y, z = intersect_plane(pixels, frame, anchor[:, 2]).unbind(-1)
    before, now = lips[:, UPPER_EDGE], outline[:, UPPER_EDGE]
    fall = interpolate_curve(torch.stack([now[..., 0], (before - now)[..., 1]], dim=-1), x)
    places = project_points(torch.stack([x, y + fall, z], dim=-1), source)[..., :2]
    opening = measure_mouth_opening(lips, anchor, source, places, size)
    edge = 2 * EDGE / size / source.scale[:, None]
    # The opening of the frame starts at the edge of the upper lip, so that only the other edges can occlude it.
    room = opening.above_lower, (1.0 - opening.across.abs()) * opening.width[:, None] / 2
    share = torch.stack([(distance / edge - LIP_SHADE).clamp(0.0, 1.0) for distance in room]).prod(dim=0)
    return SourceInterior(places, share)


def interpolate_curve(knots: Tensor, x: Tensor) -> Tensor:
    """Interpolate curves through ``knots [B, K, 2]``, from left to right, at ``x [B, N]``; the ends are held."""
    # In side views, knots may be out of order.
    along = knots[..., 0].cummax(dim=1).values.contiguous()
    index = torch.searchsorted(along, x.contiguous()).clamp(1, along.shape[1] - 1)
    (x0, y0), (x1, y1) = ((along.gather(1, i), knots[..., 1].gather(1, i)) for i in (index - 1, index))
    share = ((x - x0) / (x1 - x0).clamp(min=1e-6)).clamp(0.0, 1.0)
    return y0.lerp(y1, share)
