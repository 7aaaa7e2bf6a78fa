"""Videos become clips: real people, a broken file, a video without a face, and a second run."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from torch import Tensor

from s3dnerf.data import prepare
from s3dnerf.data import videos as videos_module
from s3dnerf.data.clip import INFO_FILE, load_clip
from s3dnerf.data.prepare import fill_gaps, prepare_videos, read_lips
from s3dnerf.data.report import PrepareReport
from s3dnerf.data.sync_offset import LEAST_CONFIDENCE, shift_speech
from s3dnerf.data.videos import VideoEntry
from s3dnerf.errors import UserError
from s3dnerf.face.camera import fit_head_pose, load_canonical_face, project
from s3dnerf.face.face_mesh import FaceMesh
from s3dnerf.face.lips import LIPS, average_lips
from s3dnerf.face.points import KEPT_POINTS, POINT_COUNT
from s3dnerf.media.audio import read_clean_speech, write_flac
from s3dnerf.media.image import resize_image
from s3dnerf.media.video import VideoWriter, read_frames, stream_frames

Made = tuple[Path, Path, PrepareReport, PrepareReport]
REAL = ("grid_uA_sbwe5n", "grid_uD_brbk7n")


def write_landscape(path: Path, count: int = 20) -> None:
    """A video that shows no face."""
    slope = np.linspace(0, 200, 96).astype(np.uint8)
    with VideoWriter(path, (96, 96)) as writer:
        for shift in range(count):
            writer.write(np.repeat(np.roll(np.tile(slope, (96, 1)), shift, axis=1)[..., None], 3, axis=2))


@pytest.fixture(scope="module")
def made(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Videos and clip folders, and the reports of a first and a second run."""
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


def test_good_videos_are_prepared_and_the_others_listed(
    made: Made,
) -> None:
    _, out, first, _ = made
    assert sorted(first.prepared) == list(REAL) and first.present == []
    assert sorted(path.name for path in out.iterdir()) == [*REAL, "report.json"]
    reasons = {failure.id: failure.reason for failure in first.failed}
    assert sorted(reasons) == ["broken_1", "broken_2", "landscape_0"]
    assert reasons["landscape_0"] == "a face is seen in only 0 of 20 frames"
    assert "video" in reasons["broken_2"] and reasons["broken_1"]
    stored = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert {failure["id"]: failure["reason"] for failure in stored["failed"]} == reasons
    # Nobody said how these are in step: it was measured.
    for name, record in zip(REAL, stored["clips"], strict=True):
        clip = load_clip(out / name)
        assert record == {"id": name, "sync": "ok", "offset": clip.offset, "confidence": clip.confidence} | {
            "seconds": 3.0,
            "whole": True,
        }
        assert clip.sync == "ok" and abs(clip.offset) <= 1 and clip.confidence > 0.2


def test_a_second_run_does_nothing(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    videos, out, first, second = made
    assert second.prepared == [] and sorted(second.present) == list(REAL)
    assert sorted(failure.id for failure in second.failed) == sorted(failure.id for failure in first.failed)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.name != "report.json"}
    monkeypatch.setattr(prepare, "ProcessPoolExecutor", None)  # starting one would fail
    prepare_videos(videos, out)
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_what_is_missing_or_replaced_is_done(made: Made, tmp_path: Path) -> None:
    videos, out, *_ = made
    copy, again = tmp_path / "out", tmp_path / "videos"
    shutil.copytree(out, copy)
    shutil.copytree(videos, again)
    shutil.rmtree(copy / REAL[1])
    shutil.copy(videos / f"{REAL[1]}.mp4", again / "landscape_0.mp4")
    report = prepare_videos(again, copy, workers=1)
    assert sorted(report.prepared) == [REAL[1], "landscape_0"] and report.present == [REAL[0]]


def test_a_prepared_clip_shows_its_source(made: Made, shared_data: Path) -> None:
    videos, out, *_ = made
    clip = load_clip(out / REAL[0])
    assert clip.frames == 75 and clip.size == 256 and clip.valid.all() and clip.source == f"{REAL[0]}.mp4"
    source = read_frames(videos / clip.source, [0, 40])
    assert clip.crop.side <= 256 and clip.frame_size == (256, 256)
    if clip.crop.side == 256:
        error = clip.read_frames([0, 40]).astype(np.float64) - source
        assert 10 * np.log10(255**2 / np.mean(error**2)) > 34
    clean = read_clean_speech(shared_data / "clips" / f"{REAL[0]}.wav")
    # Stored in 16 bits: what goes beyond full scale is clipped.
    np.testing.assert_allclose(clip.read_speech(), clean.clip(-1, 1), atol=1 / 32768)
    other = load_clip(out / REAL[1])
    assert other.has_speech and len(other.read_speech()) == 640 * other.frames, "the sound of the video itself"


def forget_sync(folder: Path) -> None:
    """Make a clip one of an earlier version, which did not measure."""
    path = folder / INFO_FILE
    info = json.loads(path.read_text(encoding="utf-8")) | {"sync": "unclear"}
    path.write_text(json.dumps({name: info[name] for name in info if name not in ("offset", "confidence")}))


@pytest.fixture
def earlier(made: Made, one_thread: None, tmp_path: Path) -> Callable[[str, np.ndarray], Path]:
    """Makes a copy of a prepared clip with other sound, as an earlier version would have left it."""

    def make(name: str, speech: np.ndarray) -> Path:
        folder = tmp_path / "out" / name
        shutil.copytree(made[1] / REAL[0], folder)
        forget_sync(folder)
        write_flac(folder / "speech.flac", speech)
        return folder

    return make


@pytest.mark.parametrize("late", [6, -4])
def test_late_and_early_sound_is_moved_back(made: Made, earlier: Callable[[str, np.ndarray], Path], late: int) -> None:
    original = load_clip(made[1] / REAL[0])
    folder = earlier("moved", shift_speech(original.read_speech(), -late))
    prepare.measure_clip(folder)
    clip = load_clip(folder)
    assert clip.sync == "corrected" and abs(clip.offset - original.offset - late) <= 1
    assert clip.confidence >= LEAST_CONFIDENCE
    # What is left is what was there before, but for the frames that moving it to and fro has cut off.
    moved = clip.offset - late
    expected = shift_speech(original.read_speech(), moved)
    inside = slice(7 * 640, -7 * 640)
    assert np.array_equal(clip.read_speech()[inside], expected[inside])
    prepare.measure_clip(folder)
    assert load_clip(folder).sync == "ok"


def test_the_speech_of_somebody_else_stays_unclear(
    made: Made, earlier: Callable[[str, np.ndarray], Path], speech: Tensor
) -> None:
    folder = earlier("dubbed", speech.numpy()[: 75 * 640])
    prepare.measure_clip(folder)
    clip = load_clip(folder)
    assert clip.sync == "unclear" and not clip.in_step and clip.confidence < LEAST_CONFIDENCE
    assert np.allclose(clip.read_speech(), speech.numpy()[: 75 * 640], atol=1e-4), "nothing is moved"


def test_clips_of_an_earlier_version_are_measured_and_those_of_a_manifest_are_not(
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
    assert [clip.teaches_speech for clip in report.clips] == [False, True]


def test_another_size_is_refused_and_nothing_is_touched(made: Made) -> None:
    videos, out, *_ = made
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    with pytest.raises(UserError, match=r"holds 2 of these clips in 256 x 256 pixels, and --size is 128") as caught:
        prepare_videos(videos, out, size=128)
    assert "--out" in caught.value.cure and "--size 256" in caught.value.cure
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
def test_sizes_and_processes_that_cannot_be_are_refused(tmp_path: Path, words: dict[str, int], reason: str) -> None:
    (tmp_path / "a.mp4").touch()
    with pytest.raises(UserError, match=reason):
        prepare_videos(tmp_path, tmp_path / "out", **words)
    assert not (tmp_path / "out").exists()


def test_a_damaged_clip_is_a_failure_and_stops_nothing(made: Made, tmp_path: Path) -> None:
    videos, out, *_ = made
    copy = tmp_path / "out"
    shutil.copytree(out, copy)
    (copy / REAL[0] / INFO_FILE).write_text("{")
    (copy / REAL[1] / "track.npz").write_bytes(b"")
    report = prepare_videos(videos, copy)
    reasons = {failure.id: failure.reason for failure in report.failed}
    assert "clip.json cannot be read" in reasons[REAL[0]] and "track.npz cannot be read" in reasons[REAL[1]]
    assert "Delete this folder" in reasons[REAL[0]] and report.clips == []


def test_a_person_stays_in_one_split_when_others_come(
    drawn_clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, videos = tmp_path / "out", tmp_path / "videos"
    shutil.copytree(drawn_clips / "ann_0", out / "ann_0")
    videos.mkdir()
    for name in ("ann_0", "ann_7", "bob_0"):
        (videos / f"{name}.mp4").touch()
    taken = []
    monkeypatch.setattr(prepare, "_run", lambda todo, *rest: taken.extend(todo) or iter(()))
    monkeypatch.setattr(prepare, "load_mediapipe", lambda: None)
    monkeypatch.setattr(videos_module, "_choose_val_people", lambda people: {"ann", "bob"})
    prepare_videos(videos, out, size=64)
    assert [(entry.id, entry.split) for entry in taken] == [("ann_7", "train"), ("bob_0", "val")]


def test_the_track_fits_the_pose(made: Made) -> None:
    clip = load_clip(made[1] / REAL[0])
    again = fit_head_pose(clip.landmarks)
    turned = np.einsum("tij,tij->t", again.rotation, clip.pose.rotation)
    assert np.degrees(np.arccos(np.clip((turned - 1) / 2, -1, 1))).max() < 3.0, "registration moves little"
    corners = project(load_canonical_face()[[33, 263]], clip.pose)
    assert np.abs(corners[..., :2]).max() < 1
    # A frontal talking head of this corpus: eyes mostly open, mouth opening and closing.
    assert 0.5 < np.median(clip.eye_openness) < 1.5
    assert clip.lip_opening.min() < 0.03 < 0.08 < clip.lip_opening.max() < 0.4
    assert 0.5 < clip.pose.scale.mean() < 1.0


def test_short_gaps_are_filled_and_long_ones_marked() -> None:
    def face(value: float) -> np.ndarray:
        return np.full((478, 3), value, np.float32)

    found = [None, face(1), None, None, face(4), *[None] * 6, face(11), None]
    track = fill_gaps(found)
    expected = [1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 11]
    assert track.landmarks[:, 0, 0] == pytest.approx(expected, abs=1e-5)
    valid = [False, True, True, True, True, *[False] * 6, True, False]
    assert track.valid.tolist() == valid
    assert fill_gaps([None, None]) is None


class DeadlyEntry(VideoEntry):
    """A video that kills the process that takes it up."""

    def __reduce__(self) -> tuple[object, tuple[int]]:
        return os._exit, (1,)


def test_lips_are_read_in_every_frame_however_many_are_looked_at_together(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (5, 64, 64, 3), dtype=np.uint8)
    landmarks = rng.uniform(-0.5, 0.5, (5, POINT_COUNT, 3)).astype(np.float32)
    monkeypatch.setattr(prepare, "LOOKED_TOGETHER", 2)
    expected = average_lips(FaceMesh(), frames, landmarks)
    np.testing.assert_allclose(read_lips(iter(frames), landmarks), expected, atol=1e-5)


def test_the_lips_of_a_clip_are_those_that_two_networks_see(made: Made) -> None:
    clip = load_clip(made[1] / REAL[0])
    landmarks = np.zeros((clip.frames, POINT_COUNT, 3), np.float32)
    landmarks[:, KEPT_POINTS] = clip.landmarks
    again = average_lips(FaceMesh(), clip.read_frames(range(clip.frames)), landmarks)
    # The mean of the mean and one of the two: half as far again from it as that one is from the other.
    change = np.linalg.norm((again - landmarks)[:, LIPS, :2], axis=-1).mean() * 128
    assert 0.02 < change < 0.6


def test_a_dying_process_costs_only_its_own_clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("a", "b", "bad", "c")
    for name in names:
        (tmp_path / f"{name}.mp4").touch()
    kinds = {name: DeadlyEntry if name == "bad" else VideoEntry for name in names}
    entries = [kinds[name](name, tmp_path / f"{name}.mp4", "someone") for name in names]
    monkeypatch.setattr(prepare, "find_videos", lambda videos, manifest: entries)
    report = prepare_videos(tmp_path / "videos", tmp_path / "out", workers=2)
    reasons = {failure.id: failure.reason for failure in report.failed}
    assert reasons == {name: "is an empty file" for name in ("a", "b", "c")} | {"bad": prepare.DIED}


def test_a_video_with_a_tiny_head_is_refused(tmp_path: Path, shared_data: Path) -> None:
    frames = list(stream_frames(shared_data / "clips" / f"{REAL[0]}.mp4"))[:6]
    with VideoWriter(tmp_path / "far.mp4", (160, 160), crf=5) as writer:
        for frame in frames:
            picture = np.full((160, 160, 3), 100, np.uint8)
            picture[40:96, 50:106] = resize_image(frame, 56)
            writer.write(picture)
    with pytest.raises(UserError, match="too small|a face is seen in only"):
        prepare.prepare_clip(VideoEntry("far", tmp_path / "far.mp4", "x"), tmp_path / "out", 256)
    assert not (tmp_path / "out" / "far").exists()
