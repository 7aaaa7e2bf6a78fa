"""Settings: files, inheritance, dotted overrides, and one clear line for each mistake."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from s3dnerf.config import (
    dotted_names,
    find_config,
    from_dict,
    load_config,
    nearest_name,
    parse_overrides,
    save_config,
    show_options,
    to_dict,
)
from s3dnerf.errors import UserError


@dataclass(frozen=True)
class FieldSettings:
    """The radiance field."""

    width: int = 32
    """Channels of one plane."""
    resolutions: tuple[int, ...] = (64, 128)
    """Cells along one side of a plane, for each scale."""
    speech: Literal["mel", "off"] = "mel"
    """Input features of the audio encoder."""


@dataclass(frozen=True)
class StepSettings:
    """The optimizer's step."""

    rate: float = 1e-3  # Learning rate.
    mixed: bool = False
    """Mixed precision."""
    model: FieldSettings = field(default_factory=FieldSettings)

    def __post_init__(self) -> None:
        if self.rate <= 0:
            raise ValueError("rate must be above 0")


@dataclass(frozen=True)
class Settings:
    """All settings."""

    model: FieldSettings = field(default_factory=FieldSettings)
    train: StepSettings = field(default_factory=StepSettings)
    folder: Path | None = None
    """Folder of clips."""
    name: str = "base"
    seed: int = 0


def write(path: Path, text: str) -> Path:
    path.write_text(text, "utf-8")
    return path


def refuse(tmp_path: Path, text: str, *overrides: str) -> str:
    """Return the message of the UserError that the settings raise."""
    with pytest.raises(UserError) as caught:
        load_config(Settings, write(tmp_path / "own.yaml", text), overrides)
    return str(caught.value)


def test_an_empty_file_gives_the_defaults(tmp_path: Path) -> None:
    assert load_config(Settings, write(tmp_path / "own.yaml", "")) == Settings()


def test_file_values_are_converted_to_the_declared_types(tmp_path: Path) -> None:
    text = "model: {width: 8, resolutions: [4, 8]}\ntrain: {rate: 3e-4, mixed: true}\nfolder: some/where\n"
    config = load_config(Settings, write(tmp_path / "own.yaml", text))
    assert config.model == FieldSettings(width=8, resolutions=(4, 8))
    assert config.train.rate == 0.0003 and config.train.mixed is True
    assert config.folder == Path("some/where")


def test_extends_fills_what_the_file_leaves_out(tmp_path: Path) -> None:
    write(tmp_path / "base.yaml", "seed: 1\ntrain: {rate: 0.5, mixed: true}\n")
    write(tmp_path / "middle.yaml", "extends: base.yaml\ntrain: {rate: 0.25}\n")
    config = load_config(Settings, write(tmp_path / "own.yaml", "extends: middle.yaml\nseed: 2\n"))
    assert (config.seed, config.train.rate, config.train.mixed) == (2, 0.25, True)


def test_a_circle_of_extends_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "other.yaml", "extends: own.yaml\n")
    assert "extends itself" in refuse(tmp_path, "extends: other.yaml\n")


def test_overrides_stand_above_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "own.yaml", "seed: 1\ntrain: {rate: 0.5}\n")
    words = ["--train.rate=1e-2", "--train.mixed", "--model.resolutions", "[16, 32]", "--seed", "-3"]
    config = load_config(Settings, path, words)
    assert (config.train.rate, config.train.mixed, config.seed) == (0.01, True, -3)
    assert config.model.resolutions == (16, 32)


def test_overrides_keep_words_that_look_like_something_else(tmp_path: Path) -> None:
    path = write(tmp_path / "own.yaml", "folder: somewhere\n")
    words = ["--model.speech", "off", "--folder", "null", "--name=2024", "--train.mixed", "false"]
    config = load_config(Settings, path, words)
    assert (config.model.speech, config.folder, config.name, config.train.mixed) == (
        "off",
        None,
        "2024",
        False,
    )


def test_dashes_and_underscores_are_the_same_in_overrides() -> None:
    assert parse_overrides(["--train.batch-size", "4"]) == {"train": {"batch_size": "4"}}


@pytest.mark.parametrize("words", [["4"], ["--"], ["--model.width", "[1, 2"], ["--seed", "1", "--seed.x", "2"]])
def test_broken_overrides_are_refused(words: list[str]) -> None:
    with pytest.raises(UserError):
        parse_overrides(words)


def test_unknown_names_are_answered_with_the_nearest(tmp_path: Path) -> None:
    message = refuse(tmp_path, "train: {rat: 1}\n")
    assert "own.yaml: unknown setting 'train.rat'. Did you mean 'train.rate'?" in message
    assert "Did you mean 'train.model.width'?" in refuse(tmp_path, "train: {width: 1}\n")
    message = refuse(tmp_path, "", "--trian.rate", "1")
    assert message == "command line: unknown setting 'trian.rate'. Did you mean 'train.rate'?"
    assert "train --help" in refuse(tmp_path, "zzzzz: 1\n")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model: {width: many}\n", "'model.width': input should be a valid integer"),
        ("model: {width: 1.5}\n", "but is 1.5"),
        ("model: {resolutions: [1, x]}\n", "'model.resolutions': input should be a valid integer"),
        ("model: {speech: song}\n", "'mel' or 'off', but is 'song'"),
        ("train: 3\n", "'train': should be a section of settings"),
        ("train: {rate: -1.0}\n", "'train': rate must be above 0. Fix"),
        ("folder: [a]\n", "'folder': input is not a valid path"),
        ("- 1\n", "holds no settings"),
        ("seed: [\n", "is not valid YAML"),
    ],
)
def test_wrong_types_are_refused_with_name_file_and_value(tmp_path: Path, text: str, expected: str) -> None:
    message = refuse(tmp_path, text)
    assert expected in message and "own.yaml" in message and "\n" not in message


def test_a_wrong_type_names_the_layer_that_holds_it(tmp_path: Path) -> None:
    write(tmp_path / "base.yaml", "model: {width: many}\n")
    assert "base.yaml" in refuse(tmp_path, "extends: base.yaml\nmodel: {speech: mel}\n")
    assert refuse(tmp_path, "seed: 1\n", "--seed", "one").startswith("command line: 'seed'")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such settings file"):
        find_config("no_such_settings.yaml")
    with pytest.raises(UserError, match="no such settings file"):
        load_config(Settings, tmp_path / "nothing.yaml")


def test_saved_settings_load_back_equal(tmp_path: Path) -> None:
    config = load_config(Settings, write(tmp_path / "own.yaml", "folder: a b\nmodel: {resolutions: [2]}\n"))
    save_config(tmp_path / "saved.yaml", config)
    assert load_config(Settings, tmp_path / "saved.yaml") == config
    assert from_dict(Settings, to_dict(config)) == config
    assert to_dict(config)["model"] == {"width": 32, "resolutions": [2], "speech": "mel"}


def test_every_setting_has_a_dotted_name() -> None:
    names = dotted_names(Settings)
    assert names["train.model.width"] is int
    assert [name for name in names if name.startswith("train.")][:2] == ["train.rate", "train.mixed"]


def test_the_nearest_name_prefers_the_same_leaf() -> None:
    assert nearest_name("data.rate", ["data.rates", "train.rate"]) == "train.rate"
    assert nearest_name("xyzzy", ["data.root", "train.rate"]) is None


def test_help_lists_name_type_value_and_meaning(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        show_options(Settings, Settings(seed=7), prog="s3dnerf train")
    text = " ".join(capsys.readouterr().out.split())
    assert left.value.code == 0
    assert "--model.width INT Channels of one plane. (default: 32)" in text
    assert "Learning rate. (default: 0.001)" in text
    assert "--seed INT" in text and "(default: 7)" in text
