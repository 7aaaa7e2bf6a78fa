"""The encoder of Moonshine (Jeffries et al., 2024, arXiv 2410.15608), with the parameter names of ``transformers``.

It stands here because importing that of ``transformers`` takes longer than importing PyTorch. A test compares the two.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

HEADS = 8
ROTARY_FRACTION = 0.9
"""Fraction of the channels of a head that positions rotate."""
ROTARY_BASE = 10_000.0


class MoonshineEncoder(nn.Module):
    """Hidden states of speech, one for every 384 samples of 16 kHz.

    Args:
        channels: width of the hidden states.
        inner: width of the layers of each block.
        layers: number of blocks.
        group_norm: normalizes ``[B, channels, T]`` after the first convolution.
        layer_norm: normalizes ``[B, T, channels]`` after the last block.
    """

    def __init__(self, channels: int, inner: int, layers: int, group_norm: nn.Module, layer_norm: nn.Module) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(1, channels, 127, stride=64, bias=False)
        self.conv2 = nn.Conv1d(channels, 2 * channels, 7, stride=3)
        self.conv3 = nn.Conv1d(2 * channels, channels, 3, stride=2)
        self.groupnorm, self.layer_norm = group_norm, layer_norm
        self.layers = nn.ModuleList(Block(channels, inner) for _ in range(layers))

    def forward(self, sound: Tensor) -> Tensor:
        """Encode ``sound [B, samples]`` as ``[B, T, channels]``."""
        *_, last = self.iterate_states(sound)
        return self.layer_norm(last)

    def iterate_states(self, sound: Tensor) -> Iterator[Tensor]:
        """Yield the hidden states ``[B, T, channels]`` before the first block and after each."""
        # oneDNN (of PyTorch 2.13) multiplies bfloat16 values in pairs with AMX. If taps are odd in number and there is
        # one channel, the last pair has a value that it finds in memory, and NaN times 0 is NaN (oneDNN issue 5717).
        padded, taps = F.pad(sound[:, None], (0, 1)), F.pad(self.conv1.weight, (0, 1))
        hidden = self.groupnorm(F.conv1d(padded, taps, stride=self.conv1.stride).tanh())
        hidden = F.gelu(self.conv3(F.gelu(self.conv2(hidden)))).transpose(1, 2)
        yield hidden
        angles = measure_angles(hidden.shape[1], hidden.shape[2] // HEADS, hidden.device)
        for layer in self.layers:
            hidden = layer(hidden, angles)
            yield hidden


class Block(nn.Module):
    """Self-attention and two linear layers, each after a norm."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.input_layernorm = nn.LayerNorm(channels, bias=False)
        self.self_attn = Attention(channels)
        self.post_attention_layernorm = nn.LayerNorm(channels, bias=False)
        self.mlp = Perceptron(channels, inner)

    def forward(self, hidden: Tensor, angles: Tensor) -> Tensor:
        """Return ``[B, T, channels]``; ``angles`` are those of :func:`measure_angles`."""
        hidden = hidden + self.self_attn(self.input_layernorm(hidden), angles)
        return hidden + self.mlp(self.post_attention_layernorm(hidden))


class Attention(nn.Module):
    """Self-attention with rotary positions (Su et al., 2021)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (
            nn.Linear(channels, channels, bias=False) for _ in range(4)
        )

    def forward(self, hidden: Tensor, angles: Tensor) -> Tensor:
        """Return ``[B, T, channels]``."""
        query, key, value = (
            part(hidden).unflatten(2, (HEADS, -1)).transpose(1, 2) for part in (self.q_proj, self.k_proj, self.v_proj)
        )
        attended = F.scaled_dot_product_attention(rotate(query, angles), rotate(key, angles), value)
        return self.o_proj(attended.transpose(1, 2).flatten(2))


class Perceptron(nn.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(channels, inner), nn.Linear(inner, channels)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return ``[B, T, channels]``."""
        return self.fc2(F.gelu(self.fc1(hidden)))


def measure_angles(count: int, width: int, device: torch.device) -> Tensor:
    """Return the angles ``[count, pairs]`` by which positions rotate pairs of the ``width`` channels of a head."""
    rotated = int(width * ROTARY_FRACTION)
    rates = ROTARY_BASE ** -(torch.arange(0, rotated, 2, device=device, dtype=torch.float32) / rotated)
    return torch.arange(count, device=device, dtype=torch.float32)[:, None] * rates


def rotate(states: Tensor, angles: Tensor) -> Tensor:
    """Rotate the first pairs of neighboring channels of ``states [B, heads, T, width]``."""
    pairs, rest = states.split([2 * angles.shape[1], states.shape[-1] - 2 * angles.shape[1]], dim=-1)
    even, odd = pairs.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = angles.cos().to(states.dtype), angles.sin().to(states.dtype)
    turned = torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1).flatten(-2)
    return torch.cat([turned, rest], dim=-1)
