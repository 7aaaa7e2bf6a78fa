"""Search for points of a source in a frame: the inverse of the deformation, which maps frames to the source."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from s3dnerf.ops.constant import constant
from s3dnerf.rendering.volume_rendering import DeformedField, interpolate_lattice

EDGE_ROUNDS, EDGE_STEP = 8, 0.5
"""Iterations and step size of the search for the edges of lips and lids. Full steps diverge where the deformation is
compressive, as when the lips of an open-mouthed source close."""

SEARCH_MARGIN = (0.1, 0.3, 0.15)
"""Distance in head units, along each axis, that the search may move away from the edges in the source. The largest
distances observed are 0.03, 0.16 and 0.03."""


def find_search_box(points: Tensor) -> tuple[Tensor, Tensor]:
    """Return opposite corners, ``[3]`` each, of the part of head space in which edges ``points [B, P, 3]`` may be."""
    margin = constant(SEARCH_MARGIN, points.device)
    return points.amin(dim=(0, 1)) - margin, points.amax(dim=(0, 1)) + margin


def locate_edges(field: DeformedField, points: Tensor, apart: Tensor) -> Tensor:
    """Locate edges ``points [B, P, 3]`` of the sources' lips or lids in frames, which may part them (head space).

    The search starts ``apart [P, 3]`` from them.
    """

    def deform(points: Tensor) -> Tensor:
        return interpolate_lattice(field, points)[..., :3]

    return invert_deformation(deform, points, points + apart, EDGE_ROUNDS, EDGE_STEP)


@torch.no_grad()
def invert_deformation(
    deform: Callable[[Tensor], Tensor], target: Tensor, start: Tensor, rounds: int, step: float = 1.0
) -> Tensor:
    """Find the points of frames that a deformation maps to points ``target [B, P, 3]`` of the source.

    This is a fixed-point iteration from ``start [B, P, 3]`` (head space); ``deform`` returns the offsets at points. All
    rounds except the last are damped by the factor ``step``, because full steps diverge where offsets change faster
    than positions. The result has no gradients.
    """
    points = start
    for _ in range(rounds - 1):
        points = points.lerp(target - deform(points), step)
    return target - deform(points)
