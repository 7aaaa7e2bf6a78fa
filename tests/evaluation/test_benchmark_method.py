"""Methods of others: how they are named, what they are given, and what becomes of those that fail."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from s3dnerf.cli import main
from s3dnerf.errors import UserError
from s3dnerf.evaluation.benchmark_method import benchmark_method, read_costs, read_input, run_method, summarize_costs
from s3dnerf.evaluation.clip_list import read_manifest
from s3dnerf.evaluation.methods import FD2Talk, FrozenMouth, S3DNeRF, load_method, takes_poses
from s3dnerf.evaluation.protocol import hash_file, pair_speech, write_manifest
from s3dnerf.evaluation.score import RealClips
from s3dnerf.evaluation.score_jobs import ScoreSettings
from s3dnerf.face.camera import HeadPose
from s3dnerf.media.audio import read_speech
from s3dnerf.media.video import VideoWriter, probe_video, read_frames
from s3dnerf.pipeline import TalkingHeadPipeline

FRAMES = 6
MODULE = """
import numpy as np

class Still:
    def reenact(self, image, audio, poses):
        return [image] * len(poses)

class Free:
    def reenact(self, image, audio):
        return np.repeat(image[None], len(audio) // 640, axis=0)

class Other:
    def reenact(self, portrait, speech):
        return []

class NoMethod:
    pass
"""


class Still:
    """Repeats the image, half as large."""

    def reenact(self, image: np.ndarray, audio: np.ndarray, poses: HeadPose) -> Iterator[np.ndarray]:
        assert len(audio) == 640 * len(poses) and audio.dtype == np.float32
        yield from [np.ascontiguousarray(image[::2, ::2])] * len(poses)


class Short(Still):
    def reenact(self, image: np.ndarray, audio: np.ndarray, poses: HeadPose) -> list[np.ndarray]:
        return [image] * (len(poses) - 1)


class Broken(Still):
    def reenact(self, image: np.ndarray, audio: np.ndarray, poses: HeadPose) -> list[np.ndarray]:
        raise RuntimeError("no weights")


@pytest.fixture(scope="module")
def clips(astronaut_clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    shutil.copy(astronaut_clips / "astronaut.mp4", folder / "ann.mp4")
    return folder


def test_methods_are_loaded_from_files_and_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine_for_test.py").write_text(MODULE, "utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*__import__("sys").path])
    assert takes_poses(load_method("mine_for_test.py:Still")) and not takes_poses(load_method("mine_for_test:Free"))
    with pytest.raises(UserError, match=r"reenact\(self, portrait, speech\)"):
        takes_poses(load_method("mine_for_test:Other"))
    for name, reason in (
        ("mine_for_test", "does not name a class"),
        ("missing_for_test:Still", "cannot be imported"),
        ("missing.py:Still", "cannot be imported"),
        ("mine_for_test:NoMethod", "not a class with a method reenact"),
        ("mine_for_test:Nothing", "not a class with a method reenact"),
    ):
        with pytest.raises(UserError, match=reason):
            load_method(name)


def test_poses_are_those_of_the_image(clips: Path) -> None:
    given = read_input(clips / "ann.mp4", clips / "ann.mp4", ScoreSettings(max_frames=FRAMES))
    assert given.image.shape == (256, 256, 3) and len(given.poses) == FRAMES
    assert given.audio.shape == (640 * FRAMES,)
    # The head of the astronaut drifts to the left by about 5 pixels in 5 frames.
    shift = given.poses.center[-1] - given.poses.center[0]
    assert -8 < shift[0] < -2 and abs(shift[1]) < 2


def test_videos_and_costs_are_kept(clips: Path, tmp_path: Path) -> None:
    arguments = RealClips(clips), tmp_path / "videos", ScoreSettings(max_frames=FRAMES), tmp_path / "errors"
    assert run_method(Still, *arguments) == {}
    info = probe_video(tmp_path / "videos" / "ann.mp4")
    assert (info.width, info.height, info.frames, info.has_audio) == (128, 128, FRAMES, True)
    costs = summarize_costs(read_costs(tmp_path / "videos"))
    assert 0 < costs["seconds a frame"] < 1 and costs["peak memory (MB)"] > 50
    # The second run keeps the video, so that the method that would fail is not called.
    assert run_method(Broken, *arguments) == {}
    failed = run_method(Broken, *arguments, overwrite=True)
    assert "RuntimeError: no weights" in failed["ann"]
    assert "Traceback" in (tmp_path / "errors" / "ann.txt").read_text("utf-8")


def test_wrong_numbers_of_frames_are_refused(clips: Path, tmp_path: Path) -> None:
    arguments = RealClips(clips), tmp_path / "videos", ScoreSettings(max_frames=FRAMES), tmp_path / "errors"
    assert f"{FRAMES - 1} frames of {FRAMES}" in run_method(Short, *arguments)["ann"]
    assert not (tmp_path / "videos" / "ann.mp4").exists()


@pytest.mark.slow
def test_the_command_runs_and_scores_free_and_cross_speech(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(MODULE, "utf-8")
    shutil.copytree(clips, "people")
    loud = np.where(np.arange(640 * FRAMES) % 1280 < 640, 0.2, 0.02) * np.sin(np.arange(640 * FRAMES) * 0.1)
    with VideoWriter("people/ben.mp4", (256, 256), audio=loud.astype(np.float32), crf=10) as writer:
        for frame in read_frames("people/ann.mp4", range(FRAMES)):
            writer.write(frame)
    shared = ["--real", "people", "--max-frames", str(FRAMES), "--workers", "1"]
    assert main(["benchmark-method", "mine.py:Free", "--out", "free", "--only", "ben", *shared]) == 0
    # Without poses the head moves by itself: lips are compared, frames are not.
    printed = capsys.readouterr().out
    assert "seconds a frame" in printed and "lip soft-DTW" in printed and "PSNR" not in printed
    crossed = ["--task", "cross", "--out", "cross", "--against", "free/videos/Free"]
    assert main(["benchmark-method", "mine.py:Still", *crossed, *shared]) == 0
    printed = capsys.readouterr().out
    assert "minus Free" in printed and "lip soft-DTW" not in printed
    assert "Free/ann: not scored: missing" in printed and "Free/ben: not scored" not in printed
    # Each speaks with the sound of the other.
    sounds = {name: read_speech(Path(f"cross/videos/Still/{name}.mp4"))[: 640 * FRAMES] for name in ("ann", "ben")}
    assert np.corrcoef(sounds["ann"], loud)[0, 1] > 0.9 > abs(np.corrcoef(sounds["ben"], loud)[0, 1])


@pytest.mark.parametrize(("name", "task"), [("Free", "self"), ("Still", "free")])
def test_tasks_and_poses_must_agree(clips: Path, tmp_path: Path, name: str, task: str) -> None:
    (tmp_path / "mine.py").write_text(MODULE, "utf-8")
    with pytest.raises(UserError, match="poses"):
        benchmark_method(f"{tmp_path}/mine.py:{name}", RealClips(clips), tmp_path / "out", ScoreSettings(task))
    assert not (tmp_path / "out").exists()


def test_cross_speech_is_of_the_next_person(tmp_path: Path) -> None:
    clips = [tmp_path / f"{name}.mp4" for name in ("a1", "a2", "b1")]
    listed = {"a1": {"identity": "a"}, "a2": {"identity": "a"}, "b1": {"identity": "b"}}
    assert {name: path.stem for name, path in pair_speech(clips, listed).items()} == {
        "a1": "b1",
        "a2": "b1",
        "b1": "a1",
    }
    listed["b1"]["speech"] = "a2.mp4"
    assert pair_speech(clips, listed)["b1"].stem == "a2"
    with pytest.raises(UserError, match="two people"):
        pair_speech(clips[:2], listed)
    with pytest.raises(UserError, match="not among the clips"):
        pair_speech([clips[0], clips[2]], listed)


def test_a_manifest_lists_people_frames_and_checksums(clips: Path, tmp_path: Path) -> None:
    both = [clips / "ann.mp4", tmp_path / "ben.mp4"]
    shutil.copy(both[0], both[1])
    write_manifest(tmp_path / "bench.csv", both, {"ann": {"identity": "ann", "split": "val"}})
    entries = read_manifest(tmp_path / "bench.csv")
    assert entries["ann"]["speech"] == "ben.mp4" and entries["ben"]["identity"] == "ben"
    assert int(entries["ann"]["frames"]) == len(read_frames(both[0], range(16))) == 16
    assert entries["ann"]["sha256"] == hash_file(both[1])


def test_our_model_is_a_method(one_thread: None, clips: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = TalkingHeadPipeline.from_pretrained(device="cpu")
    monkeypatch.setattr(TalkingHeadPipeline, "from_pretrained", lambda **_: pipeline)
    given = read_input(clips / "ann.mp4", clips / "ann.mp4", ScoreSettings(max_frames=3))
    made = {}
    for method in (S3DNeRF, FrozenMouth, FD2Talk):
        frames = list(method().reenact(given.image, given.audio, given.poses))
        assert [frame.shape for frame in frames] == [(256, 256, 3)] * 3
        assert np.abs(frames[0].astype(int) - given.image).mean() < 12
        made[method] = np.stack(frames).astype(int)
    # They begin with the same speech, and only the face differs later.
    assert np.array_equal(made[S3DNeRF][0], made[FrozenMouth][0])
    assert not np.array_equal(made[S3DNeRF][2], made[FrozenMouth][2])
    assert not np.array_equal(made[S3DNeRF][2], made[FD2Talk][2])
    assert np.abs(made[S3DNeRF][2] - made[FD2Talk][2])[:8].max() <= 2
