"""Audio encoder: the log-mel spectrogram of known sounds, steps of a window, and pre-trained speech models."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from s3dnerf.errors import UserError
from s3dnerf.models.audio_encoder import AudioEncoder, AudioEncoderConfig, LogMel, LogMelConfig

WINDOW = 7680


def make_sine(frequency: float, amplitude: float = 0.1, samples: int = WINDOW) -> torch.Tensor:
    return amplitude * torch.sin(2 * torch.pi * frequency / 16000 * torch.arange(samples))[None]


def place_bands(count: int) -> np.ndarray:
    """Center frequencies of mel bands (Slaney: linear up to 1 kHz, then 27 steps an octave ratio of 6.4)."""
    steps = np.linspace(0.0, 15.0 + 27.0 * math.log(8.0) / math.log(6.4), count + 2)[1:-1]
    return np.where(steps < 15.0, steps * 200.0 / 3.0, 1000.0 * 6.4 ** ((steps - 15.0) / 27.0))


@pytest.mark.parametrize("frequency", [300.0, 1000.0, 2500.0, 5000.0, 7000.0])
def test_a_sine_peaks_in_its_band(frequency: float) -> None:
    spectrogram = LogMel(LogMelConfig())(make_sine(frequency))
    assert spectrogram.shape == (1, 80, 48)
    expected = int(np.abs(place_bands(80) - frequency).argmin())
    assert (spectrogram[0, :, 4:44].argmax(dim=0) - expected).abs().max() <= 1


def test_silence_is_the_floor_everywhere() -> None:
    spectrogram = LogMel(LogMelConfig())(torch.zeros(1, WINDOW))
    torch.testing.assert_close(spectrogram, torch.full((1, 80, 48), (math.log(1e-5) + 4.0) / 4.0))


def test_doubling_the_amplitude_adds_log_four() -> None:
    noise = 0.1 * torch.randn(1, WINDOW, generator=torch.Generator().manual_seed(0))
    quiet, loud = (LogMel(LogMelConfig())(factor * noise) for factor in (1.0, 2.0))
    torch.testing.assert_close(loud - quiet, torch.full_like(quiet, math.log(4.0) / 4.0), atol=1e-4, rtol=0)


def test_speech_at_the_normal_level_is_about_standardized() -> None:
    noise = 10 ** (-23 / 20) * torch.randn(1, 16 * WINDOW, generator=torch.Generator().manual_seed(0))
    assert LogMel(LogMelConfig())(noise).abs().mean() < 1.5


def test_a_shift_by_one_hop_shifts_the_spectrogram() -> None:
    noise = torch.randn(1, WINDOW + 160, generator=torch.Generator().manual_seed(0))
    logmel = LogMel(LogMelConfig())
    early, late = logmel(noise[:, :WINDOW]), logmel(noise[:, 160:])
    # The transform of 512 samples reaches 256 beyond a column: two columns at the ends see the zeros outside.
    torch.testing.assert_close(early[..., 3:46], late[..., 2:45], atol=1e-4, rtol=0)


@pytest.mark.parametrize(("window", "steps"), [(7680, 12), (3840, 6), (15360, 24)])
def test_window_length_gives_the_steps(window: int, steps: int) -> None:
    encoder = AudioEncoder(AudioEncoderConfig(width=16, window=window)).eval()
    assert encoder(torch.randn(2, window)).shape == (2, steps, 16)


def test_tokens_are_in_time_order() -> None:
    torch.manual_seed(0)
    encoder = AudioEncoder(AudioEncoderConfig(width=16)).eval()
    noise = 0.1 * torch.randn(1, WINDOW)
    for step in (1, 5, 10):
        changed = noise.clone()
        changed[0, 640 * step : 640 * (step + 1)] = 0.1 * torch.randn(640)
        change = (encoder(changed) - encoder(noise)).abs().sum(-1)[0]
        assert abs(int(change.argmax()) - step) <= 1


def test_dropout_is_off_in_evaluation() -> None:
    encoder = AudioEncoder(AudioEncoderConfig(width=16))
    sound = torch.randn(1, WINDOW)
    assert not torch.equal(encoder.train()(sound), encoder(sound))
    assert torch.equal(encoder.eval()(sound), encoder(sound))


def save_speech_model(kind: str, folder: Path) -> Path:
    """A wav2vec 2.0 or HuBERT model of a few thousand random weights, saved as published ones are."""
    import transformers

    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    convolution = {"conv_dim": (8,) * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2}
    config_class, model_class = {
        "wav2vec2": (transformers.Wav2Vec2Config, transformers.Wav2Vec2Model),
        "hubert": (transformers.HubertConfig, transformers.HubertModel),
    }[kind]
    torch.manual_seed(0)
    model_class(config_class(**sizes, **convolution)).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["wav2vec2", "hubert"])
def test_pretrained_speech_is_read_from_its_folder(kind: str, tmp_path: Path, one_thread: None) -> None:
    folder = save_speech_model(kind, tmp_path / kind)
    torch.manual_seed(1)
    encoder = AudioEncoder(AudioEncoderConfig(features=kind, pretrained=str(folder), width=16))
    sound = make_sine(300.0) + 0.02
    assert encoder(sound).shape == (1, 12, 16)

    # Its weights are those on disk, also when other code loads them.
    import transformers

    network = transformers.AutoModel.from_pretrained(folder).eval()
    normal = (sound - sound.mean()) / sound.std(correction=0)
    with torch.no_grad():
        expected = network(normal).last_hidden_state.transpose(1, 2)
    torch.testing.assert_close(encoder.features(sound), expected, atol=1e-4, rtol=1e-3)


def test_pretrained_speech_stays_frozen(tmp_path: Path, one_thread: None) -> None:
    folder = save_speech_model("wav2vec2", tmp_path)
    encoder = AudioEncoder(AudioEncoderConfig(features="wav2vec2", pretrained=str(folder), width=16)).train()
    assert encoder.training and not encoder.features.training
    assert not any(module.training for module in encoder.features.modules())
    encoder(make_sine(300.0)).sum().backward()
    assert all(p.grad is None and not p.requires_grad for p in encoder.features.parameters())
    assert all(p.grad is not None for p in encoder.network.parameters())


def test_pretrained_speech_without_a_folder_is_refused() -> None:
    with pytest.raises(UserError, match="model.audio.pretrained"):
        AudioEncoder(AudioEncoderConfig(features="hubert"))


def test_a_folder_without_a_speech_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=str(tmp_path)):
        AudioEncoder(AudioEncoderConfig(features="wav2vec2", pretrained=str(tmp_path)))
