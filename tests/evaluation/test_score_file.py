"""Scores and the settings that they were measured with, written and read back."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from s3dnerf.errors import UserError
from s3dnerf.evaluation.score_file import read_scores, write_scores
from s3dnerf.evaluation.scores import Scores

NAN = float("nan")
BLANK = Scores(25.0, 0.8, 2.0, 1.5, 1.8, 0.4, 0.9, 0.36, 1.0, 12.0, 1.0, 0.3, 0.75)


def test_scores_are_read_back_for_the_same_settings_only(tmp_path: Path) -> None:
    path, settings = tmp_path / "scores.json", {"clips": "clips", "max_frames": 9, "only": None}
    assert read_scores(path, settings) == {}
    written = {"ours": replace(BLANK, lip_gain=NAN, silent_opening=NAN, csim=0.25)}
    write_scores(path, settings, written)
    restored = read_scores(path, settings)["ours"]
    assert math.isnan(restored.lip_gain) and math.isnan(restored.silent_opening) and restored.lse_c is None
    changed = {"lip_gain": 1.0, "silent_opening": 1.0}
    assert replace(restored, **changed) == replace(written["ours"], **changed)
    for name, value in (("max_frames", 8), ("only", "anna"), ("clips", "others")):
        assert read_scores(path, {**settings, name: value}) == {}


@pytest.mark.parametrize("text", ["{", "[]", '{"settings": {}, "scores": {"ours": {"psnr": 1.0}}}', '{"settings": {}}'])
def test_broken_files_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "scores.json"
    path.write_text(text, "utf-8")
    with pytest.raises(UserError, match="is broken"):
        read_scores(path, {})
