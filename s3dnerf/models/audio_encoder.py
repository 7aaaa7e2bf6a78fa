"""Audio encoder (S3D-NeRF, section 3.3): a window of speech -> the tokens ``a_dri`` that drive the deformation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from s3dnerf.constraints import NonNegativeInt, PositiveInt, ShareBelowOne, Text, Width
from s3dnerf.models.speech_features import (
    MEL_HOP,
    PRETRAINED_RATE,
    SAMPLES_PER_FRAME,
    LogMel,
    Moonshine,
    Transformer,
)

GROUPS = 8
"""Number of groups of the group normalization."""
SpeechWindow = Annotated[PositiveInt, Field(multiple_of=SAMPLES_PER_FRAME, le=64 * SAMPLES_PER_FRAME)]
"""Whole frames, 40 ms each, up to 2.56 s."""
SpeechContext = Annotated[NonNegativeInt, Field(multiple_of=SAMPLES_PER_FRAME // 2, le=64 * SAMPLES_PER_FRAME)]
"""A multiple of half a frame, so that the window with context on both sides is a whole number of frames."""


@dataclass
class AudioEncoderConfig:
    """Speech features and the convolutions over them."""

    features: Literal["logmel", "moonshine", "wav2vec2", "hubert"] = "logmel"
    """Speech features: a log-mel spectrogram, the shipped layers of Moonshine, or a transformer from ``pretrained``."""
    pretrained: Text | None = None
    """Folder or hub name of the wav2vec 2.0 or HuBERT model; its weights stay frozen."""
    window: SpeechWindow = 7680
    """Samples of speech around a frame that drive it (480 ms), a multiple of 640."""
    context: SpeechContext = 320
    """Additional samples on either side, a multiple of 320: the spectrogram needs half a Fourier transform, and
    pre-trained features depend on the surrounding speech."""
    width: Annotated[Width, Field(multiple_of=GROUPS)] = 128
    """Channels of the convolutions and of the tokens, a multiple of 8."""
    dropout: ShareBelowOne = 0.3
    """Dropout probability after each convolution; two thirds of it before the first."""

    @property
    def samples(self) -> int:
        """Samples of speech that the encoder needs for a frame."""
        return self.window + 2 * self.context

    @property
    def steps(self) -> int:
        """Number of tokens per window of speech."""
        rate = SAMPLES_PER_FRAME // MEL_HOP if self.features == "logmel" else PRETRAINED_RATE
        stride = math.prod(self.strides)
        return -(-(self.window * rate // SAMPLES_PER_FRAME) // stride)

    @property
    def strides(self) -> tuple[int, ...]:
        """Stride of each convolution: tokens are 40 ms apart, columns of pre-trained features 20 ms."""
        return (1, 2, 2, 1) if self.features == "logmel" else (1, 1, 2, 1)

    @model_validator(mode="after")
    def check_features(self) -> AudioEncoderConfig:
        """Check that pre-trained features have a source."""
        if self.features in ("wav2vec2", "hubert") and self.pretrained is None:
            raise ValueError(f"features '{self.features}' need pretrained, the folder or hub id of the model")
        return self


class AudioEncoder(nn.Module):
    """A one-dimensional, fully convolutional network over speech features."""

    def __init__(self, config: AudioEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.features = make_speech_features(config)
        self.drop_features = nn.Dropout(config.dropout * 2 / 3)
        layers: list[nn.Module] = []
        inputs = self.features.channels
        for stride in config.strides:
            layers += [
                nn.Conv1d(inputs, config.width, 3, stride=stride, padding=1),
                nn.GroupNorm(GROUPS, config.width),
                nn.SiLU(),
                nn.Dropout(config.dropout),
            ]
            inputs = config.width
        self.network = nn.Sequential(*layers)

    def forward(self, windows: Tensor, consecutive: int = 1) -> Tensor:
        """Encode windows of speech.

        Args:
            windows: ``[B, samples]`` in [-1, 1], 16 kHz. Longer windows are center-cropped.
            consecutive: number of successive windows that belong to consecutive frames. The audio that they share is
                encoded once.

        Returns:
            Tokens ``a_dri [B, steps, width]``.
        """
        return self.encode(self.extract_features(windows, consecutive))

    def extract_features(self, windows: Tensor, consecutive: int = 1) -> Tensor:
        """Return the speech features of the windows, without the context: ``[B, channels, columns]``."""
        rate = self.features.rate
        columns = self.config.window * rate // SAMPLES_PER_FRAME
        margin = self.config.context * rate // SAMPLES_PER_FRAME
        features = self.features(join_windows(crop_center(windows, self.config.samples), consecutive))
        features = features[..., margin : features.shape[-1] - margin]
        return features.unfold(2, columns, rate).transpose(1, 2).flatten(0, 1)

    def encode(self, features: Tensor) -> Tensor:
        """Encode the result of :meth:`extract_features` as tokens ``[B, steps, width]``."""
        return self.network(self.drop_features(features)).transpose(1, 2)


def make_speech_features(config: AudioEncoderConfig) -> LogMel | Moonshine | Transformer:
    """Return the speech features that ``config`` names."""
    if config.features == "logmel":
        return LogMel()
    if config.features == "moonshine":
        return Moonshine()
    return Transformer(config.features, config.pretrained)


def crop_center(windows: Tensor, samples: int) -> Tensor:
    """Center-crop ``windows [B, n]`` to ``[B, samples]``. Raises ValueError if they are shorter."""
    spare = windows.shape[-1] - samples
    if spare < 0:
        raise ValueError(f"windows of {windows.shape[-1]} samples are shorter than {samples}")
    return windows[:, spare // 2 : spare // 2 + samples]


def join_windows(windows: Tensor, consecutive: int) -> Tensor:
    """Join groups of consecutive windows ``[B, samples]``, a frame apart, into ``[B / consecutive, samples + ...]``."""
    windows = windows.unflatten(0, (-1, consecutive))
    return torch.cat([windows[:, 0], windows[:, 1:, -SAMPLES_PER_FRAME:].flatten(1)], dim=1)
