"""Speech features: the log-mel spectrogram of known signals, pre-trained transformers, and the shipped Moonshine."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from s3dnerf.models.audio_encoder import AudioEncoder, AudioEncoderConfig
from s3dnerf.models.speech_features import LogMel, Moonshine, Transformer, make_mel_filters, space_evenly

WINDOW = 7680


def make_sine(frequency: float, amplitude: float = 0.1, samples: int = WINDOW) -> torch.Tensor:
    return amplitude * torch.sin(2 * torch.pi * frequency / 16000 * torch.arange(samples))[None]


def place_bands(count: int) -> np.ndarray:
    """Return the center frequencies of mel bands (Slaney: linear up to 1 kHz, then 27 steps per factor of 6.4)."""
    steps = np.linspace(0.0, 15.0 + 27.0 * math.log(8.0) / math.log(6.4), count + 2)[1:-1]
    return np.where(steps < 15.0, steps * 200.0 / 3.0, 1000.0 * 6.4 ** ((steps - 15.0) / 27.0))


@pytest.mark.parametrize("frequency", [300.0, 1000.0, 2500.0, 5000.0, 7000.0])
def test_a_sine_peaks_in_its_band(frequency: float) -> None:
    spectrogram = LogMel()(make_sine(frequency))
    assert spectrogram.shape == (1, 80, 48)
    expected = int(np.abs(place_bands(80) - frequency).argmin())
    assert (spectrogram[0, :, 4:44].argmax(dim=0) - expected).abs().max() <= 1


def test_mel_filters_are_those_of_transformers() -> None:
    audio_utils = pytest.importorskip("transformers.audio_utils")
    range_ = {"min_frequency": 0.0, "max_frequency": 8000.0, "sampling_rate": 16000}
    expected = audio_utils.mel_filter_bank(257, 80, **range_, norm="slaney", mel_scale="slaney")
    np.testing.assert_allclose(make_mel_filters(), expected, atol=2e-9)


def test_silence_is_the_floor_everywhere() -> None:
    spectrogram = LogMel()(torch.zeros(1, WINDOW))
    torch.testing.assert_close(spectrogram, torch.full((1, 80, 48), (math.log(1e-5) + 4.0) / 4.0))


def test_doubling_the_amplitude_adds_log_four() -> None:
    noise = 0.1 * torch.randn(1, WINDOW, generator=torch.Generator().manual_seed(0))
    quiet, loud = (LogMel()(factor * noise) for factor in (1.0, 2.0))
    torch.testing.assert_close(loud - quiet, torch.full_like(quiet, math.log(4.0) / 4.0), atol=1e-4, rtol=0)


def test_speech_at_the_normal_level_is_about_standardized() -> None:
    noise = 10 ** (-23 / 20) * torch.randn(1, 16 * WINDOW, generator=torch.Generator().manual_seed(0))
    assert LogMel()(noise).abs().mean() < 1.5


def test_a_shift_by_one_hop_shifts_the_spectrogram() -> None:
    noise = torch.randn(1, WINDOW + 160, generator=torch.Generator().manual_seed(0))
    logmel = LogMel()
    early, late = logmel(noise[:, :WINDOW]), logmel(noise[:, 160:])
    # The transform of 512 samples reaches 256 beyond a column, so two columns at each end include zero padding.
    torch.testing.assert_close(early[..., 3:46], late[..., 2:45], atol=1e-4, rtol=0)


def save_speech_model(kind: str, folder: Path) -> Path:
    """Return a wav2vec 2.0 or HuBERT model with a few thousand random weights, saved like published ones."""
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
def test_transformers_are_read_from_their_folder(kind: str, tmp_path: Path, one_thread: None) -> None:
    folder = save_speech_model(kind, tmp_path / kind)
    features = Transformer(kind, str(folder))
    sound = make_sine(300.0) + 0.02

    # The weights are those on disk, and other code loads the same ones.
    import transformers

    network = transformers.AutoModel.from_pretrained(folder).eval()
    normal = (sound - sound.mean()) / sound.std(correction=0)
    with torch.no_grad():
        expected = network(normal).last_hidden_state.transpose(1, 2)
    # States are at samples 200 + 320 k, columns at 160 + 320 k: an eighth of a step earlier.
    found = features(sound)
    assert found.shape == (1, 32, 24)
    wanted = 0.875 * expected[..., 1:] + 0.125 * expected[..., :-1]
    torch.testing.assert_close(found[..., 1:23], wanted, atol=1e-4, rtol=1e-3)


def test_pretrained_features_stay_frozen_and_are_not_saved(tmp_path: Path, one_thread: None) -> None:
    folder = save_speech_model("wav2vec2", tmp_path)
    config = AudioEncoderConfig(features="wav2vec2", pretrained=str(folder), width=16)
    encoder = AudioEncoder(config).train()
    assert encoder.training and not any(module.training for module in encoder.features.modules())
    encoder(make_sine(300.0, samples=config.samples)).sum().backward()
    assert list(encoder.features.parameters()) == [] and not encoder.features.state_dict()
    assert all(p.grad is not None for p in encoder.network.parameters())


def test_evenly_spaced_columns_by_hand() -> None:
    # States at samples 100 + 400 k hold their own position; columns are at 160, 480, 800, 1120.
    hidden = torch.tensor([[[100.0, 500.0, 900.0]]])
    spaced = space_evenly(hidden, 1280, step=400, first=100, rate=2)
    torch.testing.assert_close(spaced, torch.tensor([[[160.0, 480.0, 800.0, 900.0]]]))


@pytest.fixture(scope="module")
def moonshine() -> Moonshine:
    return Moonshine()


def test_moonshine_has_columns_of_a_half_frame(moonshine: Moonshine) -> None:
    features = moonshine(0.05 * torch.randn(2, 16000))
    assert features.shape == (2, 288, 50) and torch.isfinite(features).all()
    assert not list(moonshine.parameters()) and not moonshine.state_dict()
    # Standardized over channels, except for the effect of interpolation.
    assert 0.8 < features.std(dim=1).mean() < 1.05


def test_moonshine_follows_a_shift(moonshine: Moonshine, speech: torch.Tensor) -> None:
    # 1920 samples are three frames of columns and five steps of the network.
    early, late = moonshine(speech[None, :32000]), moonshine(speech[None, 1920 : 32000 + 1920])
    pair = torch.stack([early[0, :, 26:80].flatten(), late[0, :, 20:74].flatten()])
    assert torch.corrcoef(pair)[0, 1] > 0.98


def test_moonshine_tells_vowels_from_hiss_whatever_the_voice(moonshine: Moonshine) -> None:
    time = torch.arange(16000) / 16000

    def sing(pitch: float) -> torch.Tensor:
        """Return an open vowel: harmonics under formants at 700 and 1200 Hz."""
        harmonics = pitch * torch.arange(1, int(4000 / pitch))
        height = sum(torch.exp(-(((harmonics - center) / 150) ** 2)) for center in (700.0, 1200.0))
        return 0.02 * (height[:, None] * torch.sin(2 * torch.pi * harmonics[:, None] * time)).sum(0)

    hiss = 0.05 * torch.randn(16000, generator=torch.Generator().manual_seed(0)).diff(prepend=torch.zeros(1))
    low, high, noise = moonshine(torch.stack([sing(110.0), sing(180.0), hiss]))[..., 10:40].mean(-1)
    assert torch.cosine_similarity(low, high, dim=0) > torch.cosine_similarity(low, noise, dim=0) + 0.1
