"""Search for edges of a source in a frame: the inverse of the deformation, which maps frames to the source."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from s3dnerf.ops.constant import constant
from s3dnerf.rendering.volume_rendering import DeformedField, interpolate_lattice

ROUNDS = 7
"""Number of steps of the search, except for the last one."""
MIN_SLOPE = 2.0
"""Inverse of the largest step of the search, in units of the distance that is left in the source. With full steps, it
would pass the edges of parting lips, between which the deformation is flat."""
SMALLEST_MOVE = 1e-6
"""Move, head units, below which no slope can be measured."""
SEARCH_MARGIN = (0.1, 0.3, 0.15)
"""Distance in head units, along each axis, that the search may move away from the edges in the source. The largest
distances observed are 0.03, 0.16 and 0.03."""


def find_search_box(points: Tensor) -> tuple[Tensor, Tensor]:
    """Return opposite corners, ``[3]`` each, of the part of head space in which edges ``points [B, P, 3]`` may be."""
    margin = constant(SEARCH_MARGIN, points.device)
    return points.amin(dim=(0, 1)) - margin, points.amax(dim=(0, 1)) + margin


@torch.no_grad()
def locate_edges(field: DeformedField, points: Tensor, apart: Tensor) -> Tensor:
    """Locate edges of the sources' lips or lids in frames, which may part them (head space), without gradients.

    A fixed-point iteration with damped steps. Where positions in the source change faster than positions in the frame,
    as when the lips of an open-mouthed source close, it would diverge, so steps are not longer than those of the secant
    method, along each axis.

    Args:
        field: the fields of the frames.
        points: ``[B, P, 3]`` edges in the sources.
        apart: ``[P, 3]`` offsets of the positions where the search starts.
    """

    def measure_miss(positions: Tensor) -> Tensor:
        return points - positions - interpolate_lattice(field, positions)[..., :3]

    positions = points + apart
    miss = measure_miss(positions)
    slope = torch.full_like(miss, MIN_SLOPE)
    for _ in range(ROUNDS):
        move, before = miss / slope.clamp(min=MIN_SLOPE), miss
        positions = positions + move
        miss = measure_miss(positions)
        slope = (before - miss) / torch.where(move.abs() < SMALLEST_MOVE, math.inf, move)
    return positions + miss / slope.clamp(min=1.0)
