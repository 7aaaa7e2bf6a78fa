"""Augmentation: tempo, level and colors by hand."""

from __future__ import annotations

import numpy as np
import pytest

from s3dnerf.data.augmentation import (
    augment_speech,
    augment_waveform,
    jitter_colors,
)
from s3dnerf.media.audio import cut_speech_window

WINDOW = 7680


@pytest.mark.parametrize("start", [0, 3, 37])
def test_windows_at_normal_tempo_equal_those_of_cut_speech_window(start: int) -> None:
    speech = np.random.default_rng(3).standard_normal(50 * 640 + 17).astype(np.float32)
    windows = augment_speech(speech, float(start), 1.0, 12, WINDOW, None)
    np.testing.assert_array_equal(windows, cut_speech_window(speech, start + np.arange(12), WINDOW))
    assert windows.dtype == np.float32


@pytest.mark.parametrize(("start", "tempo"), [(10.0, 1.1), (12.25, 0.9), (11.5, 1.0)])
def test_windows_at_another_tempo_stay_centered_on_their_frames(start: float, tempo: float) -> None:
    # The samples of this recording are their own indices, so they show where each sample was taken from.
    speech = np.arange(60 * 640, dtype=np.float32)
    windows = augment_speech(speech, start, tempo, 8, 1280, None)
    middles = (start + tempo * np.arange(8) + 0.5) * 640
    np.testing.assert_allclose(windows[:, 640], middles, atol=0.01)
    np.testing.assert_allclose(np.diff(windows, axis=1), tempo, atol=0.01)


def test_windows_beyond_the_recording_are_silent() -> None:
    speech = np.ones(10 * 640, np.float32)
    windows = augment_speech(speech, 0.0, 1.1, 9, WINDOW, None)
    # Frame 0 is centered at sample 320; 3840 samples of the window precede it.
    assert not windows[0, : 3840 - 292].any() and windows[0, 3840 - 290 : 3840].all()
    assert windows[8, 3840] == 1.0 and not windows[8, -3000:].any()


def test_augmented_speech_stays_correlated() -> None:
    speech = 0.1 * np.sin(np.arange(16000) * 0.1).astype(np.float32)
    for seed in range(20):
        changed = augment_waveform(speech, np.random.default_rng(seed))
        assert changed.dtype == np.float32 and len(changed) == 16000
        assert np.corrcoef(speech, changed)[0, 1] > 0.95
        # 6 dB of level, and a tilt of 0.4, which changes low frequencies by up to 0.4.
        assert 0.5 * 0.55 < changed.std() / speech.std() < 2.0 * 1.45


def test_speech_augmentation_is_determined_by_the_seed() -> None:
    speech = np.random.default_rng(4).standard_normal(20 * 640).astype(np.float32)
    first, again, other = (
        augment_speech(speech, 2.0, 1.05, 4, 1280, np.random.default_rng(seed)) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.01


def test_color_jitter_is_one_affine_map_for_all_frames() -> None:
    pixels = np.random.default_rng(5).integers(80, 170, (2, 4, 4, 3), dtype=np.uint8)
    pixels[1] = pixels[0]
    for seed in range(10):
        changed = jitter_colors(pixels, np.random.default_rng(seed))
        assert changed.dtype == np.uint8 and changed.shape == pixels.shape
        np.testing.assert_array_equal(changed[0], changed[1])
        flat = np.concatenate([pixels[0].reshape(-1, 3), np.ones((16, 1))], axis=1)
        _, residual, _, _ = np.linalg.lstsq(flat, changed[0].reshape(-1, 3).astype(float), rcond=None)
        # Rounding down leaves an error of up to one level in each of 16 pixels.
        assert residual.max() < 16 * 0.25


def test_color_jitter_stays_within_its_limits() -> None:
    gray = np.full((1, 1, 1, 3), 128, np.uint8)
    values = np.stack([jitter_colors(gray, np.random.default_rng(seed))[0, 0, 0] for seed in range(200)])
    # The value is scaled by 0.8 to 1.2 and by 0.93 to 1.07, and shifted by up to 8 % of the range.
    assert values.min() > 128 * 0.8 * 0.93 - 0.08 * 255 - 2
    assert values.max() < 128 * 1.2 * 1.07 + 0.08 * 255 + 2
    assert values.std() > 10
