"""Synchronization scores: signs, means, and a table with known entries."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from s3dnerf.config import load_config
from s3dnerf.data.clip import Clip, load_clip
from s3dnerf.data.frames import interpolate_frames
from s3dnerf.data.tracks import load_clip_track
from s3dnerf.errors import UserError
from s3dnerf.evaluation import sync_discriminator
from s3dnerf.evaluation.sync_discriminator import (
    ClipReport,
    align_similarities,
    compute_similarities,
    evaluate_discriminator,
    find_sound_offset,
    format_reports,
    measure_sync,
    report_clip,
    score_tracked_video,
)
from s3dnerf.evaluation.tracking import FaceTrack, FaceTrackRecorder
from s3dnerf.media.audio import read_speech
from s3dnerf.media.video import stream_frames
from s3dnerf.models.sync_discriminator import (
    SyncAudioConfig,
    SyncDiscriminator,
    SyncDiscriminatorConfig,
    TwoWay,
    load_discriminator,
)
from s3dnerf.structures import Camera
from s3dnerf.training.sync import SyncConfig, compare_clip, read_clips

SMALL = (
    *("--model.audio.features", "logmel", "--model.audio.width", "16", "--model.audio.context", "320"),
    *("--model.widths", "[8, 8, 8, 8]", "--model.frame_width", "16", "--model.embedding", "16"),
    *("--data.segments", "2", "--data.versions", "1", "--train.precision", "float32", "--train.steps", "2"),
)


@pytest.fixture(scope="module")
def small(one_thread: None) -> SyncDiscriminator:
    torch.manual_seed(0)
    audio = SyncAudioConfig(features="logmel", width=16, context=320)
    return SyncDiscriminator(
        SyncDiscriminatorConfig(widths=(8, 8, 8, 8), frame_width=16, embedding=16, audio=audio)
    ).eval()


@pytest.fixture(scope="module")
def clip(drawn_clips: Path) -> Clip:
    return load_clip(drawn_clips / "ann_0")


def make_similarities(count: int, late: int) -> Tensor:
    """Cosines of a perfect discriminator on a clip whose sound comes ``late`` frames late."""
    vectors = F.normalize(torch.randn(count + 40, 24, generator=torch.Generator().manual_seed(0)), dim=-1)
    lips, speech = vectors[20 : 20 + count], vectors[20 - late : 20 - late + count]
    return lips @ speech.T


def test_scores_of_a_video_follow_its_similarities(
    small: SyncDiscriminator, clip: Clip, monkeypatch: pytest.MonkeyPatch
) -> None:
    similarities = make_similarities(60, late=-4)
    monkeypatch.setattr(sync_discriminator, "compute_similarities", lambda *given: similarities)
    scores = measure_sync(small, [], None, np.zeros(0))
    assert scores.offset == -4 and scores.distance == pytest.approx(0.0, abs=1e-6)
    assert scores.in_sync == pytest.approx(similarities.diagonal().mean().item())
    others = [similarities.diagonal(k).mean() for k in range(-15, 16)]
    assert scores.confidence == pytest.approx(1.0 - np.median(others), abs=1e-6)


def test_a_video_is_embedded_as_its_clip_in_memory(
    small: SyncDiscriminator, drawn_clips: Path, one_thread: None
) -> None:
    config = load_config(SyncConfig, "sync.yaml", ["--data.root", str(drawn_clips), "--data.offsets", "null", *SMALL])
    stored = next(one for one in read_clips(config.data, config.model, config.seed) if one.track.clip.id == "ann_0")
    track = load_clip_track(drawn_clips / "ann_0")
    frames = np.arange(track.clip.frames)
    camera = Camera.from_numpy(interpolate_frames(track, frames.astype(float)))
    found = compute_similarities(small, track.clip.read_frames(frames), camera, track.speech)
    with torch.no_grad():
        expected = compare_clip(small, stored, torch.device("cpu"))
    assert found.shape == expected.shape == (36, 36)
    assert (found - expected).abs().max() < 0.05
    # A stream of frames gives the same result as an array.
    again = compute_similarities(small, iter(track.clip.read_frames(frames)), camera, track.speech)
    assert torch.equal(again, found)


def test_frames_without_poses_and_short_videos_are_refused(small: SyncDiscriminator, drawn_clips: Path) -> None:
    track = load_clip_track(drawn_clips / "ann_0")
    frames = track.clip.read_frames(range(20))
    camera = Camera.from_numpy(interpolate_frames(track, np.arange(20.0)))
    with pytest.raises(ValueError, match="19 frames with 20 poses"):
        compute_similarities(small, frames[:19], camera, track.speech)
    with pytest.raises(ValueError, match="16 moments are too few"):
        measure_sync(small, frames, camera, track.speech)


def test_a_real_video_is_in_sync_and_late_audio_is_found(shared_data: Path) -> None:
    video = shared_data / "clips" / "hdtf_AmyKlobuchar_0.mp4"
    frames = list(islice(stream_frames(video), 100))
    ruler = FaceTrackRecorder()
    for frame in frames:
        ruler.add(frame)
    track = ruler.finish()
    model, speech = load_discriminator(), read_speech(video.with_suffix(".wav"))
    scores = score_tracked_video(model, frames, track, speech)
    late = score_tracked_video(model, frames, track, np.concatenate([np.zeros(5 * 640, np.float32), speech]))
    assert abs(scores.offset) <= 1 and scores.confidence > 0.2
    assert late.offset - scores.offset == 5 and late.in_sync < scores.in_sync - 0.1
    found = find_sound_offset(model, frames, track, np.concatenate([np.zeros(5 * 640, np.float32), speech]))
    assert found == late.offset


def test_a_video_too_short_or_without_a_face_is_not_scored(small: SyncDiscriminator) -> None:
    plain = np.full((40, 468, 2), 50.0, np.float32)
    fine = np.zeros((40, 478, 3), np.float32)
    speech = np.zeros(40 * 640, np.float32)
    assert score_tracked_video(small, [], FaceTrack(fine[:34], plain[:34], (256, 256)), speech) is None
    unseen = FaceTrack(fine + np.nan, plain + np.nan, (256, 256))
    assert score_tracked_video(small, [], unseen, speech) is None
    assert find_sound_offset(small, [], unseen, speech) == 0


@pytest.mark.parametrize("late", [0, 3, -2])
def test_reports_of_a_perfect_discriminator(clip: Clip, late: int) -> None:
    report = report_clip(clip, make_similarities(96, late))
    assert report.offset == late and report.segments == (late,) * 3
    assert report.count_hits() == (3 if abs(late) <= 1 else 0) and report.count_hits(report.offset) == 3
    assert report.two_way.accuracy == pytest.approx(1.0 if late == 0 else 0.5, abs=0.1)
    assert report.corrected.accuracy == 1.0 and report.corrected.separation > 0.9


def test_alignment_brings_true_pairs_to_the_diagonal() -> None:
    similarities = torch.arange(16.0).reshape(4, 4)
    assert align_similarities(similarities, 1).tolist() == [[1, 2, 3], [5, 6, 7], [9, 10, 11]]
    assert align_similarities(similarities, -2).tolist() == [[8, 9], [12, 13]]
    assert torch.equal(align_similarities(similarities, 0), similarities)


def test_the_table_has_clips_means_of_people_and_shares_of_segments(clip: Clip) -> None:
    one = ClipReport(clip, TwoWay(0.9, 0.3), 2, TwoWay(0.95, 0.4), (2, 1, 0, -9))
    same_person = ClipReport(replace(clip, id="ann_9"), TwoWay(0.7, 0.1), 0, TwoWay(0.7, 0.1), (0,))
    bob = replace(clip, id="bob", person="bob", sync="corrected")
    other = ClipReport(bob, TwoWay(0.6, 0.2), 0, TwoWay(0.601, 0.2), (0, 0, 7))
    lines = format_reports([one, same_person, other]).splitlines()
    assert lines[2] == "| ann_0 | ok | 0.900 | 0.300 | +2 | 0.950 | 2/4 | 2/4 |"
    assert lines[5] == "| mean of people | ok | 0.800 | 0.200 | | 0.825 | 60.0% of 5 | 60.0% |"
    assert lines[6] == "| mean of people | all | 0.700 | 0.200 | | 0.713 | 62.5% of 8 | 62.5% |"


def test_clips_shorter_than_a_segment_are_not_evaluated(small: SyncDiscriminator, drawn_clips: Path) -> None:
    with pytest.raises(UserError, match="has no clip with speech in step"):
        evaluate_discriminator(small, drawn_clips, "val")
