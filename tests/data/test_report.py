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
    RunStatistics,
    check_success,
    format_duration,
    format_markdown,
    format_summary,
    read_failures,
    record_clip,
    summarize,
    write_report,
)
from s3dnerf.errors import UserError
from s3dnerf.media.video import VideoWriter

FAILURE = Failure("c", "videos/c.mp4", "a face is seen in only 0 of 20 frames", 7, 1.5)


def make_record(name: str, sync: str, seconds: float, whole: bool = True) -> ClipRecord:
    return ClipRecord(name, sync, 0, None, seconds, name, 1000, whole)


def test_summary_lists_usable_speech_and_reasons() -> None:
    syncs = (("ok", 1800.0), ("ok", 900.0), ("corrected", 540.0), ("unclear", 900.0), ("none", 180.0))
    clips = [make_record(str(number), *one) for number, one in enumerate(syncs)]
    clips.append(make_record("lost", "ok", 0.0, whole=False))
    report = PrepareReport(["0"], ["1", "2"], ["2"], [FAILURE], clips)
    assert format_summary(report, Path("out")).splitlines() == [
        "1 prepared, 2 already there (1 of them measured now), 1 failed; see out/report.md",
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
    size = sum(path.stat().st_size for path in (drawn_clips / "ann_0").iterdir())
    assert record_clip(drawn_clips / "ann_0") == ClipRecord("ann_0", "ok", 0, None, 1.6, "ann", size, True)
    assert record_clip(drawn_clips / "ann_0").usable_for_speech
    # It has only twelve frames and is silent.
    silent = record_clip(drawn_clips / "ann_1")
    assert (silent.sync, silent.seconds, silent.whole) == ("none", 0.48, False)
    clip = load_clip(drawn_clips / "ben_0")
    copy = replace(clip, path=tmp_path / "ben_0", valid=np.arange(30) != 3, offset=-3, confidence=0.25)
    save_clip(copy, iter(clip.read_frames(range(30))), clip.read_speech())
    record = record_clip(copy.path)
    assert (record.sync, record.offset, record.confidence) == ("corrected", -3, 0.25)
    assert not record.whole and not record.usable_for_speech


def test_statistics_count_clips_people_hours_and_reasons() -> None:
    clips = [replace(make_record(str(number), "ok", 900.0), person="ann") for number in range(3)]
    clips.append(make_record("ben", "unclear", 900.0))
    failed = [Failure(str(number), "x.mp4", f"a face is seen in only {number} of 20 frames") for number in range(3)]
    failed.append(Failure("y", "y.mp4", "is an empty file"))
    report = PrepareReport(["0"], [], [], failed, clips, RunStatistics(600, 12.0, 8.0))
    assert summarize(report) == {
        "clips": 4,
        "people": 2,
        "hours": 1.0,
        "hours_of_speech": 0.75,
        "bytes_per_second": 4000 / 3600,
        "failed": 4,
        "reasons": {"a face is seen in only N of N frames": 3, "is an empty file": 1},
        "frames_of_this_run": 600,
        "frames_per_second": 75.0,
        "frames_per_core_second": 50.0,
    }
    page = format_markdown(report)
    assert "| people | 2 |" in page and "| is an empty file | 1 |" in page and "| 50.0 |" in page
    assert format_summary(report, Path("out")).endswith("50.0 frames per second of processor time")
    assert summarize(PrepareReport())["frames_per_core_second"] == 0.0


def test_pipes_in_reasons_keep_the_table_intact() -> None:
    page = format_markdown(PrepareReport(failed=[Failure("a", "a.mp4", "odd | reason\nin two lines")]))
    assert "| odd \\| reason in two lines | 1 |" in page


def test_report_round_trip(tmp_path: Path) -> None:
    report = PrepareReport(["a"], ["b"], [], [FAILURE], [make_record("a", "ok", 2.0)])
    write_report(tmp_path, report)
    assert read_failures(tmp_path) == [FAILURE] and read_failures(tmp_path / "empty") == []
    stored = json.loads((tmp_path / "report.json").read_text())
    assert stored["clips"] == [
        {"id": "a", "sync": "ok", "offset": 0, "confidence": None, "seconds": 2.0, "person": "a", "bytes": 1000}
        | {"whole": True}
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
