"""Speech features per frame of motion, computed in blocks, so that a stream gives the same numbers as a recording."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from s3dnerf.models.audio_encoder import AudioEncoderConfig, make_speech_features
from s3dnerf.models.speech_features import PRETRAINED_RATE, SAMPLES_PER_FRAME

BLOCK = 25
"""Frames whose features are computed together."""
CONTEXT = 12
"""Frames of sound on either side of a block that its features depend on."""
LEVEL_FLOOR = 1e-6
"""Power that counts as silence: 37 dB below speech at the normal level."""
LEVEL_MEAN, LEVEL_SCALE = -8.0, 3.0
"""About the mean and standard deviation of the logarithm of the power of speech at the normal level."""


class FrameSpeech(nn.Module):
    """Frozen speech features and the level of the sound, two columns per frame."""

    def __init__(self, features: Literal["moonshine", "wav2vec2", "hubert"], pretrained: str | None) -> None:
        super().__init__()
        self.features = make_speech_features(AudioEncoderConfig(features=features, pretrained=pretrained))
        self.channels = PRETRAINED_RATE * (self.features.channels + 1)

    @torch.no_grad()
    def forward(self, sound: Tensor) -> Tensor:
        """Return features ``[B, BLOCK, channels]`` of sound ``[B, (BLOCK + 2 CONTEXT) * 640]`` at the normal level."""
        hidden = self.features(sound).float()
        power = sound.float().unflatten(1, (-1, SAMPLES_PER_FRAME // PRETRAINED_RATE)).square().mean(dim=2)
        level = ((power + LEVEL_FLOOR).log() - LEVEL_MEAN) / LEVEL_SCALE
        columns = torch.cat([hidden, level[:, None]], dim=1)
        margin = CONTEXT * PRETRAINED_RATE
        columns = columns[..., margin : margin + BLOCK * PRETRAINED_RATE]
        return columns.transpose(1, 2).reshape(len(sound), BLOCK, self.channels)

    def encode(self, sound: np.ndarray, frames: int) -> Tensor:
        """Return the features ``[frames, channels]`` of a recording ``float32 [samples]``; silence follows it."""
        blocks = -(-frames // BLOCK)
        padded = np.zeros((blocks * BLOCK + 2 * CONTEXT) * SAMPLES_PER_FRAME, np.float32)
        start = CONTEXT * SAMPLES_PER_FRAME
        some = sound[: len(padded) - start]
        padded[start : start + len(some)] = some
        windows = torch.from_numpy(padded).unfold(
            0, (BLOCK + 2 * CONTEXT) * SAMPLES_PER_FRAME, BLOCK * SAMPLES_PER_FRAME
        )
        # One at a time: the numbers must not depend on how many blocks are computed together.
        encoded = [self(window[None])[0] for window in windows]
        return torch.cat(encoded)[:frames] if encoded else torch.zeros(0, self.channels)
