"""The diffusion transformer of FD2Talk's first stage (Peebles and Xie, 2023, with one condition per frame).

A token is a frame of motion. It attends to nearby frames, and to the speech of its own moment: the alignment mask. The
time of the diffusion, the speech of the frame and the liveliness modulate the layers (adaLN-zero).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from s3dnerf.models.fd2talk.config import MotionTransformerConfig
from s3dnerf.models.layers import make_mlp, zero_initialize

TIME_FREQUENCIES = 32
MODULATIONS = 9
"""Shift, scale and gate of the three layers of a block."""


@dataclass(frozen=True)
class MotionCondition:
    """What B windows of T frames depend on."""

    speech: Tensor
    """``[B, past + T + future, F]`` speech features from ``past`` frames before the window to ``future`` after it, the
    margins of ``MotionDiffusionConfig``."""
    has_speech: Tensor
    """``bool [B]``: False hides the speech."""
    liveliness: Tensor
    """``[B]`` logarithm of the mean speed of the head, standardized."""
    known: Tensor
    """``[B, T, C]`` standardized motion, where it is known."""
    is_known: Tensor
    """``bool [B, T]``."""
    valid: Tensor
    """``bool [B, T]``: other frames are padding, which no frame attends to."""


@dataclass(frozen=True)
class Attended:
    """What the frames of B windows attend to in one block, apart from the motion itself."""

    key: Tensor
    """``[B, heads, past + T + future, width / heads]`` of the speech."""
    value: Tensor
    """Of the same shape."""
    motion_bias: Tensor
    """``[B, heads, T, T]``, minus infinity where a frame does not attend."""
    speech_bias: Tensor
    """``[1, heads, T, past + T + future]``, likewise."""


@dataclass(frozen=True)
class PreparedCondition:
    """A condition as the layers of one transformer take it, which is the same for all noise levels."""

    known: Tensor
    """``[B, T, C]``."""
    is_known: Tensor
    """``bool [B, T, 1]``."""
    state: Tensor
    """``[B, T, width]`` speech of each frame and liveliness."""
    attended: tuple[Attended, ...]
    """Of each block."""


class MotionTransformer(nn.Module):
    """Predicts clean motion from noisy motion."""

    def __init__(
        self, config: MotionTransformerConfig, channels: int, speech_channels: int, is_aligned: bool = True
    ) -> None:
        super().__init__()
        self.config, self.is_aligned = config, is_aligned
        width = config.width
        self.enter = nn.Linear(channels + 1, width)
        self.drop_speech = nn.Dropout(config.dropout)
        self.enter_speech = nn.Sequential(nn.Linear(speech_channels, width), nn.LayerNorm(width))
        self.no_speech = nn.Parameter(torch.zeros(width))
        self.embed_time = make_mlp(2 * TIME_FREQUENCIES, width, width)
        self.embed_liveliness = make_mlp(1, width, width)
        self.modulate = zero_initialize(nn.Linear(width, MODULATIONS * width))
        self.blocks = nn.ModuleList(MotionBlock(config) for _ in range(config.blocks))
        self.leave_norm = nn.LayerNorm(width)
        self.leave = zero_initialize(nn.Linear(width, channels))

    def forward(self, noisy: Tensor, time: Tensor, condition: MotionCondition) -> Tensor:
        """Predict clean motion.

        Args:
            noisy: ``[B, T, C]`` standardized motion with noise; ignored where it is known.
            time: ``[B]`` noise level in [0, 1].
            condition: with the motion of these channels, and a margin of speech of exactly ``speech_past`` and
                ``speech_future`` frames.

        Returns:
            ``[B, T, C]``; the known motion where it is known.
        """
        return self.denoise(noisy, time, self.prepare(condition))

    def prepare(self, condition: MotionCondition) -> PreparedCondition:
        """Compute what does not depend on the noise, once for all steps of sampling."""
        speech = self.enter_speech(self.drop_speech(condition.speech))
        speech = torch.where(condition.has_speech[:, None, None], speech, self.no_speech.to(speech))
        past, frames = self.config.speech_past, condition.known.shape[1]
        near = self.mask_motion(condition.valid)
        aligned = self.mask_speech(frames, speech.device)
        blocks = cast("list[MotionBlock]", list(self.blocks))
        return PreparedCondition(
            condition.known,
            condition.is_known[..., None],
            self.embed_liveliness(condition.liveliness[:, None])[:, None] + speech[:, past : past + frames],
            tuple(block.prepare(speech, near, aligned) for block in blocks),
        )

    def denoise(self, noisy: Tensor, time: Tensor, condition: PreparedCondition) -> Tensor:
        """Predict clean motion, see :meth:`forward`, under a prepared condition."""
        is_known = condition.is_known
        x = self.enter(torch.cat([torch.where(is_known, condition.known, noisy), is_known.to(noisy)], dim=-1))
        modulation = self.modulate(F.silu(self.embed_time(encode_time(time))[:, None] + condition.state))
        modulation = modulation.unflatten(-1, (MODULATIONS, -1))
        for block, attended in zip(self.blocks, condition.attended, strict=True):
            x = block(x, modulation, attended)
        return torch.where(is_known, condition.known, self.leave(self.leave_norm(x)).to(noisy))

    def mask_motion(self, valid: Tensor) -> Tensor:
        """Return which frames attend to which, ``bool [B, 1, T, T]``; every frame attends to itself."""
        places = torch.arange(valid.shape[1], device=valid.device)
        distances = places[:, None] - places
        near = (distances.abs() <= self.config.motion_reach) & valid[:, None, None, :]
        return near | (distances == 0)

    def mask_speech(self, frames: int, device: torch.device) -> Tensor:
        """Return which frames attend to which speech, ``bool [T, past + T + future]``: the alignment mask."""
        past, future = self.config.speech_past, self.config.speech_future
        places = torch.arange(past + frames + future, device=device) - past
        lead = places - torch.arange(frames, device=device)[:, None]
        return (lead >= -past) & (lead <= future) if self.is_aligned else torch.ones_like(lead, dtype=torch.bool)


class MotionBlock(nn.Module):
    """Attention to motion, attention to speech, and an MLP; initialized to the identity."""

    def __init__(self, config: MotionTransformerConfig) -> None:
        super().__init__()
        width = config.width
        self.heads, self.past, self.future = config.heads, config.speech_past, config.speech_future
        self.reach = config.motion_reach
        self.norms = nn.ModuleList(nn.LayerNorm(width, elementwise_affine=False) for _ in range(3))
        self.to_attention = nn.Linear(width, 3 * width)
        self.from_attention = nn.Linear(width, width)
        self.motion_bias = nn.Parameter(torch.zeros(config.heads, 2 * config.motion_reach + 1))
        self.to_query = nn.Linear(width, width)
        self.to_key_value = nn.Linear(width, 2 * width)
        self.from_speech = nn.Linear(width, width)
        self.speech_bias = nn.Parameter(torch.zeros(config.heads, config.speech_past + config.speech_future + 1))
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Dropout(config.dropout), nn.Linear(2 * width, width)
        )
        self.table = nn.Parameter(torch.randn(MODULATIONS, width) / math.sqrt(width))

    def prepare(self, speech: Tensor, near: Tensor, aligned: Tensor) -> Attended:
        """Compute keys and values of the speech ``[B, past + T + future, width]``, and biases.

        Args:
            speech: of the window and its margins.
            near: which frames attend to which, ``bool [B, 1, T, T]``.
            aligned: which frames attend to which speech, ``bool [T, past + T + future]``.
        """
        frames = torch.arange(aligned.shape[0], device=speech.device)
        key, value = self.split_heads(self.to_key_value(speech), 2)
        distances = (frames - frames[:, None]).clamp(-self.reach, self.reach) + self.reach
        lead = torch.arange(aligned.shape[1], device=speech.device) - frames[:, None]
        lead = lead.clamp(0, self.past + self.future)
        return Attended(
            key,
            value,
            torch.where(near, self.motion_bias[:, distances], -torch.inf).to(key),
            torch.where(aligned, self.speech_bias[:, lead], -torch.inf)[None].to(key),
        )

    def forward(self, x: Tensor, modulation: Tensor, attended: Attended) -> Tensor:
        """Return the next ``x [B, T, width]``; ``modulation`` is ``[B, T, MODULATIONS, width]``."""
        # The table differs from block to block; the modulation is shared by them (Chen et al., 2023).
        shifts, scales, gates = (modulation + self.table).unflatten(-2, (3, 3)).unbind(-3)
        layers: tuple[Callable[[Tensor], Tensor], ...] = (
            lambda hidden: self.attend_motion(hidden, attended),
            lambda hidden: self.attend_speech(hidden, attended),
            self.mlp,
        )
        for place, layer in enumerate(layers):
            hidden = self.norms[place](x) * (1.0 + scales[..., place, :]) + shifts[..., place, :]
            x = x + gates[..., place, :] * layer(hidden)
        return x

    def attend_motion(self, hidden: Tensor, attended: Attended) -> Tensor:
        """Attend to nearby frames; the bias depends on the distance."""
        query, key, value = self.split_heads(self.to_attention(hidden), 3)
        mixed = F.scaled_dot_product_attention(query, key, value, attended.motion_bias)
        return self.from_attention(join_heads(mixed))

    def attend_speech(self, hidden: Tensor, attended: Attended) -> Tensor:
        """Attend to the speech that the alignment mask shows; the bias depends on its lead."""
        (query,) = self.split_heads(self.to_query(hidden), 1)
        mixed = F.scaled_dot_product_attention(query, attended.key, attended.value, attended.speech_bias)
        return self.from_speech(join_heads(mixed))

    def split_heads(self, x: Tensor, parts: int) -> tuple[Tensor, ...]:
        """Split ``[B, T, parts * width]`` into ``parts`` tensors ``[B, heads, T, width / heads]``."""
        return x.unflatten(-1, (parts, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)


def join_heads(x: Tensor) -> Tensor:
    """Join heads: ``[B, heads, T, D]`` -> ``[B, T, heads * D]``."""
    return x.transpose(1, 2).flatten(2)


def encode_time(time: Tensor) -> Tensor:
    """Encode noise levels ``[B]`` in [0, 1] by sines of geometric frequencies, ``[B, 2 * TIME_FREQUENCIES]``."""
    octaves = torch.arange(TIME_FREQUENCIES, device=time.device) / (TIME_FREQUENCIES - 1)
    angles = time[:, None] * 1000.0 * torch.exp(-math.log(10_000.0) * octaves)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)
