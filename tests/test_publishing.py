"""Uploads of models to the hub, which a double of its client takes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import pytest
import yaml

from s3dnerf import cli
from s3dnerf.models.s3dnerf.s3dnerf import S3DNeRF
from s3dnerf.training.config import S3DNeRFConfig


class Hub:
    """Takes what a client uploads."""

    def __init__(self) -> None:
        self.repositories: dict[str, bool | None] = {}
        self.files: dict[str, bytes] = {}
        self.error: Exception | None = None

    def __call__(self, **options: object) -> Hub:
        return self

    def create_repo(self, repo: str, *, private: bool, exist_ok: bool) -> str:
        if self.error is not None:
            raise self.error
        self.repositories[repo] = private
        return f"https://hub/{repo}"

    def create_commit(self, repo: str, operations: list, *, commit_message: str) -> None:
        assert repo in self.repositories and commit_message
        for operation in operations:
            with operation.as_file() as file:
                self.files[operation.path_in_repo] = file.read()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    double = Hub()
    monkeypatch.setattr(huggingface_hub, "HfApi", double)
    return double


@pytest.fixture
def folder(load_smoke: Callable[..., S3DNeRFConfig], tmp_path: Path) -> Path:
    """A training folder with a model and other files."""
    S3DNeRF(load_smoke().model).save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "notes.txt").write_text("secret")
    return tmp_path


def test_a_model_is_uploaded_with_a_card_from_the_template(
    hub: Hub, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["push", "ann/small", "--model", str(folder), "--private", "--license", "mit"]) == 0
    assert capsys.readouterr().out == "https://hub/ann/small\n"
    assert hub.repositories == {"ann/small": True}
    assert hub.files.keys() == {"config.json", "render_config.json", "model.safetensors", "README.md"}
    card = hub.files.pop("README.md").decode()
    header = yaml.safe_load(card.split("---\n")[1])
    assert (header["license"], header["library_name"]) == ("mit", "s3dnerf")
    assert "64 x 64" in card and 'from_pretrained("ann/small")' in card and "$" not in card
    assert str(tmp_path) not in card
    copied = tmp_path / "copied"
    copied.mkdir()
    for name, content in hub.files.items():
        (copied / name).write_bytes(content)
    assert S3DNeRF.load(copied).config == S3DNeRF.load(folder / "model").config


def test_a_card_of_the_folder_is_kept(hub: Hub, folder: Path) -> None:
    (folder / "model" / "README.md").write_text("# Mine\n")
    assert cli.main(["push", "ann/small", "--model", str(folder / "model")]) == 0
    assert hub.files["README.md"] == b"# Mine\n" and hub.repositories == {"ann/small": False}


def test_what_cannot_be_uploaded_is_refused_in_one_line(
    hub: Hub, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def complain(repo: str, path: Path) -> str:
        assert cli.main(["push", repo, "--model", str(path)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    assert "form user/model" in complain("small", folder)
    assert "is no folder" in complain("ann/small", tmp_path / "none")
    (tmp_path / "empty").mkdir()
    assert "holds no model" in complain("ann/small", tmp_path / "empty")
    assert not hub.repositories
    hub.error = huggingface_hub.errors.LocalTokenNotFoundError("no token\nmore")
    assert "hf auth login" in complain("ann/small", folder)
    hub.error = ConnectionError("unreachable")
    assert "unreachable" in complain("ann/small", folder)
    assert not hub.files
