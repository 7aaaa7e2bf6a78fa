"""Clips in memory: usable speech, sampling weights and sampling by identity."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from s3dnerf.data.clip import load_clip, save_clip
from s3dnerf.data.config import PERSON_POWER
from s3dnerf.data.dataset import TalkingFaceDataset
from s3dnerf.data.tracks import has_usable_speech, load_clip_track, sample_track
from s3dnerf.media.audio import measure_level


def test_people_are_drawn_by_a_power_of_their_frames(plain: TalkingFaceDataset) -> None:
    rng = np.random.default_rng(0)
    drawn = [sample_track(plain.identities, PERSON_POWER, rng).clip.id for _ in range(4000)]
    # Ann has 40 + 12 frames in two clips, Ben has 30 in one.
    ann = 52**0.6 / (52**0.6 + 30**0.6)
    deviation = (ann * (1 - ann) / 4000) ** 0.5
    share = np.mean([name.startswith("ann") for name in drawn])
    assert abs(share - ann) < 4 * deviation
    of_ann = [name for name in drawn if name.startswith("ann")]
    assert np.mean([name == "ann_0" for name in of_ann]) == pytest.approx(40 / 52, abs=0.04)


def test_speech_is_brought_to_the_normal_level(plain: TalkingFaceDataset) -> None:
    for tracks in plain.speakers.values():
        for track in tracks:
            assert measure_level([track.speech]).active_rms == pytest.approx(10 ** (-23 / 20), rel=1e-3)


def test_clips_out_of_step_or_with_lost_faces_teach_no_speech(plain: TalkingFaceDataset) -> None:
    track = plain.tracks[0]
    assert has_usable_speech(track, 8)
    assert not has_usable_speech(track, 38)  # Too short for the fastest tempo.
    assert not has_usable_speech(replace(track, speech=None), 8)
    assert not has_usable_speech(replace(track, clip=replace(track.clip, sync="unclear")), 8)
    lost = np.arange(40) != 17
    assert not has_usable_speech(replace(track, clip=replace(track.clip, valid=lost)), 8)


def test_frames_without_a_face_are_never_shown(drawn_clips: Path, tmp_path: Path) -> None:
    clip = load_clip(drawn_clips / "ben_0")
    valid = np.arange(30) >= 25
    copy = replace(clip, path=tmp_path / "ben_0", valid=valid)
    save_clip(copy, iter(clip.read_frames(range(30))), clip.read_speech())
    track = load_clip_track(tmp_path / "ben_0")
    assert track.frames.tolist() == [25, 26, 27, 28, 29]
    np.testing.assert_allclose(track.mean_face, track.landmarks[25:].mean(axis=0))


def test_blinks_are_drawn_four_times_as_often(drawn_clips: Path, tmp_path: Path) -> None:
    clip = load_clip(drawn_clips / "ben_0")
    eyes = np.full_like(clip.eye_openness, 0.3)
    for closed, expected in (
        (slice(0, 0), np.full(30, 1 / 30)),
        (slice(10, 13), np.where((np.arange(30) >= 10) & (np.arange(30) < 13), 4, 1) / 39),
    ):
        eyes[closed] = 0.1
        copy = replace(clip, path=tmp_path / f"ben_{closed.stop}", eye_openness=eyes)
        save_clip(copy, iter(clip.read_frames(range(30))), clip.read_speech())
        np.testing.assert_allclose(load_clip_track(copy.path).sampling_weights, expected)
