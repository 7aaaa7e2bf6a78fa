"""The judge of head motion and speech, on heads whose motion follows speech by construction."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter1d

from s3dnerf.evaluation.motion_judge import MotionJudge
from s3dnerf.evaluation.motion_rows import copy_motion, make_still
from s3dnerf.face.coefficients import MotionCoefficients

PEOPLE = [f"person_{number}" for number in range(8)]
FRAMES = 300


def make_pair(seed: int) -> tuple[np.ndarray, MotionCoefficients]:
    """Return speech features, and a head whose pitch is the first of them."""
    features = gaussian_filter1d(np.random.default_rng(seed).normal(size=(FRAMES, 40)), 4, axis=0)
    values = make_still(FRAMES).flatten()
    values[:, 24] = features[:, 0]
    values[:, 33] = features[:, 1]
    return features, MotionCoefficients.unflatten(values)


@pytest.fixture(scope="module")
def judged() -> tuple[MotionJudge, list[MotionCoefficients]]:
    """Return the judge of eight people, and their motion."""
    pairs = [make_pair(seed) for seed in range(len(PEOPLE))]
    return MotionJudge([pair[0] for pair in pairs], [pair[1] for pair in pairs], PEOPLE), [pair[1] for pair in pairs]


def test_heads_that_follow_speech_are_told_apart(judged: tuple[MotionJudge, list[MotionCoefficients]]) -> None:
    judge, motions = judged
    scores = [judge.measure_agreement(motion, clip) for clip, motion in enumerate(motions)]
    assert np.mean(scores) == pytest.approx(1.0, abs=0.02)


def test_motion_of_others_is_at_chance(judged: tuple[MotionJudge, list[MotionCoefficients]]) -> None:
    judge, motions = judged
    count = len(motions)
    pairs = [(clip, donor) for clip in range(count) for donor in range(count) if clip != donor]
    scores = [judge.measure_agreement(motions[donor], clip, donor) for clip, donor in pairs]
    assert np.mean(scores) == pytest.approx(0.5, abs=0.02)


def test_still_heads_are_at_chance(judged: tuple[MotionJudge, list[MotionCoefficients]]) -> None:
    judge, _ = judged
    assert judge.measure_agreement(make_still(FRAMES), 0) == 0.5


def test_ridge_motion_starts_at_the_source_and_follows_speech(
    judged: tuple[MotionJudge, list[MotionCoefficients]],
) -> None:
    judge, motions = judged
    predicted = judge.predict_motion(2)
    assert not predicted.pose[0].any()
    assert np.corrcoef(predicted.pose[:, 0], motions[2].pose[:, 0])[0, 1] > 0.8


def test_the_judge_needs_two_people() -> None:
    features, motion = make_pair(0)
    with pytest.raises(ValueError, match="two people"):
        MotionJudge([features], [motion], ["one"])


def test_copied_motion_is_played_back_when_it_is_shorter() -> None:
    _, motion = make_pair(0)
    assert len(copy_motion(motion, 700)) == 700
    np.testing.assert_array_equal(copy_motion(motion, 700).pose[300], motion.pose[298])
    np.testing.assert_array_equal(copy_motion(motion, 100).pose, motion.pose[:100])
