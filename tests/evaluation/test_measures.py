"""The registry of measures: complete, and each in the tasks in which it has a meaning."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest

from s3dnerf.constants import SAMPLES_PER_FRAME
from s3dnerf.evaluation.frame_measures import FRAME_MEASURES, FrameMeasures
from s3dnerf.evaluation.measures import MEASURES, TASKS, ScoredPair, choose_measures, measure_pair
from s3dnerf.evaluation.scores import OF_REAL, Scores
from s3dnerf.evaluation.tracking import FaceTrack

FRAMES = 30


def make_pair(speech: np.ndarray | None, has_face: bool = True) -> ScoredPair:
    rng = np.random.default_rng(0)
    fine = rng.normal(0.0, 0.3, (1, 478, 3)) + 0.01 * rng.normal(size=(FRAMES, 478, 3))
    plain = 128 + 100 * fine[:, :468, :2]
    real = FaceTrack(fine.astype(np.float32), plain.astype(np.float32), (256, 256))
    lost = FaceTrack(np.full_like(real.fine, np.nan), np.full_like(real.plain, np.nan), (256, 256))
    return ScoredPair(real, real if has_face else lost, make_speech(1), speech)


def make_speech(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    envelope = np.repeat(np.abs(rng.normal(size=FRAMES)), SAMPLES_PER_FRAME)
    return (0.1 * envelope * rng.normal(size=len(envelope))).astype(np.float32)


def make_scores() -> Scores:
    return Scores(*[float(number) for number, _ in enumerate(fields(Scores))])


def test_every_score_is_a_measure_once_and_says_what_it_cannot_see() -> None:
    names = [measure.name for measure in MEASURES]
    assert len(set(names)) == len(names)
    # The sound offset belongs to the real clip, and percentages of real are differences here.
    assert {part.name for part in fields(Scores)} - set(names) == {"sound_offset", *OF_REAL}
    assert set(FRAME_MEASURES) < set(names)
    assert all(measure.blind and measure.column.meaning for measure in MEASURES)


def test_tasks_leave_out_what_has_no_meaning_in_them() -> None:
    names = {task: {measure.name for measure in choose_measures(task)} for task in TASKS}
    assert names["cross"] < names["free"] < names["self"]
    assert "psnr" not in names["free"] and "lip_correlation" in names["free"]
    assert "lip_correlation" not in names["cross"] and "sync_confidence" in names["cross"]


def test_foreign_sound_is_seen_by_its_level() -> None:
    own = measure_pair(make_scores(), make_pair(make_speech(1)), "self", {})
    other = measure_pair(make_scores(), make_pair(make_speech(2)), "self", {})
    assert own["sound_match"] == pytest.approx(1.0) and abs(other["sound_match"]) < 0.6
    assert own["psnr"] == 0.0 and own["lip_warping"] == pytest.approx(0.0, abs=1e-9)


def test_videos_without_sound_or_face_have_no_such_measures() -> None:
    silent = measure_pair(make_scores(), make_pair(None), "self", {})
    assert silent["sync_confidence"] is None and silent["beat_alignment"] is None and silent["cpbd"] is not None
    lost = measure_pair(make_scores(), make_pair(make_speech(1), has_face=False), "self", {})
    assert all(np.isnan(lost[name]) for name in ("head_speed", "lip_warping", "lip_dynamics", "head_dynamics"))


def test_measures_of_frames_see_flicker_and_blur() -> None:
    rng = np.random.default_rng(0)
    frame = rng.integers(80, 176, (64, 64, 3)).astype(np.uint8)
    square = np.array([[16.0, 16], [48, 16], [48, 48], [16, 48]])
    still, flickering = FrameMeasures(), FrameMeasures()
    for index in range(6):
        still.add(frame, square, frame)
        flickering.add(frame + np.uint8(10 * (index % 2)), square, frame)
    calm, jumping = still.finish(), flickering.finish()
    assert calm["flicker"] == calm["gradient_error"] == 0.0
    assert jumping["flicker"] == pytest.approx(10.0) and jumping["gradient_error"] == pytest.approx(10.0)
    assert jumping["face_flicker"] == pytest.approx(10.0)
    alone = FrameMeasures()
    for _ in range(3):
        alone.add(np.full_like(frame, 90), square)
    assert np.isnan(alone.finish()["gradient_error"]) and alone.finish()["face_detail"] == 0.0
