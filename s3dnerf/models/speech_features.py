"""Speech features: a log-mel spectrogram, or hidden states of a frozen speech recognizer.

All modules take audio ``[B, samples]`` in [-1, 1] at 16 kHz, a whole number of frames of 640 samples long. They return
``[B, channels, columns]`` with ``rate`` evenly spaced columns per frame, the first half a column after the start.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from s3dnerf.errors import UserError, first_line
from s3dnerf.hub import find_model, is_online
from s3dnerf.models.moonshine import MoonshineEncoder
from s3dnerf.paths import is_folder

SAMPLE_RATE = 16_000
SAMPLES_PER_FRAME = 640
PRETRAINED_RATE = 2
"""Columns of pre-trained features per frame."""
MOONSHINE = Path(__file__).parents[1] / "weights" / "speech" / "moonshine_tiny.safetensors"


MEL_BANDS, MEL_TRANSFORM, MEL_HOP = 80, 512, 160
"""Log-mel spectrogram: bands from 0 to 8 kHz, samples per Fourier transform, hop length in samples (10 ms)."""


class LogMel(nn.Module):
    """Log-mel spectrogram, scaled to about unit standard deviation for speech at the normal level."""

    filters: Tensor
    taper: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("filters", torch.from_numpy(make_mel_filters()), persistent=False)
        self.register_buffer("taper", torch.hann_window(MEL_TRANSFORM), persistent=False)
        self.channels = MEL_BANDS
        self.rate = SAMPLES_PER_FRAME // MEL_HOP

    def forward(self, sound: Tensor) -> Tensor:
        """Return the spectrogram."""
        count = sound.shape[-1] // MEL_HOP
        spectrum = torch.stft(
            sound.float(),
            MEL_TRANSFORM,
            MEL_HOP,
            window=self.taper,
            center=True,
            pad_mode="constant",
            return_complex=True,
        )
        power = spectrum.abs().square()[..., :count]
        # The floor of 1e-5 lies about 60 dB below speech at the normal level. Anything below it is room noise.
        mel = (self.filters.T @ power).clamp(min=1e-5).log()
        return (mel + 4.0) / 4.0


def make_mel_filters() -> np.ndarray:
    """Return triangular filters ``float32 [frequencies, bands]`` of equal area, as in Slaney's Auditory Toolbox.

    The band centers are evenly spaced on a scale that is linear up to 1 kHz and logarithmic above.
    """
    linear, steps = 15.0, 27.0  # steps of 200/3 Hz up to 1 kHz, and for a factor of 6.4 above
    highest = linear + steps * np.log(SAMPLE_RATE / 2 / 1000.0) / np.log(6.4)
    scale = np.linspace(0.0, highest, MEL_BANDS + 2)
    edges = np.where(scale < linear, scale * 200.0 / 3.0, 1000.0 * 6.4 ** ((scale - linear) / steps))
    frequencies = np.linspace(0.0, SAMPLE_RATE / 2, MEL_TRANSFORM // 2 + 1)[:, None]
    low, center, high = edges[:-2], edges[1:-1], edges[2:]
    rising, falling = (frequencies - low) / (center - low), (high - frequencies) / (high - center)
    return (np.minimum(rising, falling).clip(min=0.0) * 2.0 / (high - low)).astype(np.float32)


class Transformer(nn.Module):
    """Hidden states of a frozen wav2vec 2.0 or HuBERT model.

    Raises:
        UserError: ``pretrained`` is not set or holds no such model.
    """

    rate = PRETRAINED_RATE
    step, first = 320, 200
    """Samples between two hidden states, and the sample on which the first is centered."""

    def __init__(self, features: str, pretrained: str | None) -> None:
        super().__init__()
        if pretrained is None:
            reason = f"is not set, and features '{features}' need a pre-trained model"
            raise UserError("model.audio.pretrained", reason, "name its folder or its hub id")
        from transformers import HubertModel, Wav2Vec2Model

        kind: Any = {"wav2vec2": Wav2Vec2Model, "hubert": HubertModel}[features]
        # This check takes seconds if the hub does not have the model; transformers would retry for half a minute.
        find_model(pretrained, ["config.json"])
        offline = not is_folder(pretrained) and not is_online()
        try:
            network = kind.from_pretrained(pretrained, local_files_only=offline)
        except (OSError, ValueError, SafetensorError, RuntimeError) as error:
            reason = f"holds no {features} model ({first_line(error)})"
            raise UserError(pretrained, reason, "name its folder or its hub id") from error
        self.network = freeze(network)
        self.channels: int = network.config.hidden_size

    def train(self, mode: bool = True) -> Transformer:
        """Stay in evaluation mode: the features are frozen, including their dropout."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, sound: Tensor) -> Tensor:
        """Return the last hidden states."""
        centered = sound - sound.mean(dim=-1, keepdim=True)
        normal = centered / centered.square().mean(dim=-1, keepdim=True).add(1e-7).sqrt()
        hidden = self.network(normal).last_hidden_state.transpose(1, 2)
        return space_evenly(hidden, sound.shape[-1], self.step, self.first, self.rate)


class Moonshine(nn.Module):
    """The first layers of the encoder of Moonshine (Jeffries et al., 2024, arXiv 2410.15608), shipped with the package.

    It was trained on 200,000 hours of speech, compared with our quarter of an hour, so its features generalize to new
    voices. Later layers encode words rather than sounds; the third layer predicts lips best.
    """

    rate = PRETRAINED_RATE
    step, first = 384, 447
    """Samples between two hidden states, and the sample on which the first is centered."""

    def __init__(self) -> None:
        super().__init__()
        weights = read_quantized(MOONSHINE)
        layers = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("layers."))
        self.channels = len(weights["conv1.weight"])
        # In the place of the norm after the last layer of the full encoder stands one that only standardizes.
        norms = FixedNorm(self.channels), nn.LayerNorm(self.channels, elementwise_affine=False)
        network = MoonshineEncoder(self.channels, len(weights["layers.0.mlp.fc1.weight"]), layers, *norms)
        network.load_state_dict(weights)
        self.network = freeze(network)

    def train(self, mode: bool = True) -> Moonshine:
        """Stay in evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, sound: Tensor) -> Tensor:
        """Return the standardized hidden states after the last shipped layer."""
        hidden = self.network(sound).transpose(1, 2)
        return space_evenly(hidden, sound.shape[-1], self.step, self.first, self.rate)


class FixedNorm(nn.Module):
    """Group norm with the statistics of speech at the normal level.

    The original uses the statistics of the current recording. With fixed statistics the features of a frame do not
    depend on the length of the recording, and silence stays silent.
    """

    mean: Tensor
    variance: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("variance", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        """Normalize ``[B, channels, T]``."""
        return (x - self.mean) * (self.variance + 1e-5).rsqrt() * self.weight[:, None] + self.bias[:, None]


def space_evenly(hidden: Tensor, samples: int, step: int, first: int, rate: int) -> Tensor:
    """Resample ``hidden [B, C, K]``, centered on samples ``first + k step``, to ``rate`` columns per frame."""
    width = SAMPLES_PER_FRAME / rate
    count = samples * rate // SAMPLES_PER_FRAME
    places = ((torch.arange(count, device=hidden.device) + 0.5) * width - first) / step
    places = places.clamp(0, hidden.shape[-1] - 1)
    low = places.floor().long().clamp(max=max(hidden.shape[-1] - 2, 0))
    high = (low + 1).clamp(max=hidden.shape[-1] - 1)
    return torch.lerp(hidden[..., low].float(), hidden[..., high].float(), places - low)


def read_quantized(path: Path) -> dict[str, Tensor]:
    """Read weights that are stored as 8-bit integers with a scale and an offset."""
    stored = load_file(path)
    weights = {name: value for name, value in stored.items() if not name.endswith((".scale", ".offset"))}
    return {
        name: value.float() * stored[f"{name}.scale"] + stored[f"{name}.offset"] if value.dtype == torch.int8 else value
        for name, value in weights.items()
    }


def freeze(network: nn.Module) -> nn.Module:
    """Turn parameters into non-persistent buffers, so that they are not trained, averaged or saved."""
    for module in list(network.modules()):
        for name, parameter in list(module.named_parameters(recurse=False)):
            delattr(module, name)
            module.register_buffer(name, parameter.detach(), persistent=False)
        for name, buffer in list(module.named_buffers(recurse=False)):
            module.register_buffer(name, buffer, persistent=False)
    return network.eval()
