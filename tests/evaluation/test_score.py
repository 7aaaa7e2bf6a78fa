"""Scoring of a stranger's folder: other sizes and frame rates, missing sound, broken and short files."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import pytest

from s3dnerf.constants import SAMPLES_PER_FRAME
from s3dnerf.errors import UserError
from s3dnerf.evaluation.framing import frame_generated, frame_real
from s3dnerf.evaluation.protocol import hash_file
from s3dnerf.evaluation.score import RealClips, name_methods, score_videos
from s3dnerf.evaluation.score_jobs import ScoreSettings
from s3dnerf.evaluation.score_report import ScoreReport
from s3dnerf.media.image import read_image
from s3dnerf.media.video import VideoWriter, stream_frames

from .conftest import draw_talking_astronaut

FRAMES = 8


def make_sound(frames: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    envelope = np.repeat(rng.uniform(0.1, 1.0, frames), SAMPLES_PER_FRAME)
    return (0.1 * envelope * rng.normal(size=len(envelope))).astype(np.float32)


def write(path: Path, frames: Iterator[np.ndarray], count: int, sound: np.ndarray | None, fps: int = 25) -> None:
    first = next(frames)
    with VideoWriter(path, first.shape[1::-1], fps, audio=sound, crf=10) as writer:
        writer.write(first)
        for frame in islice(frames, count - 1):
            writer.write(frame)


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("real")
    write(folder / "same.mp4", draw_talking_astronaut(FRAMES), FRAMES, make_sound(FRAMES))
    for name in ("large", "silent", "cut", "short", "wide", "missing"):
        shutil.copy(folder / "same.mp4", folder / f"{name}.mp4")
    rows = ["file,identity,sha256", *(f"{path.name},{path.stem[0]}," for path in sorted(folder.glob("*.mp4")))]
    (folder / "list.csv").write_text("\n".join([*rows, "gone.mp4,g,"]) + "\n", "utf-8")
    return folder


@pytest.fixture(scope="module")
def stranger(real: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of another method: blurred frames, and all kinds of trouble."""
    folder = tmp_path_factory.mktemp("stranger")

    def blurred() -> Iterator[np.ndarray]:
        return (cv2.GaussianBlur(frame, (0, 0), 2.0) for frame in stream_frames(real / "same.mp4"))

    write(folder / "same.mp4", blurred(), FRAMES, make_sound(FRAMES, seed=5))
    doubled = (cv2.resize(frame, (400, 400)) for frame in stream_frames(real / "same.mp4", 30))
    write(folder / "large.mov", doubled, 10, make_sound(FRAMES), fps=30)
    write(folder / "silent.mp4", blurred(), FRAMES, None)
    write(folder / "short.mp4", blurred(), 3, make_sound(3))
    write(folder / "wide.mp4", (frame[:128] for frame in blurred()), FRAMES, make_sound(FRAMES))
    whole = (real / "same.mp4").read_bytes()
    (folder / "cut.mp4").write_bytes(whole[: len(whole) // 3])
    (folder / "unknown.mp4").write_bytes(whole)
    return folder


@pytest.fixture(scope="module")
def scored(real: Path, stranger: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[ScoreReport, Path]:
    out = tmp_path_factory.mktemp("scored")
    return score_videos(stranger, RealClips(real, real / "list.csv"), out, workers=1), out


def test_every_file_is_scored_or_refused_with_a_reason(scored: tuple[ScoreReport, Path], stranger: Path) -> None:
    report, (method,) = scored[0], scored[0].methods
    assert set(report.scores[method]) == {"same", "large", "silent"}
    reasons = report.failed[method]
    assert set(reasons) == {"cut", "short", "wide", "missing", "gone"}
    assert "has 3 frames at 25 a second, its real clip 8" in reasons["short"]
    assert "256 x 128" in reasons["wide"] and "--crop head" in reasons["wide"]
    assert "missing" in reasons["missing"] and "in the manifest, but not" in reasons["gone"]
    assert "cut short" in reasons["cut"] or "decoded" in reasons["cut"]
    assert report.unmatched[method] == ["unknown"]
    text = report.format_summary()
    for name in (*reasons, "unknown", "silent"):
        assert name in text


def test_another_size_and_frame_rate_score_as_the_clip_itself(scored: tuple[ScoreReport, Path]) -> None:
    report, (method,) = scored[0], scored[0].methods
    large, same = report.scores[method]["large"], report.scores[method]["same"]
    assert large["psnr"] > 30 > same["psnr"] and large["f_lmd"] < 1.0
    assert same["face_detail"] < 0.7 * large["face_detail"]
    video = report.results[method]["large"].video
    assert (video["width"], video["height"], video["fps"], video["scored_frames"]) == (400, 400, 30.0, FRAMES)


def test_sound_is_that_of_the_video(scored: tuple[ScoreReport, Path]) -> None:
    report, (method,) = scored[0], scored[0].methods
    scores = report.scores[method]
    assert scores["large"]["sound_match"] > 0.95 > scores["same"]["sound_match"]
    assert scores["silent"]["beat_alignment"] is None and scores["silent"]["psnr"] == scores["same"]["psnr"]
    assert "no sound" in report.results[method]["silent"].notes[0]


def test_what_no_video_has_is_named_and_not_a_row_of_dashes(scored: tuple[ScoreReport, Path]) -> None:
    # Eight frames are too few for the search of an offset.
    report, (method,) = scored[0], scored[0].methods
    assert np.isnan(report.scores[method]["same"]["sync_confidence"])
    assert "sync_confidence" in {measure.name for measure in report.undefined}
    *table, problems = report.format_summary().split("\n\n")
    assert "sync conf." in problems and "sync conf." not in "".join(table)


def test_files_hold_all_scores(scored: tuple[ScoreReport, Path]) -> None:
    report, out = scored
    (method,) = report.methods
    tree = json.loads((out / "scores.json").read_text("utf-8"))
    assert tree["protocol"] == "s3dnerf-bench-1" and "list.csv (sha256 " in tree["real_clips"]
    assert tree["methods"][method]["clips"]["same"]["psnr"] == report.scores[method]["same"]["psnr"]
    assert tree["methods"][method]["means"]["psnr"]["mean"] == pytest.approx(report.estimate(method)["psnr"][0])
    rows = list(csv.DictReader((out / "scores.csv").read_text("utf-8").splitlines()))
    assert {row["clip"] for row in rows if row["not_scored"]} == set(report.failed[method])
    assert "psnr" not in report.scores["real"]["same"] and report.scores["real"]["same"]["cpbd"] > 0
    assert read_image(out / "contact_sheet.png").shape[1] < read_image(out / "sheets" / method / "same.png").shape[1]
    text = (out / "scores.md").read_text("utf-8")
    assert "Blind to" in text and "short" in text


def test_a_second_run_takes_up_the_results_of_the_first(
    scored: tuple[ScoreReport, Path], real: Path, stranger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report, out = scored
    monkeypatch.setattr("s3dnerf.evaluation.score_jobs.score_video", lambda *_: pytest.fail("scored again"))
    again = score_videos(stranger, RealClips(real, None, None, ["same", "silent"]), out, workers=1)
    (method,) = report.methods
    np.testing.assert_equal(again.scores[method]["same"], report.scores[method]["same"])
    # Scores without a value stay unmeasured, and undefined ones undefined.
    np.testing.assert_equal(again.scores[method]["silent"], report.scores[method]["silent"])


def test_two_methods_are_compared_over_people(scored: tuple[ScoreReport, Path], real: Path, stranger: Path) -> None:
    compared = ScoreReport(ScoreSettings(), {"ours": real, "theirs": stranger}, scored[0].people, real)
    compared.scores["ours"] = {"same": {"psnr": 30.0}, "large": {"psnr": 40.0}, "cut": {"psnr": 1.0}}
    compared.scores["theirs"] = {"same": {"psnr": 29.0}, "large": {"psnr": 37.0}, "silent": {"psnr": 99.0}}
    assert compared.compare("theirs")["psnr"] == (2.0, 1.0, 3.0)
    assert "minus theirs" in compared.format_differences() and "minus real" not in compared.format_differences()
    # Every person loses a little, and people differ by far more: only the difference has an interval without 0.
    compared.scores["ours"] = {"same": {"cpbd": 0.1}, "large": {"cpbd": 0.5}, "cut": {"cpbd": 0.9}}
    compared.scores["real"] = {"same": {"cpbd": 0.11}, "large": {"cpbd": 0.52}, "cut": {"cpbd": 0.91}}
    (ours, low, high), real = compared.estimate("ours")["cpbd"], compared.estimate("real")["cpbd"]
    assert low < real[0] < high and real[0] > ours
    assert compared.compare("real")["cpbd"][2] < 0
    assert "minus real" in compared.format_differences(details=True)


def test_other_files_than_the_manifest_names_are_refused(real: Path, stranger: Path, tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    path.write_text(f"file,sha256\nsame.mp4,{'0' * 64}\n", "utf-8")
    with pytest.raises(UserError, match="sha256 differs"):
        score_videos(stranger, RealClips(real, path), tmp_path / "out", workers=1)
    assert len(hash_file(real / "same.mp4")) == 64


def test_heads_in_any_framing_are_cut_alike(real: Path, tmp_path: Path) -> None:
    framed = (np.pad(frame, ((40, 90), (160, 60), (0, 0))) for frame in stream_frames(real / "same.mp4"))
    write(tmp_path / "framed.mp4", framed, FRAMES, None)
    target = frame_real(real / "same.mp4", "head")
    video = frame_generated(tmp_path / "framed.mp4", "head", target)
    pairs = zip(target(), video(), strict=True)
    assert all(np.abs(a.astype(int) - b).mean() < 12 for a, b in pairs)
    assert target.size == video.size == (256, 256)


def test_methods_are_named_after_their_folders(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("a/videos", "b/videos", "c")]
    assert list(name_methods(folders[1:])) == ["videos", "c"]
    assert list(name_methods(folders[:2])) == ["a_videos", "b_videos"]
    assert list(name_methods([tmp_path / "real"])) == [f"{tmp_path.name}_real"]
    with pytest.raises(UserError, match="given twice"):
        name_methods([folders[0], tmp_path / "a" / ".." / "a" / "videos"])


def test_invalid_settings_are_refused(real: Path, stranger: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--task lips: is not known"):
        score_videos(stranger, real, tmp_path, settings=ScoreSettings(task="lips"))
    with pytest.raises(UserError, match="overwritten"):
        score_videos(stranger, real, stranger)
    with pytest.raises(UserError, match="no such folder"):
        score_videos(tmp_path / "none", real, tmp_path / "out")
    with pytest.raises(UserError, match="several videos of one name"):
        (tmp_path / "a.mp4").touch()
        (tmp_path / "a.mov").touch()
        score_videos(tmp_path, real, tmp_path / "out")
