"""Audio encoder (S3D-NeRF, section 3.3): a window of speech -> the tokens ``a_dri`` that drive the deformation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from s3dnerf.models.speech_features import SAMPLES_PER_FRAME, LogMel, LogMelConfig, Moonshine, Transformer


@dataclass
class AudioEncoderConfig:
    """Which features of speech are used, and the convolutions over them."""

    features: Literal["logmel", "moonshine", "wav2vec2", "hubert"] = "logmel"
    """Speech features: a log-mel spectrogram, the shipped layers of Moonshine, or a transformer from ``pretrained``."""
    pretrained: str | None = None
    """Folder or hub name of the wav2vec 2.0 or HuBERT model; its weights stay frozen."""
    window: int = 7680
    """Samples of speech around a frame that drive it (480 ms)."""
    context: int = 320
    """Samples more on either side: the spectrogram needs half a transform, pre-trained features hear a sound by what
    surrounds it."""
    width: int = 128
    """Channels of the convolutions and of the tokens."""
    dropout: float = 0.3
    """Share of the channels left out after each convolution in training; two thirds of it before the first."""
    logmel: LogMelConfig = field(default_factory=LogMelConfig)

    @property
    def samples(self) -> int:
        """Samples of speech that have to be given for a frame."""
        return self.window + 2 * self.context


class AudioEncoder(nn.Module):
    """A one-dimensional, fully convolutional network over speech features."""

    def __init__(self, config: AudioEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.features = make_features(config)
        self.drop_features = nn.Dropout(config.dropout * 2 / 3)
        # Every column of the pre-trained ones is 20 ms already; the first stride brings the spectrogram there.
        strides = (1, 2, 2, 1) if config.features == "logmel" else (1, 1, 2, 1)
        layers: list[nn.Module] = []
        inputs = self.features.channels
        for stride in strides:
            layers += [
                nn.Conv1d(inputs, config.width, 3, stride=stride, padding=1),
                nn.GroupNorm(8, config.width),
                nn.SiLU(),
                nn.Dropout(config.dropout),
            ]
            inputs = config.width
        self.network = nn.Sequential(*layers)

    def forward(self, windows: Tensor, run: int = 1) -> Tensor:
        """Encode windows of speech.

        Args:
            windows: ``[B, samples]`` in [-1, 1], 16 kHz; longer ones are cut about their middle.
            run: every ``run`` windows belong to consecutive frames; the sound that they share is heard once.

        Returns:
            tokens ``a_dri [B, steps, width]``.
        """
        return self.encode(self.hear(windows, run))

    def hear(self, windows: Tensor, run: int = 1) -> Tensor:
        """Return the speech features of the windows, without the context: ``[B, channels, columns]``."""
        rate = self.features.rate
        columns = self.config.window * rate // SAMPLES_PER_FRAME
        margin = self.config.context * rate // SAMPLES_PER_FRAME
        features = self.features(join_windows(cut_middle(windows, self.config.samples), run))
        features = features[..., margin : features.shape[-1] - margin]
        return features.unfold(2, columns, rate).transpose(1, 2).flatten(0, 1)

    def encode(self, features: Tensor) -> Tensor:
        """Turn what :meth:`hear` returned into tokens ``[B, steps, width]``."""
        return self.network(self.drop_features(features)).transpose(1, 2)


def make_features(config: AudioEncoderConfig) -> nn.Module:
    """Return the speech features that ``config`` names."""
    if config.features == "logmel":
        return LogMel(config.logmel)
    if config.features == "moonshine":
        return Moonshine()
    return Transformer(config.features, config.pretrained)


def cut_middle(windows: Tensor, samples: int) -> Tensor:
    """Cut ``windows [B, n]`` to ``[B, samples]`` about their middle. Raises ValueError for shorter ones."""
    spare = windows.shape[-1] - samples
    if spare < 0:
        raise ValueError(f"windows of {windows.shape[-1]} samples are shorter than {samples}")
    return windows[:, spare // 2 : spare // 2 + samples]


def join_windows(windows: Tensor, run: int) -> Tensor:
    """Join each ``run`` consecutive windows ``[B, samples]``, a frame apart, to ``[B / run, samples + ...]``."""
    windows = windows.unflatten(0, (-1, run))
    return torch.cat([windows[:, 0], windows[:, 1:, -SAMPLES_PER_FRAME:].flatten(1)], dim=1)
