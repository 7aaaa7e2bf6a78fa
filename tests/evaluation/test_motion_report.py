"""Reports of motion: people weigh the same, and all files hold the scores."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from s3dnerf.evaluation.estimates import NAN
from s3dnerf.evaluation.motion_report import MotionReport


@pytest.fixture
def report() -> MotionReport:
    """Return the scores of three clips of two people."""
    real = [{"speed": speed, "r": NAN} for speed in (1.0, 3.0, 8.0)]
    ours = [{"speed": 2.0, "r": 0.5, "diversity": spread} for spread in (1.0, 2.0, NAN)]
    noise = [{"speed": 2500.0, "r": 4e-6}] * 3
    sets = {"real": {"distance": (2.0, 1.0, 3.0)}, "ours": {"drift": (0.25, NAN, NAN)}}
    return MotionReport(["a", "a", "b"], {"real": real, "ours": ours, "noise": noise}, sets, ("noise",), ["A note."])


def test_people_weigh_the_same(report: MotionReport) -> None:
    summary = report.summarize()
    assert summary["real"]["speed"] == pytest.approx((5.0, 2.0, 8.0))
    assert summary["real"]["distance"] == (2.0, 1.0, 3.0)


def test_people_without_a_score_are_left_out(report: MotionReport) -> None:
    assert report.summarize()["ours"]["diversity"][0] == 1.5


def test_details_stand_in_a_second_table_beside_real(report: MotionReport) -> None:
    first, second, notes = report.format_markdown().split("\n\n")
    assert first.splitlines()[0] == "| metric | real | ours |"
    assert second.splitlines()[0] == "| metric | real | noise |"
    assert notes == "- A note."
    assert "| speed | 5.00 (2.00 … 8.00) | 2.00 |" in first
    assert "| r | - | 0.500 |" in first and "| r | - | 4e-06 |" in second
    assert "| distance | 2.00 (1.00 … 3.00) | - |" in first and "| drift | - | 0.250 |" in first
    assert "drift" not in second


def test_files_hold_the_scores(report: MotionReport, tmp_path: Path) -> None:
    report.save(tmp_path)
    stored = json.loads((tmp_path / "motion.json").read_text("utf-8"))
    assert stored["scores"]["real"]["r"] == [None, None, None]
    assert stored["scores"]["ours"]["drift"] == [0.25, None, None]
    lines = (tmp_path / "motion.csv").read_text("utf-8").splitlines()
    assert lines[0] == "row,person,speed,r,diversity"
    assert lines[3] == "real,b,8,nan,nan" and lines[4] == "ours,a,2,0.5,1"
    assert (tmp_path / "motion.md").read_text("utf-8") == report.format_markdown() + "\n"
