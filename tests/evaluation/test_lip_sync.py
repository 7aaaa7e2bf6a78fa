"""Scores of how far lips and speech are in step: signs, means, a table with known entries, and the offsets of clips."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor
from torch.nn import functional as F

from s3dnerf.config import load_config
from s3dnerf.data.clip import INFO_FILE, Clip, load_clip
from s3dnerf.data.frames import interpolate_frames
from s3dnerf.data.tracks import load_clip_track
from s3dnerf.errors import UserError
from s3dnerf.evaluation import lip_sync
from s3dnerf.evaluation.lip_sync import (
    ClipReport,
    compare_video,
    evaluate_discriminator,
    find_own_offset,
    format_reports,
    judge_sync,
    measure_sync,
    report_clip,
    shift,
    sort_by_frames,
    write_offsets,
)
from s3dnerf.evaluation.tracking import FaceRuler, FaceTrack
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
    *("--data.stretches", "2", "--data.versions", "1", "--train.precision", "float32", "--train.steps", "2"),
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


def make_cosines(count: int, late: int) -> Tensor:
    """Cosines of a perfect discriminator on a clip whose sound comes ``late`` frames late."""
    vectors = F.normalize(torch.randn(count + 40, 24, generator=torch.Generator().manual_seed(0)), dim=-1)
    lips, speech = vectors[20 : 20 + count], vectors[20 - late : 20 - late + count]
    return lips @ speech.T


def test_scores_of_a_video_follow_its_cosines(
    small: SyncDiscriminator, clip: Clip, monkeypatch: pytest.MonkeyPatch
) -> None:
    cosines = make_cosines(60, late=-4)
    monkeypatch.setattr(lip_sync, "compare_video", lambda *given: cosines)
    scores = measure_sync(small, [], None, np.zeros(0))
    assert scores.offset == -4 and scores.distance == pytest.approx(0.0, abs=1e-6)
    assert scores.in_sync == pytest.approx(cosines.diagonal().mean().item())
    others = [cosines.diagonal(k).mean() for k in range(-15, 16)]
    assert scores.confidence == pytest.approx(1.0 - np.median(others), abs=1e-6)


def test_a_video_is_embedded_as_its_clip_in_memory(
    small: SyncDiscriminator, drawn_clips: Path, one_thread: None
) -> None:
    config = load_config(SyncConfig, "sync.yaml", ["--data.root", str(drawn_clips), "--data.offsets", "null", *SMALL])
    stored = next(one for one in read_clips(config) if one.track.clip.id == "ann_0")
    track = load_clip_track(drawn_clips / "ann_0")
    frames = np.arange(track.clip.frames)
    camera = Camera.from_numpy(interpolate_frames(track, frames.astype(float)))
    found = compare_video(small, track.clip.read_frames(frames), camera, track.speech)
    with torch.no_grad():
        expected = compare_clip(small, stored, torch.device("cpu"))
    assert found.shape == expected.shape == (36, 36)
    assert (found - expected).abs().max() < 0.05
    # A stream of frames is as good as an array.
    again = compare_video(small, iter(track.clip.read_frames(frames)), camera, track.speech)
    assert torch.equal(again, found)


def test_frames_without_poses_and_short_videos_are_refused(small: SyncDiscriminator, drawn_clips: Path) -> None:
    track = load_clip_track(drawn_clips / "ann_0")
    frames = track.clip.read_frames(range(20))
    camera = Camera.from_numpy(interpolate_frames(track, np.arange(20.0)))
    with pytest.raises(ValueError, match="19 frames with 20 poses"):
        compare_video(small, frames[:19], camera, track.speech)
    with pytest.raises(ValueError, match="16 moments are too few"):
        measure_sync(small, frames, camera, track.speech)


def test_a_real_video_is_in_step_and_its_late_sound_is_found(shared_data: Path) -> None:
    video = shared_data / "clips" / "hdtf_AmyKlobuchar_0.mp4"
    frames = list(islice(stream_frames(video), 100))
    with FaceRuler() as ruler:
        for frame in frames:
            ruler.add(frame)
        track = ruler.finish()
    model, speech = load_discriminator(), read_speech(video.with_suffix(".wav"))
    scores = judge_sync(model, frames, track, speech)
    late = judge_sync(model, frames, track, np.concatenate([np.zeros(5 * 640, np.float32), speech]))
    assert abs(scores.offset) <= 1 and scores.confidence > 0.2
    assert late.offset - scores.offset == 5 and late.in_sync < scores.in_sync - 0.1


def test_a_video_too_short_or_without_a_face_is_not_judged(small: SyncDiscriminator) -> None:
    plain = np.full((40, 468, 2), 50.0, np.float32)
    fine = np.zeros((40, 478, 3), np.float32)
    speech = np.zeros(40 * 640, np.float32)
    assert judge_sync(small, [], FaceTrack(fine[:34], plain[:34], (256, 256)), speech) is None
    assert judge_sync(small, [], FaceTrack(fine + np.nan, plain + np.nan, (256, 256)), speech) is None


@pytest.mark.parametrize("late", [0, 3, -2])
def test_reports_of_a_perfect_discriminator(clip: Clip, late: int) -> None:
    report = report_clip(clip, make_cosines(96, late))
    assert report.offset == late and report.stretches == (late,) * 3
    assert report.count_hits() == (3 if abs(late) <= 1 else 0) and report.count_hits(report.offset) == 3
    assert report.two_way.accuracy == pytest.approx(1.0 if late == 0 else 0.5, abs=0.1)
    assert report.corrected.accuracy == 1.0 and report.corrected.separation > 0.9


def test_a_shift_brings_true_pairs_to_the_diagonal() -> None:
    cosines = torch.arange(16.0).reshape(4, 4)
    assert shift(cosines, 1).tolist() == [[1, 2, 3], [5, 6, 7], [9, 10, 11]]
    assert shift(cosines, -2).tolist() == [[8, 9], [12, 13]]
    assert torch.equal(shift(cosines, 0), cosines)


def test_own_offset_comes_with_its_margin() -> None:
    cosines = torch.zeros(30, 30)
    for offset, value in ((2, 0.8), (1, 0.7), (3, 0.6), (-1, 0.5)):
        cosines.diagonal(offset).fill_(value)
    offset, margin = find_own_offset(cosines)
    assert offset == 2 and margin == pytest.approx(0.3)


def test_the_table_holds_clips_means_of_people_and_shares_of_stretches(clip: Clip) -> None:
    one = ClipReport(clip, TwoWay(0.9, 0.3), 2, TwoWay(0.95, 0.4), (2, 1, 0, -9))
    same_person = ClipReport(replace(clip, id="ann_9"), TwoWay(0.7, 0.1), 0, TwoWay(0.7, 0.1), (0,))
    bob = replace(clip, id="bob", person="bob", sync="corrected")
    other = ClipReport(bob, TwoWay(0.6, 0.2), 0, TwoWay(0.601, 0.2), (0, 0, 7))
    lines = format_reports([one, same_person, other]).splitlines()
    assert lines[2] == "| ann_0 | ok | 0.900 | 0.300 | +2 | 0.950 | 2/4 | 2/4 |"
    assert lines[5] == "| mean of people | ok | 0.800 | 0.200 | | 0.825 | 60.0% of 5 | 60.0% |"
    assert lines[6] == "| mean of people | all | 0.700 | 0.200 | | 0.713 | 62.5% of 8 | 62.5% |"


def test_clips_shorter_than_a_stretch_are_not_judged(small: SyncDiscriminator, drawn_clips: Path) -> None:
    with pytest.raises(UserError, match="has no clip with speech in step"):
        evaluate_discriminator(small, drawn_clips, "val")


def test_every_clip_gets_an_offset_from_the_other_half(drawn_clips: Path, one_thread: None, tmp_path: Path) -> None:
    root, table = tmp_path / "clips", tmp_path / "offsets.csv"
    for name, source in (("ann_0", "ann_0"), ("ben_0", "ben_0"), ("dan_0", "ben_0"), ("eve_0", "ann_0")):
        shutil.copytree(drawn_clips / source, root / name)
        info = json.loads((root / name / INFO_FILE).read_text())
        (root / name / INFO_FILE).write_text(json.dumps(info | {"id": name, "person": name[:3]}))
    before = tmp_path / "before.csv"
    before.write_text("id,offset,margin,frames\ndan_0,20,0.5,30\n")
    config = load_config(SyncConfig, "sync.yaml", ["--data.root", str(root), "--data.offsets", str(before), *SMALL])
    write_offsets(config, tmp_path / "run", table)
    with table.open(newline="") as file:
        rows = {row["id"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["ann_0", "ben_0", "dan_0", "eve_0"]
    assert [row["frames"] for row in rows.values()] == ["40", "30", "30", "40"]
    # What was corrected before is added to what is found now, at most 5 frames.
    assert abs(int(rows["dan_0"]["offset"]) - 20) <= 5 >= abs(int(rows["ben_0"]["offset"]))
    trained = [yaml.safe_load((tmp_path / "run" / half / "config.yaml").read_text()) for half in ("half_1", "half_2")]
    assert [run["data"]["left_out"] for run in trained] == [["ann", "ben"], ["eve", "dan"]]


def test_halves_are_fair(drawn_clips: Path, one_thread: None) -> None:
    words = ["--data.root", str(drawn_clips), "--data.offsets", "null", *SMALL]
    assert sort_by_frames(read_clips(load_config(SyncConfig, "sync.yaml", words))) == ["ann", "ben"]
