"""Volume rendering (Max, 1995): one function for any number of channels."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from s3dnerf.backend import choose_backend
from s3dnerf.rendering import operators


@dataclass(frozen=True)
class Composite:
    """What a batch of rays sees."""

    values: Tensor
    """``[..., C]`` channels weighted by visibility; not divided by alpha."""
    alpha: Tensor
    """``[...]`` opacity in [0, 1]."""
    weights: Tensor
    """``[..., S]`` share of each sample."""


def composite(density: Tensor, values: Tensor, lengths: Tensor, stop: float = 0.0) -> Composite:
    """Composite samples front to back: ``w_i = (1 - exp(-density_i length_i)) exp(-sum_{j<i} density_j length_j)``.

    Args:
        density: ``[..., S]``, not negative.
        values: ``[..., S, C]``.
        lengths: ``[..., S]``.
        stop: early termination: samples behind less transmittance than this weigh nothing. 0 weighs all.

    Returns:
        Its tensors are float32 (float64 if an argument is) and differentiable in all three arguments.
    """
    if _runs_on_pytorch(density, values, lengths):
        return composite_reference(density, values, lengths, stop)
    shape = density.shape
    flat = (density.float().reshape(-1), values.float().reshape(-1, values.shape[-1]), lengths.float().reshape(-1))
    rays = math.prod(shape[:-1])
    seen, alpha, weights = operators.composite(*flat, None, rays, stop)
    return Composite(seen.view(*shape[:-1], -1), alpha.view(shape[:-1]), weights.view(shape))


def composite_packed(density: Tensor, values: Tensor, lengths: Tensor, offsets: Tensor, stop: float = 0.0) -> Composite:
    """Composite rays with different numbers of samples, packed one behind another.

    Args:
        density: ``[M]``; values: ``[M, C]``; lengths: ``[M]``: as in :func:`composite`.
        offsets: ``[R + 1]`` int64, growing from 0 to M: ray ``r`` has samples ``offsets[r] ... offsets[r + 1] - 1``.

    Returns:
        ``values [R, C]``, ``alpha [R]``, ``weights [M]``.
    """
    if _runs_on_pytorch(density, values, lengths):
        return composite_packed_reference(density, values, lengths, offsets, stop)
    flat = (density.float(), values.float(), lengths.float())
    return Composite(*operators.composite(*flat, offsets.long(), len(offsets) - 1, stop))


def composite_reference(density: Tensor, values: Tensor, lengths: Tensor, stop: float = 0.0) -> Composite:
    """The twin of :func:`composite` in plain PyTorch."""
    optical = density * lengths
    before = torch.cumsum(optical, dim=-1) - optical
    weights = torch.exp(-before) * -torch.expm1(-optical)
    if stop > 0.0:
        weights = weights.masked_fill(before > -math.log(stop), 0.0)
    # Mixed precision would round to bfloat16, and with it the image coordinates among the values.
    with torch.autocast(density.device.type, enabled=False):
        return Composite(torch.einsum("...s,...sc->...c", weights, values), weights.sum(dim=-1), weights)


def composite_packed_reference(
    density: Tensor, values: Tensor, lengths: Tensor, offsets: Tensor, stop: float = 0.0
) -> Composite:
    """The twin of :func:`composite_packed` in plain PyTorch."""
    rays = len(offsets) - 1
    ray = torch.repeat_interleave(torch.arange(rays, device=offsets.device), offsets.diff())
    optical = density * lengths
    # The sum runs across all rays: in double precision, what a ray subtracts of it leaves its own digits whole.
    total = torch.cumsum(optical.double(), dim=0) - optical
    before = (total - total[offsets[:-1].clamp(max=max(len(total) - 1, 0))][ray]).to(optical.dtype)
    weights = torch.exp(-before) * -torch.expm1(-optical)
    if stop > 0.0:
        weights = weights.masked_fill(before > -math.log(stop), 0.0)
    seen = values.new_zeros(rays, values.shape[-1]).index_add(0, ray, weights[:, None] * values)
    return Composite(seen, weights.new_zeros(rays).index_add(0, ray, weights), weights)


def _runs_on_pytorch(*tensors: Tensor) -> bool:
    wide = any(tensor.dtype == torch.float64 for tensor in tensors)
    return wide or choose_backend("composite", tensors[0].device.type) == "pytorch"
