"""Saved models: loaded as they were saved, or refused with an error that names the problem."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from s3dnerf.errors import UserError
from s3dnerf.models.pretrained import load_model
from s3dnerf.models.s3dnerf.config import ModelConfig
from s3dnerf.models.s3dnerf.s3dnerf import S3DNeRF
from s3dnerf.models.sync_discriminator import SyncDiscriminator, SyncDiscriminatorConfig, load_discriminator
from s3dnerf.training.config import S3DNeRFConfig


@pytest.fixture(scope="module")
def saved(load_smoke: Callable[..., S3DNeRFConfig], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    torch.manual_seed(0)
    S3DNeRF(load_smoke().model).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """Return a copy of a saved model to damage."""
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((saved / name).read_bytes())
    return tmp_path


def refuse(folder: Path) -> str:
    with pytest.raises(UserError) as raised:
        load_model(S3DNeRF, ModelConfig, folder)
    line = str(raised.value)
    assert str(folder) in line and len(line.splitlines()) == 1
    return line


def test_a_model_is_loaded_as_it_was_saved(
    folder: Path, load_smoke: Callable[..., S3DNeRFConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    model = load_model(S3DNeRF, ModelConfig, folder)
    assert model.config == load_smoke().model
    stored = load_file(folder / "model.safetensors")
    assert all(torch.equal(value, stored[name]) for name, value in model.state_dict().items())
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (None, "config.json"),
        ("", "config.json"),
        ("{", "config.json"),
        ("[1, 2]", "config.json"),
        ("null", "config.json"),
        ("\0", "config.json"),
        ('{"ray_sise": 16}', "ray_size"),
        ('{"ray_size": 0}', "ray_size"),
        ('{"ray_size": "many"}', "ray_size"),
        ('{"deformation": {"heads": 5}}', "heads"),
        ('{"deformation": 5}', "deformation"),
        ("[" * 100_000, "config.json"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_settings_that_are_wrong_are_refused(text: str | None, named: str, folder: Path) -> None:
    if text is None:
        (folder / "config.json").unlink()
    else:
        (folder / "config.json").write_text(text, "utf-8")
    assert named in refuse(folder)


def test_weights_can_be_read_by_whoever_reads_the_settings(saved: Path) -> None:
    assert (saved / "model.safetensors").stat().st_mode == (saved / "config.json").stat().st_mode


def test_weights_that_are_missing_or_broken_are_refused(folder: Path) -> None:
    path = folder / "model.safetensors"
    content = path.read_bytes()
    for damaged in (b"", content[:7], content[:5000], content[:-4], b"\xff" * 5000):
        path.write_bytes(damaged)
        assert "model.safetensors" in refuse(folder)
    path.unlink()
    assert "model.safetensors" in refuse(folder)
    path.mkdir()
    assert "model.safetensors" in refuse(folder)


def test_weights_of_another_model_are_refused_by_tensor(folder: Path) -> None:
    path, name = folder / "model.safetensors", "radiance_field.network.0.bias"
    tensors = load_file(path)
    for changed, named in (
        ({key: value for key, value in tensors.items() if key != name}, f"lacks {name}"),
        ({**tensors, "surplus": torch.zeros(1)}, "surplus"),
        ({**tensors, name: torch.zeros(3)}, f"{name} is [3] instead of [16]"),
        ({**tensors, name: torch.full_like(tensors[name], torch.nan)}, name),
        ({**tensors, name: torch.full_like(tensors[name], torch.inf)}, name),
    ):
        save_file(changed, path)
        assert named in refuse(folder)


def test_settings_of_other_sizes_are_refused_by_tensor(folder: Path) -> None:
    tree = json.loads((folder / "config.json").read_text("utf-8"))
    tree["radiance"]["hidden"] += 8
    (folder / "config.json").write_text(json.dumps(tree))
    assert "radiance_field.network" in refuse(folder)


def test_a_discriminator_that_is_wrong_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config\.json: unknown setting"):
        load_discriminator(folder)
    with pytest.raises(UserError, match="missing"):
        load_discriminator(tmp_path / "missing")
    with pytest.raises(UserError, match=r"'widths'|multiples of 8"):
        SyncDiscriminator(SyncDiscriminatorConfig(widths=(16, 20)))
