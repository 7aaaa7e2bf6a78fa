"""No command overwrites its inputs, and invalid outputs are refused before any work."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from s3dnerf import cli
from s3dnerf.errors import UserError
from s3dnerf.talking_video import PhaseTimer, TalkingVideo


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with files of arbitrary content: they must be refused before they are read."""
    for name in ("portrait.png", "speech.wav", "driver.mp4", "table.csv", "config.yaml"):
        (tmp_path / name).write_text(f"precious {name}")
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "a.mp4").write_text("precious clip")
    return tmp_path


def refuse(capsys: pytest.CaptureFixture[str], folder: Path, words: str) -> str:
    """Run a command that must be refused; returns its single line and checks that nothing was changed."""
    before = {path: path.read_text() for path in folder.rglob("*") if path.is_file()}
    assert cli.main([word.replace("@", f"{folder}/") for word in words.split()]) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert {path: path.read_text() for path in folder.rglob("*") if path.is_file()} == before
    return line


@pytest.mark.parametrize(
    "name", ["portrait.png", "speech.wav", "driver.mp4", "clips/../driver.mp4", "link.mp4", "hard.mp4"]
)
def test_a_video_does_not_overwrite_its_inputs(capsys: pytest.CaptureFixture[str], folder: Path, name: str) -> None:
    (folder / "link.mp4").symlink_to(folder / "driver.mp4")
    os.link(folder / "driver.mp4", folder / "hard.mp4")
    words = f"render --image @portrait.png --audio @speech.wav --pose @driver.mp4 --out @{name}"
    assert "is also an input" in refuse(capsys, folder, words)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("render --image @portrait.png --audio @speech.wav --out @talking.gif", "talking.gif"),
        ("render --image @portrait.png --audio @speech.wav --out @speech.wav/talking.mp4", "speech.wav"),
        ("prepare --videos @clips --out @clips", "clips"),
        ("prepare --videos @clips --out @clips/prepared", "clips"),
        ("prepare --videos @clips --out @table.csv", "table.csv"),
        ("train --config smoke.yaml --data.root @clips --out @clips", "clips"),
        ("train --config smoke.yaml --data.root @clips --out @table.csv", "table.csv"),
        ("train-sync --data.root @clips --out @table.csv", "table.csv"),
        ("train-sync --data.root @clips --data.offsets @table.csv --offsets @table.csv", "table.csv"),
        ("evaluate --clips @clips --out @clips", "clips"),
        ("evaluate --clips @clips --manifest @table.csv --out @", "table.csv"),
        ("ablate --clips @clips --out @clips", "clips"),
        ("benchmark --render --image @portrait.png --json @portrait.png", "portrait.png"),
        ("benchmark --render --json @clips", "clips"),
    ],
)
def test_outputs_are_checked_first(capsys: pytest.CaptureFixture[str], folder: Path, words: str, named: str) -> None:
    assert named in refuse(capsys, folder, words)


def test_settings_that_are_read_are_not_overwritten(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    (folder / "config.yaml").write_text("# my notes\nextends: smoke.yaml\n")
    for command in ("train", "train-sync"):
        words = f"{command} --config @config.yaml --data.root @clips --out @"
        (folder / "config.yaml").write_text("# my notes\n" + ("extends: smoke.yaml\n" if command == "train" else ""))
        assert "is also an input" in refuse(capsys, folder, words)


def test_saving_from_the_library_refuses_inputs_too(folder: Path) -> None:
    inputs = (folder / "portrait.png", folder / "driver.mp4")
    video = TalkingVideo(1, (64, 64), folder / "speech.wav", PhaseTimer(), lambda: pytest.fail("rendered"), inputs)
    with pytest.raises(UserError, match="is also an input"):
        video.save(folder / "clips" / ".." / "driver.mp4")
    assert (folder / "driver.mp4").read_text() == "precious driver.mp4"
