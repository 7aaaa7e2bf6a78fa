"""How hash grids and tri-planes lie in memory, whoever reads them."""

from __future__ import annotations

from dataclasses import dataclass

HASH_PRIMES = (1, 2654435761, 805459861)
"""What the coordinates of a vertex are multiplied by before they are combined into a hash."""

PLANE_AXES = ((0, 1), (1, 2), (0, 2))
"""The coordinates that address each plane: xy, yz, xz. The first of a pair runs along the plane's width."""


@dataclass(frozen=True)
class GridLevel:
    """One resolution of a hash grid: where it lies in the table and how a vertex is addressed."""

    scale: float
    resolution: int
    offset: int
    entries: int
    hashed: bool
