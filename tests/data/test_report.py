"""The report of a preparation run: usable speech, failures and exit codes."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from s3dnerf import cli
from s3dnerf.data.clip import load_clip, save_clip
from s3dnerf.data.report import (
    ClipRecord,
    Failure,
    PrepareReport,
    check_success,
    format_duration,
    format_summary,
    read_failures,
    record_clip,
    write_report,
)
from s3dnerf.errors import UserError
from s3dnerf.media.video import VideoWriter

FAILURE = Failure("c", "videos/c.mp4", "a face is seen in only 0 of 20 frames", 7, 1.5)


def make_record(name: str, sync: str, seconds: float, whole: bool = True) -> ClipRecord:
    return ClipRecord(name, sync, 0, None, seconds, whole)


def test_summary_lists_usable_speech_and_reasons() -> None:
    syncs = (("ok", 1800.0), ("ok", 900.0), ("corrected", 540.0), ("unclear", 900.0), ("none", 180.0))
    clips = [make_record(str(number), *one) for number, one in enumerate(syncs)]
    clips.append(make_record("lost", "ok", 0.0, whole=False))
    report = PrepareReport(["0"], ["1", "2"], ["2"], [FAILURE], clips)
    assert format_summary(report, Path("out")).splitlines() == [
        "1 prepared, 2 already there (1 of them measured now), 1 failed; see out/report.json",
        "of 1.2 h, 54.0 min (75%) can teach speech: 2 ok, 1 corrected, 1 unclear, 1 silent, "
        "1 too short or with frames without a face",
    ]
    assert "of 0.0 s, 0.0 s can teach speech: no clips" in format_summary(PrepareReport(), Path("out"))


def test_durations_have_a_suitable_unit() -> None:
    assert [format_duration(seconds) for seconds in (6, 59.9, 60, 3599, 3600, 90_000)] == [
        *("6.0 s", "59.9 s", "1.0 min", "60.0 min"),
        *("1.0 h", "25.0 h"),
    ]


def test_record_agrees_with_training(drawn_clips: Path, tmp_path: Path) -> None:
    assert record_clip(drawn_clips / "ann_0") == ClipRecord("ann_0", "ok", 0, None, 1.6, True)
    assert record_clip(drawn_clips / "ann_0").usable_for_speech
    # It has only twelve frames and is silent.
    assert record_clip(drawn_clips / "ann_1") == ClipRecord("ann_1", "none", 0, None, 0.48, False)
    clip = load_clip(drawn_clips / "ben_0")
    copy = replace(clip, path=tmp_path / "ben_0", valid=np.arange(30) != 3, offset=-3, confidence=0.25)
    save_clip(copy, iter(clip.read_frames(range(30))), clip.read_speech())
    record = record_clip(copy.path)
    assert record == ClipRecord("ben_0", "corrected", -3, 0.25, 1.2, False) and not record.usable_for_speech


def test_report_round_trip(tmp_path: Path) -> None:
    report = PrepareReport(["a"], ["b"], [], [FAILURE], [make_record("a", "ok", 2.0)])
    write_report(tmp_path, report)
    assert read_failures(tmp_path) == [FAILURE] and read_failures(tmp_path / "empty") == []
    stored = json.loads((tmp_path / "report.json").read_text())
    assert stored["clips"] == [
        {"id": "a", "sync": "ok", "offset": 0, "confidence": None, "seconds": 2.0, "whole": True}
    ]
    (tmp_path / "report.json").write_text('{"failed": [{"name": 1}]}')
    with pytest.raises(UserError, match="is not a report"):
        read_failures(tmp_path)


def test_only_runs_without_any_clip_fail() -> None:
    with pytest.raises(UserError, match=r"none of 1 videos could be prepared .*0 of 20 frames") as caught:
        check_success(PrepareReport(failed=[FAILURE]), Path("out"))
    assert "out/report.json" in caught.value.hint
    check_success(PrepareReport(failed=[FAILURE], clips=[make_record("a", "unclear", 1.0)]), Path("out"))
    check_success(PrepareReport(), Path("out"))


def test_exit_code_of_prepare(
    drawn_clips: Path, in_process: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    videos, out = tmp_path / "videos", tmp_path / "out"
    videos.mkdir()
    with VideoWriter(videos / "plain_0.mp4", (96, 96)) as writer:
        for level in range(12):
            writer.write(np.full((96, 96, 3), 100 + level, np.uint8))
    words = ["prepare", "--videos", str(videos), "--out", str(out), "--size", "64", "--workers", "1"]
    assert cli.main(words) == 2
    captured = capsys.readouterr()
    line = captured.err.splitlines()[-1]
    assert line.startswith("s3dnerf: error: ") and "none of 1 videos could be prepared" in line and captured.out == ""
    assert json.loads((out / "report.json").read_text())["failed"][0]["id"] == "plain_0"
    # The failure is known now, and there is an existing clip.
    shutil.copytree(drawn_clips / "ann_0", out / "ann_0")
    (videos / "ann_0.mp4").touch()
    assert cli.main(words) == 0
    captured = capsys.readouterr()
    assert "plain_0.mp4: a face is seen in only 0 of 12 frames" in captured.err
    assert "0 prepared, 1 already there, 1 failed" in captured.out
    assert "of 1.6 s, 1.6 s (100%) can teach speech: 1 ok" in captured.out
