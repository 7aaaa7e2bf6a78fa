"""Settings of the model: architecture, inference, and files of earlier versions."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import s3dnerf
from s3dnerf.errors import UserError
from s3dnerf.models.s3dnerf.config import PARAMETER_ALIASES, RenderConfig, read_configs, rename_parameter
from s3dnerf.models.s3dnerf.s3dnerf import S3DNeRF

SHIPPED = Path(s3dnerf.__file__).parent / "weights" / "base"
OLD_CONFIG = Path(__file__).parent / "config_0.1.json"
"""``config.json`` as version 0.1 wrote it, with the weights shipped then."""


def read(path: Path) -> dict:
    return json.loads(path.read_text("utf-8"))


def read_old() -> dict:
    """Return a config of version 0.1 with the samples, super-resolution network and motion scale that ship today."""
    old, today = read(OLD_CONFIG), read(SHIPPED / "config.json")
    network = {**old["super_resolution"], **today["super_resolution"], "kept_detail": 1.0}
    deformation = {**old["deformation"], "articulation": read(SHIPPED / "render_config.json")["motion_scale"]}
    return {**old, "samples": today["samples"], "super_resolution": network, "deformation": deformation}


def test_a_config_of_version_0_1_means_the_same_as_todays() -> None:
    today, render = read_configs(read(SHIPPED / "config.json"), read(SHIPPED / "render_config.json"))
    # Models of that version cannot generate eyes.
    assert read_configs(read_old()) == (replace(today, eye_interior=False), render)
    assert read_configs(read(OLD_CONFIG))[1] == RenderConfig(1.15, 2.0, 0.7, 0.6, 0.9)


def test_weights_of_version_0_1_load(tmp_path: Path) -> None:
    stored = load_file(SHIPPED / "model.safetensors")
    weights = {name: value for name, value in stored.items() if not name.startswith("eye_interior.")}
    before = {now: old for old, now in PARAMETER_ALIASES.items()}

    def rename(name: str) -> str:
        prefix = next((now for now in before if name.startswith(now)), "")
        return before.get(prefix, "") + name.removeprefix(prefix)

    renamed = {rename(name): value for name, value in weights.items()}
    assert "deformation_field.warp.to_shares.bias" in renamed and renamed.keys() != weights.keys()
    save_file(renamed, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(read_old()))
    old, new = S3DNeRF.load(tmp_path), S3DNeRF.load(SHIPPED)
    assert (old.config, old.render_config) == (replace(new.config, eye_interior=False), new.render_config)
    assert all(torch.equal(value, new.state_dict()[name]) for name, value in old.state_dict().items())


def test_unknown_names_are_still_refused() -> None:
    with pytest.raises(UserError, match="articulatoin"):
        read_configs({"deformation": {"articulatoin": 1.0}})
    with pytest.raises(UserError, match="render_config.json.*motion_scale"):
        read_configs({}, {"motion_scale": -1.0})


def test_parameters_of_earlier_versions_have_names_of_today() -> None:
    assert rename_parameter("deformation_field.warp.to_shares.bias") == "deformation_field.network.region_head.bias"
    assert rename_parameter("deformation_field.warp.grid.table") == "deformation_field.network.grid.table"
    assert rename_parameter("appearance_encoder.stem.weight") == "appearance_encoder.stem.weight"
    assert not any(name.startswith(tuple(PARAMETER_ALIASES)) for name in S3DNeRF.load(SHIPPED).state_dict())


def test_settings_of_inference_are_saved_beside_the_weights(tmp_path: Path) -> None:
    model = S3DNeRF.load(SHIPPED)
    model.render_config.motion_scale = 1.3
    model.save_pretrained(tmp_path)
    for loaded in (S3DNeRF.load(tmp_path), S3DNeRF.from_pretrained(str(tmp_path))):
        assert loaded.render_config == model.render_config and loaded.config == model.config
