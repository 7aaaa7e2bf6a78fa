"""The shipped motion diffusion model: heads, lids and lips move as those of people who speak."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.signal import periodogram

import s3dnerf
from s3dnerf.face.coefficients import MotionCoefficients
from s3dnerf.face.expression_basis import load_shipped_basis
from s3dnerf.face.points import measure_lip_height
from s3dnerf.media.audio import measure_level, read_clean_speech, speech_gain
from s3dnerf.metrics.head_motion import measure_acceleration
from s3dnerf.models.fd2talk.motion_diffusion import SHIPPED, MotionDiffusion, load_motion_diffusion
from s3dnerf.models.fd2talk.motion_generator import SpeechMotion

SPEECH = Path(s3dnerf.__file__).parent / "assets" / "speech.wav"
SILENT_FRAMES = 75


@pytest.fixture(scope="module")
def model() -> MotionDiffusion:
    return load_motion_diffusion()


@pytest.fixture(scope="module")
def speech() -> np.ndarray:
    """Four times the shipped speech, and three seconds of silence."""
    sound = read_clean_speech(SPEECH)
    sound = sound[: len(sound) // 640 * 640] * np.float32(speech_gain(measure_level([sound])))
    return np.concatenate([*[sound] * 4, np.zeros(640 * SILENT_FRAMES, np.float32)])


@pytest.fixture(scope="module")
def motion(model: MotionDiffusion, speech: np.ndarray) -> MotionCoefficients:
    return SpeechMotion(model).generate(speech, len(speech) // 640)


def measure_lip_gap(motion: MotionCoefficients) -> np.ndarray:
    return motion.expression @ measure_lip_height(load_shipped_basis().components)


def test_the_head_moves_as_fast_and_as_far_as_heads_do(motion: MotionCoefficients) -> None:
    turns = np.degrees(np.linalg.norm(np.diff(motion.pose[:, :3], axis=0), axis=1)) * 25
    assert 4.0 < turns.mean() < 40.0
    spread = np.degrees(motion.pose[:, :3].std(axis=0))
    assert (spread > 0.5).all() and (spread < 12.0).all()


def test_the_head_does_not_tremble(motion: MotionCoefficients) -> None:
    """Real heads accelerate by 160 degrees per second squared, and the clips have nothing above 6 Hz."""
    rotation = motion.pose[:, :3]
    assert 60.0 < measure_acceleration(rotation) < 250.0
    frequencies, power = periodogram(rotation.astype(np.float64), fs=25.0, window="hann", axis=0)
    assert power[frequencies > 6.0].sum() < 1e-3 * power.sum()


def test_lids_blink(motion: MotionCoefficients) -> None:
    closed = motion.eyes.mean(axis=1) < 0.65
    blinks = int((closed[1:] & ~closed[:-1]).sum()) / len(closed) * 25 * 60
    assert 4.0 < blinks < 60.0
    assert 0.8 < np.median(motion.eyes) < 1.15


def test_lips_move_with_speech_and_rest_in_silence(motion: MotionCoefficients) -> None:
    gap = measure_lip_gap(motion)
    spoken, silent = gap[:-SILENT_FRAMES], gap[-SILENT_FRAMES + 15 :]
    assert silent.std() < 0.5 * spoken.std()
    # The same words four times: lips open alike.
    first, *others = spoken.reshape(4, -1)
    assert np.mean([np.corrcoef(first, other)[0, 1] for other in others]) > 0.4


def test_seeds_change_the_head_more_than_the_lips(model: MotionDiffusion, speech: np.ndarray) -> None:
    pair = [SpeechMotion(model).generate(speech[: 640 * 200], 200, seed) for seed in (1, 2)]
    assert np.degrees(np.abs(pair[0].pose[50:, :3] - pair[1].pose[50:, :3])).mean() > 0.5
    assert np.corrcoef(*(measure_lip_gap(one)[20:] for one in pair))[0, 1] > 0.4


def test_the_weights_are_small_and_have_a_card() -> None:
    assert sum(path.stat().st_size for path in SHIPPED.iterdir()) < 8.4e6
    card = (SHIPPED / "README.md").read_text("utf-8")
    assert "train_motion.py" in card and "evaluate_motion.py" in card
