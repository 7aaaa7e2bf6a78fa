"""The encoder of Moonshine (Jeffries et al., 2024, arXiv 2410.15608), with the names of its published weights.

Three convolutions turn 384 samples into one hidden state; transformer layers with rotary positions follow.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

HEADS = 8
ROTATED_SHARE = 0.9
"""Share of the channels of a head that rotate with the position."""
LONGEST_PERIOD = 10_000.0


class MoonshineEncoder(nn.Module):
    """Hidden states of sound.

    Args:
        channels: of the hidden states.
        inner: channels of the layer inside a feed-forward block.
        layers: number of transformer layers.
    """

    def __init__(self, channels: int, inner: int, layers: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(1, channels, 127, stride=64, bias=False)
        self.groupnorm: nn.Module = nn.GroupNorm(1, channels)
        self.conv2 = nn.Conv1d(channels, 2 * channels, 7, stride=3)
        self.conv3 = nn.Conv1d(2 * channels, channels, 3, stride=2)
        self.layers = nn.ModuleList(EncoderLayer(channels, inner) for _ in range(layers))
        self.layer_norm = nn.LayerNorm(channels, bias=False)

    def forward(self, sound: Tensor) -> Tensor:
        """Return hidden states ``[B, K, channels]`` of sound ``[B, samples]`` at 16 kHz."""
        hidden = self.groupnorm(self.conv1(sound[:, None]).tanh())
        hidden = F.gelu(self.conv3(F.gelu(self.conv2(hidden)))).transpose(1, 2)
        rotation = rotate_positions(hidden.shape[1], hidden.shape[2] // HEADS, hidden.device)
        for layer in self.layers:
            hidden = layer(hidden, rotation)
        return self.layer_norm(hidden)


class EncoderLayer(nn.Module):
    """Self-attention and a feed-forward block, each normalized before and added to its input."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.input_layernorm = nn.LayerNorm(channels, bias=False)
        self.self_attn = RotaryAttention(channels)
        self.post_attention_layernorm = nn.LayerNorm(channels, bias=False)
        self.mlp = FeedForward(channels, inner)

    def forward(self, hidden: Tensor, rotation: Tensor) -> Tensor:
        """Return the next hidden states; see :func:`rotate_positions` for ``rotation``."""
        hidden = hidden + self.self_attn(self.input_layernorm(hidden), rotation)
        return hidden + self.mlp(self.post_attention_layernorm(hidden))


class RotaryAttention(nn.Module):
    """Self-attention over all positions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.q_proj = nn.Linear(channels, channels, bias=False)
        self.k_proj = nn.Linear(channels, channels, bias=False)
        self.v_proj = nn.Linear(channels, channels, bias=False)
        self.o_proj = nn.Linear(channels, channels, bias=False)

    def forward(self, hidden: Tensor, rotation: Tensor) -> Tensor:
        """Return the weighted values ``[B, K, channels]``."""
        projections = (self.q_proj, self.k_proj, self.v_proj)
        query, key, value = (layer(hidden).unflatten(-1, (HEADS, -1)).transpose(1, 2) for layer in projections)
        mixed = F.scaled_dot_product_attention(_rotate(query, rotation), _rotate(key, rotation), value)
        return self.o_proj(mixed.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """Two linear layers with a GELU between."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, inner)
        self.fc2 = nn.Linear(inner, channels)

    def forward(self, hidden: Tensor) -> Tensor:
        """Transform each position by itself."""
        return self.fc2(F.gelu(self.fc1(hidden)))


def rotate_positions(count: int, width: int, device: torch.device) -> Tensor:
    """Return cosine and sine ``[2, count, pairs]`` of the angle of each pair of channels of a head ``width`` wide."""
    rotated = int(width * ROTATED_SHARE)
    powers = torch.arange(0, rotated, 2, dtype=torch.float32, device=device) / rotated
    angles = torch.arange(count, dtype=torch.float32, device=device)[:, None] / LONGEST_PERIOD**powers
    return torch.stack((angles.cos(), angles.sin()))


def _rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Rotate neighboring pairs of the first channels of ``[B, heads, K, width]``; the others stay."""
    cosine, sine = rotation.to(x.dtype)
    size = 2 * cosine.shape[-1]
    even, odd = x[..., 0:size:2], x[..., 1:size:2]
    turned = torch.stack((even * cosine - odd * sine, odd * cosine + even * sine), dim=-1).flatten(-2)
    return torch.cat((turned, x[..., size:]), dim=-1)
