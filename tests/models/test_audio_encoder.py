"""Audio encoder: tokens of a window, their order, and windows that share audio."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from s3dnerf.errors import UserError
from s3dnerf.models.audio_encoder import AudioEncoder, AudioEncoderConfig, crop_center, join_windows

SAMPLES = AudioEncoderConfig().samples
CONTEXT = AudioEncoderConfig().context


@pytest.mark.parametrize(("window", "steps"), [(7680, 12), (3840, 6), (15360, 24)])
def test_window_length_gives_the_steps(window: int, steps: int) -> None:
    encoder = AudioEncoder(AudioEncoderConfig(width=16, window=window)).eval()
    assert encoder(torch.randn(2, window + 2 * CONTEXT)).shape == (2, steps, 16)


def test_tokens_are_in_time_order() -> None:
    torch.manual_seed(0)
    encoder = AudioEncoder(AudioEncoderConfig(width=16)).eval()
    noise = 0.1 * torch.randn(1, SAMPLES)
    for step in (1, 5, 10):
        changed = noise.clone()
        changed[0, CONTEXT + 640 * step : CONTEXT + 640 * (step + 1)] = 0.1 * torch.randn(640)
        change = (encoder(changed) - encoder(noise)).abs().sum(-1)[0]
        assert abs(int(change.argmax()) - step) <= 1


def test_dropout_is_off_in_evaluation() -> None:
    encoder = AudioEncoder(AudioEncoderConfig(width=16))
    sound = torch.randn(1, SAMPLES)
    assert not torch.equal(encoder.train()(sound), encoder(sound))
    assert torch.equal(encoder.eval()(sound), encoder(sound))


def cut_run(sound: torch.Tensor, samples: int) -> torch.Tensor:
    """Cut the windows of consecutive frames out of ``sound [n]``."""
    return sound.unfold(0, samples, 640)


def test_joined_windows_are_the_sound_they_were_cut_from() -> None:
    sound = torch.randn(2, 640 * 20)
    windows = torch.cat([cut_run(part, SAMPLES) for part in sound])
    joined = join_windows(windows, len(windows) // 2)
    assert torch.equal(joined, sound[:, : joined.shape[1]]) and joined.shape[1] == SAMPLES + 640 * (
        len(windows) // 2 - 1
    )
    assert torch.equal(join_windows(windows, 1), windows)


def test_windows_that_share_sound_are_heard_as_if_alone() -> None:
    torch.manual_seed(0)
    encoder = AudioEncoder(AudioEncoderConfig(width=16)).eval()
    windows = torch.cat([cut_run(0.1 * torch.randn(640 * 20), SAMPLES) for _ in range(2)])
    torch.testing.assert_close(encoder(windows, len(windows) // 2), encoder(windows), atol=1e-4, rtol=1e-3)


def test_moonshine_hears_a_run_nearly_as_it_hears_single_windows(one_thread: None, speech: torch.Tensor) -> None:
    # Its attention covers more of a run than of a window.
    torch.manual_seed(0)
    config = AudioEncoderConfig(features="moonshine", context=7680, width=16)
    encoder = AudioEncoder(config).eval()
    windows = cut_run(speech, config.samples)[50:80]
    with torch.no_grad():
        run, alone = encoder(windows, len(windows)), encoder(windows)
    assert run.shape == alone.shape == (30, 12, 16)
    assert torch.corrcoef(torch.stack([run.flatten(), alone.flatten()]))[0, 1] > 0.85


def test_pretrained_speech_without_a_folder_is_refused() -> None:
    with pytest.raises(UserError, match="model.audio.pretrained"):
        AudioEncoder(AudioEncoderConfig(features="hubert"))


def test_a_folder_without_a_speech_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=str(tmp_path)):
        AudioEncoder(AudioEncoderConfig(features="wav2vec2", pretrained=str(tmp_path)))


def test_longer_windows_are_cut_about_their_middle() -> None:
    windows = torch.arange(10.0)[None]
    assert crop_center(windows, 4).tolist() == [[3.0, 4.0, 5.0, 6.0]]
    assert crop_center(windows, 7).tolist() == [[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]]
    with pytest.raises(ValueError, match="10 samples are shorter than 11"):
        crop_center(windows, 11)
