"""Preparation of real videos, a broken file and a video without a face, and a second run."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from torch import Tensor

from s3dnerf.data import engines, prepare
from s3dnerf.data import videos as videos_module
from s3dnerf.data.clip import INFO_FILE, load_clip
from s3dnerf.data.report import ClipRecord, PrepareReport
from s3dnerf.data.sync_offset import MIN_SYNC_CONFIDENCE, shift_speech
from s3dnerf.data.videos import VideoEntry
from s3dnerf.errors import UserError
from s3dnerf.face.camera import fit_head_pose, load_canonical_face, project
from s3dnerf.face.face_mesh import FaceMesh
from s3dnerf.face.lips import LIP_POINTS, fuse_lip_landmarks
from s3dnerf.face.points import KEPT_POINTS, POINT_COUNT
from s3dnerf.media.audio import read_clean_speech, write_flac
from s3dnerf.media.image import resize_image
from s3dnerf.media.video import VideoWriter, read_frames, stream_frames
from s3dnerf.sync_embedder import load_sync_embedder

Made = tuple[Path, Path, PrepareReport, PrepareReport]
REAL = ("grid_uA_sbwe5n", "grid_uD_brbk7n")
prepare_videos = partial(prepare.prepare_videos, load_embedder=load_sync_embedder)


def write_landscape(path: Path, count: int = 20) -> None:
    """Write a video without a face."""
    slope = np.linspace(0, 200, 96).astype(np.uint8)
    with VideoWriter(path, (96, 96)) as writer:
        for shift in range(count):
            writer.write(np.repeat(np.roll(np.tile(slope, (96, 1)), shift, axis=1)[..., None], 3, axis=2))


@pytest.fixture(scope="module")
def made(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Folders of videos and clips, and the reports of a first and a second run."""
    root = tmp_path_factory.mktemp("prepare")
    videos, out = root / "videos", root / "out"
    videos.mkdir()
    for name in REAL:
        shutil.copy(shared_data / "clips" / f"{name}.mp4", videos)
    shutil.copy(shared_data / "clips" / f"{REAL[0]}.wav", videos)
    whole = (videos / f"{REAL[0]}.mp4").read_bytes()
    (videos / "broken_1.mp4").write_bytes(whole[: len(whole) // 2])
    (videos / "broken_2.mp4").write_text("this is no video")
    write_landscape(videos / "landscape_0.mp4")
    reports = [prepare_videos(videos, out, workers=2) for _ in range(2)]
    return videos, out, reports[0], reports[1]


def test_valid_videos_are_prepared_and_failures_are_listed(
    made: Made,
) -> None:
    _, out, first, _ = made
    assert sorted(first.prepared) == list(REAL) and first.present == []
    assert sorted(path.name for path in out.iterdir()) == [*REAL, "report.json", "report.md"]
    reasons = {failure.id: failure.reason for failure in first.failed}
    assert sorted(reasons) == ["broken_1", "broken_2", "landscape_0"]
    assert reasons["landscape_0"] == "a face is seen in only 0 of 20 frames"
    assert "video" in reasons["broken_2"] and reasons["broken_1"]
    stored = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert {failure["id"]: failure["reason"] for failure in stored["failed"]} == reasons
    # There is no manifest, so the sync was measured.
    for name, record in zip(REAL, stored["clips"], strict=True):
        clip = load_clip(out / name)
        assert record == {"id": name, "sync": "ok", "offset": clip.offset, "confidence": clip.confidence} | {
            "seconds": 3.0,
            "person": name,
            "bytes": sum(path.stat().st_size for path in (out / name).iterdir()),
            "whole": True,
        }
        assert clip.sync == "ok" and abs(clip.offset) <= 1 and clip.confidence > 0.2


def test_statistics_of_the_run_are_reported(made: Made) -> None:
    _, out, first, second = made
    assert first.run.frames == 150 and second.run.frames == 0
    # Tracking alone takes milliseconds per frame, and the two processes do not use more than all of their time.
    assert first.run.core_seconds > 0.2 and first.run.frames_per_core_second == 150 / first.run.core_seconds
    page = (out / "report.md").read_text(encoding="utf-8")
    assert "| clips | 2 |" in page and "| people | 2 |" in page and "a face is seen in only N of N frames | 1 |" in page


def test_second_run_changes_nothing(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    videos, out, first, second = made
    assert second.prepared == [] and sorted(second.present) == list(REAL)
    assert sorted(failure.id for failure in second.failed) == sorted(failure.id for failure in first.failed)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.stem != "report"}
    monkeypatch.setattr(engines, "ProcessPoolExecutor", None)  # Starting one would fail.
    prepare_videos(videos, out)
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_missing_clips_and_replaced_videos_are_prepared(made: Made, tmp_path: Path) -> None:
    videos, out, *_ = made
    copy, again = tmp_path / "out", tmp_path / "videos"
    shutil.copytree(out, copy)
    shutil.copytree(videos, again)
    shutil.rmtree(copy / REAL[1])
    shutil.copy(videos / f"{REAL[1]}.mp4", again / "landscape_0.mp4")
    report = prepare_videos(again, copy, workers=1)
    assert sorted(report.prepared) == [REAL[1], "landscape_0"] and report.present == [REAL[0]]


def test_prepared_clip_matches_its_source(made: Made, shared_data: Path) -> None:
    videos, out, *_ = made
    clip = load_clip(out / REAL[0])
    assert clip.frames == 75 and clip.size == 256 and clip.valid.all() and clip.source == f"{REAL[0]}.mp4"
    source = read_frames(videos / clip.source, [0, 40])
    assert clip.crop.side <= 256 and clip.frame_size == (256, 256)
    if clip.crop.side == 256:
        error = clip.read_frames([0, 40]).astype(np.float64) - source
        assert 10 * np.log10(255**2 / np.mean(error**2)) > 34
    clean = read_clean_speech(shared_data / "clips" / f"{REAL[0]}.wav")
    # Audio is stored with 16 bits and clipped at full scale.
    np.testing.assert_allclose(clip.read_speech(), clean.clip(-1, 1), atol=1 / 32768)
    other = load_clip(out / REAL[1])
    assert other.has_speech and len(other.read_speech()) == 640 * other.frames, "the sound of the video itself"


def forget_sync(folder: Path) -> None:
    """Turn a clip into one of an earlier version, which did not measure offsets."""
    path = folder / INFO_FILE
    info = json.loads(path.read_text(encoding="utf-8")) | {"sync": "unclear"}
    path.write_text(json.dumps({name: info[name] for name in info if name not in ("offset", "confidence")}))


@pytest.fixture
def earlier(made: Made, one_thread: None, tmp_path: Path) -> Callable[[str, np.ndarray], Path]:
    """Make a copy of a prepared clip with other audio, as an earlier version would have written it."""

    def make(name: str, speech: np.ndarray) -> Path:
        folder = tmp_path / "out" / name
        shutil.copytree(made[1] / REAL[0], folder)
        forget_sync(folder)
        write_flac(folder / "speech.flac", speech)
        return folder

    return make


@pytest.mark.parametrize("late", [6, -4])
def test_lagging_or_leading_audio_is_shifted(made: Made, earlier: Callable[[str, np.ndarray], Path], late: int) -> None:
    original = load_clip(made[1] / REAL[0])
    folder = earlier("moved", shift_speech(original.read_speech(), -late))
    prepare.measure_clip_sync(folder, load_sync_embedder)
    clip = load_clip(folder)
    assert clip.sync == "corrected" and abs(clip.offset - original.offset - late) <= 1
    assert clip.confidence >= MIN_SYNC_CONFIDENCE
    # Only the samples at the ends that the two shifts removed differ from the original.
    moved = clip.offset - late
    expected = shift_speech(original.read_speech(), moved)
    inside = slice(7 * 640, -7 * 640)
    assert np.array_equal(clip.read_speech()[inside], expected[inside])
    prepare.measure_clip_sync(folder, load_sync_embedder)
    assert load_clip(folder).sync == "ok"


def test_speech_of_another_person_is_unclear(
    made: Made, earlier: Callable[[str, np.ndarray], Path], speech: Tensor
) -> None:
    folder = earlier("dubbed", speech.numpy()[: 75 * 640])
    prepare.measure_clip_sync(folder, load_sync_embedder)
    clip = load_clip(folder)
    assert clip.sync == "unclear" and not clip.in_sync and clip.confidence < MIN_SYNC_CONFIDENCE
    assert np.allclose(clip.read_speech(), speech.numpy()[: 75 * 640], atol=1e-4), "nothing is moved"


def test_clips_of_earlier_versions_are_measured_unless_labeled_in_a_manifest(
    made: Made, in_process: None, tmp_path: Path
) -> None:
    videos, out, *_ = made
    copy = tmp_path / "out"
    shutil.copytree(out, copy)
    for name in REAL:
        forget_sync(copy / name)
    rows = [f"{name},clip,{name}.mp4,someone,train,{sync}," for name, sync in zip(REAL, ("unclear", ""), strict=True)]
    manifest = tmp_path / "manifest.csv"
    manifest.write_text("\n".join(["id,kind,file,identity,split,sync,notes", *rows]) + "\n")
    report = prepare_videos(videos, copy, manifest, workers=1)
    assert report.prepared == [] and report.present == list(REAL) and report.measured == [REAL[1]]
    assert [(clip.sync, clip.confidence is None) for clip in map(load_clip, (copy / name for name in REAL))] == [
        ("unclear", True),
        ("ok", False),
    ]
    assert [clip.usable_for_speech for clip in report.clips] == [False, True]


def test_another_size_raises_and_changes_nothing(made: Made) -> None:
    videos, out, *_ = made
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    with pytest.raises(UserError, match=r"holds 2 of these clips in 256 x 256 pixels, and --size is 128") as caught:
        prepare_videos(videos, out, size=128)
    assert "--out" in caught.value.hint and "--size 256" in caught.value.hint
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ({"size": 0}, "0 is not an even number from 64 to 2048"),
        ({"size": -256}, "not an even number"),
        ({"size": 257}, "not an even number"),
        ({"size": 32}, "not an even number"),
        ({"size": 100_000}, "not an even number"),
        ({"workers": 0}, "0 is less than one process"),
        ({"workers": -2}, "less than one process"),
    ],
)
def test_invalid_sizes_and_worker_counts_raise(tmp_path: Path, words: dict[str, int], reason: str) -> None:
    (tmp_path / "a.mp4").touch()
    with pytest.raises(UserError, match=reason):
        prepare_videos(tmp_path, tmp_path / "out", **words)
    assert not (tmp_path / "out").exists()


def test_damaged_clips_are_listed_as_failures(made: Made, tmp_path: Path) -> None:
    videos, out, *_ = made
    copy = tmp_path / "out"
    shutil.copytree(out, copy)
    (copy / REAL[0] / INFO_FILE).write_text("{")
    (copy / REAL[1] / "track.npz").write_bytes(b"")
    report = prepare_videos(videos, copy)
    reasons = {failure.id: failure.reason for failure in report.failed}
    assert "clip.json cannot be read" in reasons[REAL[0]] and "track.npz cannot be read" in reasons[REAL[1]]
    assert "Delete this folder" in reasons[REAL[0]] and report.clips == []


def test_identities_stay_in_their_split_when_others_are_added(
    drawn_clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, videos = tmp_path / "out", tmp_path / "videos"
    shutil.copytree(drawn_clips / "ann_0", out / "ann_0")
    videos.mkdir()
    for name in ("ann_0", "ann_7", "bob_0"):
        (videos / f"{name}.mp4").touch()
    taken = []
    monkeypatch.setattr(prepare, "run_jobs", lambda todo, *rest: taken.extend(todo) or iter(()))
    monkeypatch.setattr(videos_module, "choose_val_identities", lambda people: {"ann", "bob"})
    prepare_videos(videos, out, size=64)
    assert [(entry.id, entry.split) for entry in taken] == [("ann_7", "train"), ("bob_0", "val")]


def test_landmarks_match_the_pose(made: Made) -> None:
    clip = load_clip(made[1] / REAL[0])
    again = fit_head_pose(clip.landmarks)
    turned = np.einsum("tij,tij->t", again.rotation, clip.pose.rotation)
    assert np.degrees(np.arccos(np.clip((turned - 1) / 2, -1, 1))).max() < 3.0, "registration moves little"
    corners = project(load_canonical_face()[[33, 263]], clip.pose)
    assert np.abs(corners[..., :2]).max() < 1
    # This clip shows a frontal talking head: eyes mostly open, mouth opening and closing.
    assert 0.5 < np.median(clip.eye_openness) < 1.5
    assert clip.lip_opening.min() < 0.03 < 0.08 < clip.lip_opening.max() < 0.4
    assert 0.5 < clip.pose.scale.mean() < 1.0


class DeadlyEntry(VideoEntry):
    """A video that crashes the worker process that takes it."""

    def __reduce__(self) -> tuple[object, tuple[int]]:
        return os._exit, (1,)


def test_lips_of_a_clip_are_the_mean_of_two_networks(made: Made) -> None:
    clip = load_clip(made[1] / REAL[0])
    landmarks = np.zeros((clip.frames, POINT_COUNT, 3), np.float32)
    landmarks[:, KEPT_POINTS] = clip.landmarks
    again = fuse_lip_landmarks(FaceMesh(), clip.read_frames(range(clip.frames)), landmarks)
    # Averaging again moves the lips by half the distance between the mean and the plain mesh.
    change = np.linalg.norm((again - landmarks)[:, LIP_POINTS, :2], axis=-1).mean() * 128
    assert 0.02 < change < 0.6


@pytest.mark.parametrize("ray", [None, pytest.param("local", marks=pytest.mark.slow)])
def test_crashed_worker_fails_only_its_own_clip(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ray: str | None
) -> None:
    if ray is not None:
        pytest.importorskip("ray")
    names = ("a", "b", "bad", "c")
    for name in names:
        (tmp_path / f"{name}.mp4").touch()
    kinds = {name: DeadlyEntry if name == "bad" else VideoEntry for name in names}
    entries = [kinds[name](name, tmp_path / f"{name}.mp4", "someone") for name in names]
    monkeypatch.setattr(prepare, "find_videos", lambda videos, manifest: entries)
    report = prepare_videos(tmp_path / "videos", tmp_path / "out", workers=2, ray=ray)
    reasons = {failure.id: failure.reason for failure in report.failed}
    assert reasons == {name: "is an empty file" for name in ("a", "b", "c")} | {"bad": prepare.WORKER_DIED}


@pytest.mark.parametrize(
    ("error", "reason"),
    [(MemoryError(), prepare.OUT_OF_MEMORY), (IndexError("no frame"), "cannot be prepared (IndexError: no frame)")],
)
def test_any_error_fails_only_its_own_clip(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_process: None, error: Exception, reason: str
) -> None:
    def fail(entry: VideoEntry, *rest: object) -> int:
        if entry.id == "bad_0":
            entry.path.unlink()
            raise error
        return 7

    for name in ("bad_0", "good_0", "good_1"):
        (tmp_path / f"{name}.mp4").touch()
    monkeypatch.setattr(prepare, "prepare_clip", fail)
    monkeypatch.setattr(
        prepare, "record_clip", lambda folder: ClipRecord(folder.name, "ok", 0, None, 1.0, "x", 1, True)
    )
    report = prepare_videos(tmp_path, tmp_path.parent / f"{tmp_path.name}_out")
    assert [(failure.id, failure.reason) for failure in report.failed] == [("bad_0", reason)]
    assert report.prepared == ["good_0", "good_1"] and report.run.frames == 14


def test_relative_paths_hold_in_any_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    monkeypatch.setattr(prepare, "prepare_clip", lambda entry, *rest: taken.append(entry.path) or 5)
    entry, job = VideoEntry("a", Path("videos/a.mp4"), "x"), prepare.ClipJob(tmp_path / "out", 64, print, tmp_path)
    assert prepare.prepare_entry(entry, job).frames == 5 and taken == [tmp_path / "videos" / "a.mp4"]


def test_a_full_disk_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_process: None) -> None:
    def fail(*rest: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "a.mp4").touch()
    monkeypatch.setattr(prepare, "prepare_clip", fail)
    with pytest.raises(UserError, match="No space left"):
        prepare_videos(tmp_path, tmp_path.parent / f"{tmp_path.name}_out")


def test_video_with_a_tiny_head_raises(tmp_path: Path, shared_data: Path) -> None:
    frames = list(stream_frames(shared_data / "clips" / f"{REAL[0]}.mp4"))[:6]
    with VideoWriter(tmp_path / "far.mp4", (160, 160), crf=5) as writer:
        for frame in frames:
            picture = np.full((160, 160, 3), 100, np.uint8)
            picture[40:96, 50:106] = resize_image(frame, 56)
            writer.write(picture)
    with pytest.raises(UserError, match="too small|a face is seen in only"):
        prepare.prepare_clip(VideoEntry("far", tmp_path / "far.mp4", "x"), tmp_path / "out", 256, load_sync_embedder)
    assert not (tmp_path / "out" / "far").exists()
