"""The command line: valid and invalid arguments, and interruptions."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from s3dnerf import __version__, cli
from s3dnerf.errors import UserError

TOOLS = Path(__file__).resolve().parents[1] / "tools"
COMMANDS = (
    *(
        "prepare",
        "train",
        "train-sync",
        "train-motion",
        "train-frames",
        "render",
        "evaluate",
        "score",
        "benchmark-method",
    ),
    *("benchmark-manifest", "evaluate-motion", "ablate"),
)


def complain(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Run words that must be refused; returns the single line on the error stream."""
    assert cli.main(words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("s3dnerf: error: ")
    return lines[0]


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(["--version"])
    assert left.value.code == 0
    assert capsys.readouterr().out == f"s3dnerf {__version__}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_each_command_names_its_options(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main([command, "--help"])
    assert left.value.code == 0
    assert "--out" in capsys.readouterr().out


def test_help_of_train_lists_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    from s3dnerf.config import dotted_names
    from s3dnerf.training.config import S3DNeRFConfig

    with pytest.raises(SystemExit):
        cli.main(["train", "--config", "smoke.yaml", "--help"])
    text = capsys.readouterr().out
    names = dotted_names(S3DNeRFConfig)
    leaves = [name for name in names if not any(other.startswith(f"{name}.") for other in names)]
    assert len(leaves) > 20
    for name in leaves:
        assert f"--{name} " in text


def test_no_command_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert "COMMAND" in complain(capsys)


def test_wrong_options_are_refused_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--image, --audio" in complain(capsys, "render")
    files = ("--image", "a.png", "--audio", "b.wav")
    assert "unknown option --speed" in complain(capsys, "render", *files, "--speed", "2")
    assert "invalid choice: 'never'" in complain(capsys, "render", *files, "--refine", "never")
    assert "--size big: is not a whole number" in complain(capsys, "render", *files, "--size", "big")


def test_wrong_settings_of_train_are_refused_with_the_nearest_name(
    capsys: pytest.CaptureFixture[str],
) -> None:
    line = complain(capsys, "train", "--config", "smoke.yaml", "--train.step", "4")
    assert "unknown setting 'train.step'. Did you mean 'train.steps'?" in line
    assert "'train.steps': input should be" in complain(capsys, "train", "--train.steps", "many")
    assert "no such settings file" in complain(capsys, "train", "--config", "nothing.yaml")


def test_invalid_options_of_ablate_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("ablate", "--clips", str(tmp_path), "--out", str(tmp_path / "out"))
    assert "no variant half_face" in complain(capsys, *words, "--variants", "half_face")
    assert "Did you mean 'train.steps'?" in complain(capsys, *words, "--train.step", "4")
    assert "two or more" in complain(capsys, *words, "--seeds", "3")
    assert "holds no mp4 file" in complain(capsys, *words)
    assert not (tmp_path / "out").exists()


def test_missing_files_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = complain(capsys, "render", "--image", str(tmp_path / "no.png"), "--audio", str(tmp_path / "no.wav"))
    assert "no.wav" in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("raised", "code", "line"),
    [
        (
            UserError("a.png", "shows no face", "Take another."),
            2,
            "s3dnerf: error: a.png: shows no face. Take another.",
        ),
        (KeyboardInterrupt(), 130, "s3dnerf: interrupted"),
    ],
)
def test_exit_codes(
    raised: BaseException,
    code: int,
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(options: object) -> None:
        raise raised

    monkeypatch.setattr(cli.rendering, "run_render", fail)
    assert cli.main(["render", "--image", "a.png", "--audio", "b.wav"]) == code
    assert capsys.readouterr().err == f"{line}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_each_tool_is_its_command(command: str) -> None:
    words = [sys.executable, str(TOOLS / f"{command.replace('-', '_')}.py"), "--no-such-option"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert f"s3dnerf {command}" in done.stderr or "unknown setting" in done.stderr


def test_python_dash_m_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "s3dnerf", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"s3dnerf {__version__}\n"
