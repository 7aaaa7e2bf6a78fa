"""Clips in memory: the level of speech, frames without a face, and sampling weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from s3dnerf.data.clip import load_clip, save_clip
from s3dnerf.data.tracks import ClipTrack, load_clip_track
from s3dnerf.media.audio import measure_level


def test_speech_is_brought_to_the_normal_level(tracks: list[ClipTrack]) -> None:
    levels = [measure_level([track.speech]).active_rms for track in tracks if track.clip.has_speech]
    assert levels == pytest.approx([10 ** (-23 / 20)] * 2, rel=1e-3)


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
