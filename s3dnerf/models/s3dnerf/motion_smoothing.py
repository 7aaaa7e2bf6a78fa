"""Smoothing of motion codes in time."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def smooth_gaussian(series: Tensor, sigma: float) -> Tensor:
    """Smooth ``series [T, ...]`` by a Gaussian of ``sigma`` frames with replicated ends. Zero has no effect."""
    reach = math.ceil(3.0 * sigma)
    if reach == 0:
        return series
    steps = torch.arange(-reach, reach + 1, device=series.device)
    weights = torch.softmax(-0.5 * (steps / sigma).square(), dim=0).to(series.dtype)
    nearby = (torch.arange(len(series), device=series.device)[:, None] + steps).clamp(0, len(series) - 1)
    return sum(weight * series[rows] for weight, rows in zip(weights, nearby.T, strict=True))
