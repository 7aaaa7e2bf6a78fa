"""Tables of motion metrics."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from s3dnerf.evaluation.motion_plot import draw_pose_curves
from s3dnerf.evaluation.motion_table import MotionReport


@pytest.fixture
def report() -> MotionReport:
    """Return the scores of three clips of two people."""
    scores = [{"speed": 1.0, "r": float("nan")}, {"speed": 3.0, "r": float("nan")}, {"speed": 8.0, "r": float("nan")}]
    return MotionReport(["a", "a", "b"], {"real": scores}, {"real": {"distance": 2.0}}, ["A note."])


def test_people_weigh_the_same(report: MotionReport) -> None:
    mean, low, high = report.summarize()["real"]["speed"]
    assert (mean, low, high) == pytest.approx((5.0, 2.0, 8.0))


def test_files_hold_the_scores(report: MotionReport, tmp_path: Path) -> None:
    report.save(tmp_path)
    stored = json.loads((tmp_path / "motion.json").read_text())
    assert stored["means"]["real"]["r"] == [None, None, None]
    assert (tmp_path / "motion.csv").read_text().splitlines()[3] == "real,b,8,nan"
    table = (tmp_path / "motion.md").read_text()
    assert "| r | - |" in table and "| distance | 2 |" in table and "- A note." in table


def test_curves_are_drawn_in_their_panels() -> None:
    pose = np.zeros((50, 6), np.float32)
    pose[:, 1] = 0.2
    still, turned = draw_pose_curves({"real": pose * 0}), draw_pose_curves({"real": pose})
    changed = np.flatnonzero((still != turned).any(axis=(1, 2)))
    assert changed.min() >= 200 and changed.max() < 400
