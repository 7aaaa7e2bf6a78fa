"""Audio encoder (S3D-NeRF, section 3.3): a window of speech -> the tokens ``a_dri`` that drive the deformation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn
from transformers.audio_utils import mel_filter_bank

from s3dnerf.errors import UserError

SAMPLE_RATE = 16_000


@dataclass
class LogMelConfig:
    """Log-mel spectrogram of a speech window."""

    bands: int = 80
    """Mel bands between 0 and 8 kHz."""
    transform: int = 512
    """Samples of a Fourier transform."""
    hop: int = 160
    """Samples between two columns of the spectrogram (10 ms)."""


@dataclass
class AudioEncoderConfig:
    """Which features of speech are used, and the convolutions over them."""

    features: Literal["logmel", "wav2vec2", "hubert"] = "logmel"
    """Speech features: the built-in log-mel spectrogram, or a pre-trained transformer read from ``pretrained``."""
    pretrained: str | None = None
    """Folder or hub name of the wav2vec 2.0 or HuBERT model; its weights stay frozen."""
    window: int = 7680
    """Samples of speech around a frame (480 ms)."""
    width: int = 128
    """Channels of the convolutions and of the tokens."""
    logmel: LogMelConfig = field(default_factory=LogMelConfig)


class LogMel(nn.Module):
    """Log-mel spectrogram in units of about one standard deviation of speech at the normal level."""

    def __init__(self, config: LogMelConfig) -> None:
        super().__init__()
        self.config = config
        filters = mel_filter_bank(
            num_frequency_bins=config.transform // 2 + 1,
            num_mel_filters=config.bands,
            min_frequency=0.0,
            max_frequency=SAMPLE_RATE / 2,
            sampling_rate=SAMPLE_RATE,
            norm="slaney",
            mel_scale="slaney",
        )
        self.register_buffer("filters", torch.from_numpy(filters).float(), persistent=False)
        self.register_buffer("taper", torch.hann_window(config.transform), persistent=False)
        self.output_channels = config.bands

    def forward(self, windows: Tensor) -> Tensor:
        """``windows [B, samples]`` in [-1, 1] -> ``[B, bands, samples / hop]``."""
        count = windows.shape[-1] // self.config.hop
        spectrum = torch.stft(
            windows.float(),
            self.config.transform,
            self.config.hop,
            window=self.taper,
            center=True,
            pad_mode="constant",
            return_complex=True,
        )
        power = spectrum.abs().square()[..., :count]
        # The floor of 1e-5 lies about 60 dB under speech at the normal level: below it is room noise.
        mel = (self.filters.T @ power).clamp(min=1e-5).log()
        return (mel + 4.0) / 4.0


class PretrainedSpeech(nn.Module):
    """Hidden states of a frozen wav2vec 2.0 or HuBERT model, about 50 a second.

    Raises:
        UserError: ``config.pretrained`` is not set or holds no such model.
    """

    def __init__(self, config: AudioEncoderConfig) -> None:
        super().__init__()
        if config.pretrained is None:
            reason = f"is not set, and features '{config.features}' need a pre-trained model"
            raise UserError("model.audio.pretrained", reason, "name its folder or its hub id")
        from transformers import HubertModel, Wav2Vec2Model

        kind = {"wav2vec2": Wav2Vec2Model, "hubert": HubertModel}[config.features]
        try:
            network = kind.from_pretrained(config.pretrained)
        except (OSError, ValueError) as error:
            reason = f"holds no {config.features} model ({str(error).splitlines()[0]})"
            raise UserError(config.pretrained, reason, "name its folder or its hub id") from error
        self.network = network.eval().requires_grad_(False)
        self.output_channels = self.network.config.hidden_size

    def train(self, mode: bool = True) -> PretrainedSpeech:
        """Stay in evaluation mode: the features are frozen, their dropout too."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, windows: Tensor) -> Tensor:
        """``windows [B, samples]`` in [-1, 1] -> ``[B, hidden, frames]``."""
        centered = windows - windows.mean(dim=-1, keepdim=True)
        normal = centered / centered.square().mean(dim=-1, keepdim=True).add(1e-7).sqrt()
        return self.network(normal).last_hidden_state.transpose(1, 2)


class AudioEncoder(nn.Module):
    """A one-dimensional, fully convolutional network over speech features."""

    def __init__(self, config: AudioEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.features = LogMel(config.logmel) if config.features == "logmel" else PretrainedSpeech(config)
        # The transformers already take 20 ms a step; the spectrogram is brought there by the first stride.
        strides = (1, 2, 2, 1) if config.features == "logmel" else (1, 1, 2, 1)
        layers: list[nn.Module] = []
        inputs = self.features.output_channels
        for stride in strides:
            layers += [
                nn.Conv1d(inputs, config.width, 3, stride=stride, padding=1),
                nn.GroupNorm(8, config.width),
                nn.SiLU(),
                nn.Dropout(0.1),
            ]
            inputs = config.width
        self.network = nn.Sequential(*layers)

    def forward(self, windows: Tensor) -> Tensor:
        """``windows [B, samples]`` of speech in [-1, 1], 16 kHz -> tokens ``a_dri [B, steps, width]``."""
        return self.network(self.features(windows)).transpose(1, 2)
