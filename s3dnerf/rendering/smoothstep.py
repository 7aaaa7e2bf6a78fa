"""The smooth step from 0 to 1 by which masks and weights fade."""

from __future__ import annotations

from torch import Tensor


def smoothstep(value: Tensor, low: float, high: float) -> Tensor:
    """Return 0 below ``low``, 1 above ``high``, and a cubic step without kinks between them."""
    share = ((value - low) / (high - low)).clamp(0.0, 1.0)
    return share.square() * (3.0 - 2.0 * share)
