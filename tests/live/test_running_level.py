"""The running level against that of whole recordings, in noise and in silence; the running mean."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import s3dnerf
from s3dnerf.constants import SAMPLE_RATE
from s3dnerf.live.running_level import RunningLevel, RunningMean
from s3dnerf.media.audio import measure_level, read_clean_speech

SPEECH = Path(s3dnerf.__file__).parent / "assets" / "speech.wav"


def to_db(level: RunningLevel) -> float:
    return 20.0 * np.log10(level.active_rms)


@pytest.mark.parametrize("gain", [0.1, 1.0, 4.0])
def test_it_becomes_the_level_of_the_recording(gain: float) -> None:
    speech = gain * read_clean_speech(SPEECH)
    level = RunningLevel()
    expected = 20.0 * np.log10(measure_level([speech]).active_rms)
    for block in np.array_split(speech, 50):
        level.feed(block)
    assert to_db(level) == pytest.approx(expected, abs=1.5)


def test_blocks_of_any_length_give_the_same_level() -> None:
    speech = read_clean_speech(SPEECH)
    levels = []
    for parts in (1, 7, 500):
        level = RunningLevel()
        for block in np.array_split(speech, parts):
            level.feed(block)
        levels.append(level.active_rms)
    np.testing.assert_allclose(levels, levels[0], rtol=1e-9)


def test_noise_and_silence_after_speech_change_little() -> None:
    rng = np.random.default_rng(0)
    level = RunningLevel()
    level.feed(read_clean_speech(SPEECH))
    before = to_db(level)
    level.feed(np.zeros(60 * SAMPLE_RATE, np.float32))
    level.feed(0.003 * rng.standard_normal(60 * SAMPLE_RATE).astype(np.float32))
    assert to_db(level) == pytest.approx(before, abs=1.0)


def test_silence_before_speech_counts_for_nothing() -> None:
    speech = read_clean_speech(SPEECH)
    late, early = RunningLevel(), RunningLevel()
    late.feed(np.zeros(30 * SAMPLE_RATE, np.float32))
    assert to_db(late) == pytest.approx(-23.0)
    for level in (late, early):
        level.feed(speech)
    assert to_db(late) == pytest.approx(to_db(early), abs=1e-6)


def test_a_level_that_is_known_stays() -> None:
    level = RunningLevel(0.5)
    level.feed(np.ones(SAMPLE_RATE, np.float32))
    assert level.active_rms == 0.5
    assert level.gain == pytest.approx(10 ** (-23 / 20) / 0.5)


def test_the_mean_is_that_of_all_codes_at_first() -> None:
    codes = torch.randn(40, 2, 3, generator=torch.Generator().manual_seed(0))
    mean = RunningMean()
    for block in codes.split([1, 30, 9]):
        mean.feed(block)
    torch.testing.assert_close(mean.mean, codes.mean(dim=0, keepdim=True))


def test_the_mean_follows_the_last_minute() -> None:
    mean = RunningMean()
    mean.feed(torch.zeros(5000, 1, 1))
    for _ in range(100):
        mean.feed(torch.ones(60, 1, 1))
    # 6,000 frames of a horizon of 1,500: 1 - exp(-4).
    assert float(mean.mean) == pytest.approx(0.982, abs=0.003)


def test_a_mean_that_is_known_stays() -> None:
    known = torch.ones(1, 2, 3)
    assert RunningMean(known).feed(torch.zeros(4, 2, 3)) is known
