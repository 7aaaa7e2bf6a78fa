"""Key frames: curves through their values, and files that hold something else."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from s3dnerf.errors import UserError
from s3dnerf.keyframes import read_key_frames

RANGES = {"yaw": (-40.0, 40.0), "zoom": (0.5, 2.0)}


def write(folder: Path, entries: object) -> Path:
    path = folder / "camera.json"
    path.write_text(entries if isinstance(entries, str) else json.dumps(entries), "utf-8")
    return path


def test_values_are_met_and_smooth_in_between(tmp_path: Path) -> None:
    entries = [{"seconds": 4, "yaw": 0}, {"seconds": 0, "yaw": -20, "zoom": 1.0}, {"seconds": 2, "yaw": 20}]
    frames = read_key_frames(write(tmp_path, entries), RANGES)
    assert [frames.at("yaw", seconds, 9.0) for seconds in (-1, 0, 2, 4, 100)] == [-20, -20, 20, 0, 0]
    assert frames.at("yaw", 1.0, 9.0) == pytest.approx(0.0)
    assert frames.at("zoom", 3.0, 9.0) == 1.0
    seconds = np.linspace(0.0, 4.0, 401)
    speeds = np.diff([frames.at("yaw", value, 0.0) for value in seconds]) / 0.01
    assert np.abs(np.diff(speeds)).max() < 1.0
    # The fastest moment of a smooth step is at its middle, at 1.5 times the mean speed.
    assert speeds.max() == pytest.approx(1.5 * 40 / 2, rel=1e-3)


def test_a_name_without_key_frames_has_its_default(tmp_path: Path) -> None:
    assert read_key_frames(write(tmp_path, [{"seconds": 0, "yaw": 3}]), RANGES).at("zoom", 0.0, 1.5) == 1.5


@pytest.mark.parametrize(
    ("entries", "named"),
    [
        ("{", "is no JSON"),
        ("[" * 100_000, "is no JSON"),
        ([], "no list of key frames"),
        ({"seconds": 0}, "no list of key frames"),
        ([{"yaw": 3}], "seconds"),
        ([{"seconds": 0, "zom": 1}], "Did you mean zoom"),
        ([{"seconds": 0, "yaw": "3"}], "no number as yaw"),
        ([{"seconds": 0, "yaw": True}], "no number as yaw"),
        ([{"seconds": 0, "yaw": 41}], "out of range"),
        ([{"seconds": -1, "yaw": 4}], "out of range"),
        ('[{"seconds": 0, "yaw": NaN}]', "no number as yaw"),
        ([{"seconds": 0, "yaw": 4}, {"seconds": 0, "yaw": 5}], "twice"),
    ],
)
def test_files_that_hold_something_else_are_refused(entries: object, named: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=named) as raised:
        read_key_frames(write(tmp_path, entries), RANGES)
    assert "camera.json" in str(raised.value)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        read_key_frames(tmp_path / "none.json", RANGES)
