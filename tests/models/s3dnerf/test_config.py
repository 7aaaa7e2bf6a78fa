"""Settings of the model: architecture, inference, and files of earlier versions."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

import s3dnerf
from s3dnerf.errors import UserError
from s3dnerf.models.s3dnerf.config import PARAMETER_ALIASES, RenderConfig, read_configs, rename_parameter
from s3dnerf.models.s3dnerf.s3dnerf import S3DNeRF

SHIPPED = Path(s3dnerf.__file__).parent / "weights" / "base"
OLD_CONFIG = Path(__file__).parent / "config_0.1.json"
"""``config.json`` of the shipped weights as version 0.1 wrote it."""


def read(path: Path) -> dict:
    return json.loads(path.read_text("utf-8"))


def test_a_config_of_version_0_1_means_the_same_as_todays() -> None:
    old = read_configs(read(OLD_CONFIG))
    assert old == read_configs(read(SHIPPED / "config.json"), read(SHIPPED / "render_config.json"))
    assert old[1] == RenderConfig(1.15, 2.0, 0.7, 0.6, 0.9)


def test_shipped_weights_load_with_a_config_of_version_0_1(tmp_path: Path) -> None:
    shutil.copy(SHIPPED / "model.safetensors", tmp_path)
    shutil.copy(OLD_CONFIG, tmp_path / "config.json")
    old, new = S3DNeRF.load(tmp_path), S3DNeRF.load(SHIPPED)
    assert (old.config, old.render_config) == (new.config, new.render_config)
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
