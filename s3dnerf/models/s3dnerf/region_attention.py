"""Slot attention (Locatello et al., 2020): aggregates source features into one token per face region (F_agg)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from s3dnerf.models.layers import encode_sine, make_mlp
from s3dnerf.ops.image import make_pixel_grid


@dataclass(frozen=True)
class RegionTokens:
    """Face regions as slots."""

    tokens: Tensor
    """``[B, R, width]``."""
    attention: Tensor
    """``[B, R, h, w]`` log probability that a position belongs to a region."""


class RegionSlotAttention(nn.Module):
    """Slots compete for the positions of a feature map. Each slot starts from the learned token of its face region."""

    def __init__(self, inputs: int, regions: int, width: int, iterations: int = 2) -> None:
        super().__init__()
        self.iterations = iterations
        self.start = nn.Parameter(torch.randn(regions, width) * 0.5)
        self.embed = make_mlp(inputs + 2 * (1 + 2 * 4), width, width)
        self.normalize = nn.LayerNorm(width)
        self.normalize_slots = nn.LayerNorm(width)
        self.query = nn.Linear(width, width, bias=False)
        self.key_value = nn.Linear(width, 2 * width, bias=False)
        self.update = nn.GRUCell(width, width)
        self.refine = nn.Sequential(nn.LayerNorm(width), make_mlp(width, width, width))

    def forward(self, features: Tensor) -> RegionTokens:
        """Aggregate ``features [B, C, h, w]`` into region tokens, and return their attention maps."""
        batch, _, height, width = features.shape
        place = encode_sine(make_pixel_grid(height, width, features.device).flatten(0, 1), 4)
        flat = torch.cat([features.flatten(2).transpose(1, 2), place.expand(batch, -1, -1)], dim=-1)
        key, value = self.key_value(self.normalize(self.embed(flat))).chunk(2, dim=-1)
        slots = self.start.expand(batch, -1, -1)
        for _ in range(self.iterations):
            scores = self.query(self.normalize_slots(slots)) @ key.transpose(1, 2) / key.shape[-1] ** 0.5
            claims = scores.log_softmax(dim=1)
            shares = claims.exp()
            shares = shares / (shares.sum(dim=-1, keepdim=True) + 1e-6)
            gathered = shares.to(value.dtype) @ value
            slots = self.update(gathered.flatten(0, 1), slots.flatten(0, 1).to(gathered.dtype)).view_as(slots)
            slots = slots + self.refine(slots)
        return RegionTokens(slots, claims.unflatten(2, (height, width)))
