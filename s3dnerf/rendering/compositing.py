"""Volume rendering (Max, 1995): one function for any number of channels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Composite:
    """What a batch of rays sees."""

    values: Tensor
    """``[..., C]`` channels weighted by visibility; not divided by alpha."""
    alpha: Tensor
    """``[...]`` opacity in [0, 1]."""
    weights: Tensor
    """``[..., S]`` share of each sample."""


def composite(density: Tensor, values: Tensor, lengths: Tensor) -> Composite:
    """Composite samples front to back: ``w_i = (1 - exp(-density_i length_i)) exp(-sum_{j<i} density_j length_j)``.

    Args:
        density: ``[..., S]``, not negative.
        values: ``[..., S, C]``.
        lengths: ``[..., S]``.
    """
    optical = density * lengths
    before = torch.cumsum(optical, dim=-1) - optical
    weights = torch.exp(-before) * -torch.expm1(-optical)
    # Mixed precision would round to bfloat16, and with it the image coordinates among the values.
    with torch.autocast(density.device.type, enabled=False):
        return Composite(torch.einsum("...s,...sc->...c", weights, values), weights.sum(dim=-1), weights)
