"""Speech activity: pauses, and time for lips to open and close."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import s3dnerf
from s3dnerf.constants import SAMPLE_RATE
from s3dnerf.media.audio import measure_level, read_clean_speech
from s3dnerf.media.speech_activity import find_pauses, measure_speech_activity, shape_activity

SPEECH = Path(s3dnerf.__file__).parent / "assets" / "speech.wav"


def test_edges_by_hand() -> None:
    is_active = np.zeros(50, bool)
    is_active[20:25] = True
    activity = shape_activity(is_active)
    # Open 3 frames before the sound, closed 3 frames earlier; open 5 frames after it, closed 3 frames later.
    assert (activity[17:30] == 1).all()
    assert (activity[:15] == 0).all() and (activity[33:] == 0).all()
    assert (np.diff(activity[14:18]) >= 0).all() and 0 < activity[16] < 1 and 0 < activity[31] < 1


def test_short_pauses_belong_to_speech_and_long_ones_do_not() -> None:
    for pause, expected in ((9, 1.0), (30, 0.0)):
        is_active = np.ones(60, bool)
        is_active[20 : 20 + pause] = False
        assert shape_activity(is_active)[20 : 20 + pause].min() == expected


def test_silence_alone_is_silent_and_speech_alone_is_speech() -> None:
    assert shape_activity(np.zeros(10, bool)).tolist() == [0.0] * 10
    assert shape_activity(np.ones(10, bool)).tolist() == [1.0] * 10
    assert shape_activity(np.zeros(0, bool)).shape == (0,)


def test_silence_around_real_speech_is_found_whatever_the_blocks_and_the_noise() -> None:
    speech = read_clean_speech(SPEECH)[: 2 * SAMPLE_RATE]
    noise = np.random.default_rng(0).standard_normal(6 * SAMPLE_RATE).astype(np.float32)
    sound = np.float32(1e-4) * noise
    sound[2 * SAMPLE_RATE : 4 * SAMPLE_RATE] += speech
    level = measure_level([sound])
    activity = measure_speech_activity([sound], level)
    assert activity.shape == (150,)
    onset = 50 + np.flatnonzero(np.abs(speech) > 0.02)[0] // 640
    assert activity[: onset - 8].max() == 0.0 and activity[onset - 2 : onset + 10].min() > 0.9
    assert activity[-30:].max() == 0.0
    pieces = np.split(sound, np.arange(1000, len(sound), 1000))
    np.testing.assert_array_equal(measure_speech_activity(pieces, level), activity)


def test_audio_is_followed_by_silence() -> None:
    speech = read_clean_speech(SPEECH)[: 2 * SAMPLE_RATE]
    longer = measure_speech_activity([speech], measure_level([speech]), frames=100)
    assert len(longer) == 100 and longer[65:].max() == 0.0
    assert len(measure_speech_activity([speech], measure_level([speech]), frames=10)) == 10


def test_pauses_by_hand() -> None:
    is_active = np.zeros(75, bool)
    is_active[[*range(10, 20), *range(30, 40), *range(49, 65)]] = True
    # Ten frames (0.4 s) of silence are a pause, nine are not. Five frames after a sound and three before one are left
    # out.
    assert np.flatnonzero(find_pauses(is_active)).tolist() == [*range(7), 25, 26, *range(70, 75)]
    assert find_pauses(np.zeros(12, bool)).all() and not find_pauses(np.ones(12, bool)).any()
    assert not find_pauses(np.zeros(9, bool)).any()
