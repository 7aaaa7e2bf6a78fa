"""Settings of training: every value of a field either works or is refused in one line that names the field."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest
import torch

from s3dnerf.config import check_config, dotted_names, from_dict, load_config, to_dict
from s3dnerf.data.batch import Batch
from s3dnerf.errors import UserError
from s3dnerf.models.s3dnerf.config import ModelConfig
from s3dnerf.models.s3dnerf.s3dnerf import S3DNeRF
from s3dnerf.training.config import S3DNeRFConfig
from s3dnerf.training.s3dnerf import S3DNeRFTrainer
from s3dnerf.training.sync import SyncConfig

SCHEMAS = (S3DNeRFConfig, SyncConfig)
NOT_FINITE = (float("nan"), float("inf"), float("-inf"))
ODD_VALUES = (-1, 0, 1, 3, -0.5, 0.5, 1e30, 10**30, *NOT_FINITE, True, None, "", "x", [], [1], {}, {"a": 1})
"""Values that a typing error, a script or another program may put into a settings file."""


def list_settings(schema: type) -> dict[str, Any]:
    """Return every setting with its type, without sections."""
    return {name: kind for name, kind in dotted_names(schema).items() if not dataclasses.is_dataclass(kind)}


def nest(name: str, value: Any) -> dict[str, Any]:
    """Return a tree with one setting."""
    for part in reversed(name.split(".")):
        value = {part: value}
    return value


SETTINGS = [(schema, name) for schema in SCHEMAS for name in list_settings(schema)]


def test_there_are_as_many_settings_as_documented() -> None:
    assert [len(list_settings(schema)) for schema in SCHEMAS] == [69, 40]


@pytest.mark.parametrize(("schema", "name"), SETTINGS, ids=[f"{schema.__name__}.{name}" for schema, name in SETTINGS])
def test_any_value_is_taken_or_refused_by_name(schema: type, name: str) -> None:
    accepted = 0
    for value in ODD_VALUES:
        try:
            config = from_dict(schema, nest(name, value), "own.yaml")
        except UserError as error:
            line = str(error)
            assert line.startswith("own.yaml: ") and name.rpartition(".")[2] in line
            assert len(line.splitlines()) == 1 and len(line) < 500
        else:
            accepted += 1
            assert from_dict(schema, to_dict(config)) == config
    assert accepted < len(ODD_VALUES)


def test_numbers_are_never_infinite_undefined_or_booleans() -> None:
    for schema, name in SETTINGS:
        kind = dotted_names(schema)[name]
        parts = get_args(kind) or (kind,)
        if set(parts) <= {int, float, Ellipsis}:
            for value in (*NOT_FINITE, True):
                with pytest.raises(UserError):
                    from_dict(schema, nest(name, [value] * len(parts) if get_origin(kind) is tuple else value))


REFUSED = {
    "seed": (-1, 2**63, 1.5),
    "train.steps": (-1, "many"),
    "train.batch_size": (0, -2),
    "train.learning_rate": (0, -1e-3),
    "train.max_grad_norm": (0, -1),
    "train.gradient_accumulation_steps": (0,),
    "train.ema_decay": (1, 1.5, -0.1),
    "train.speech_from": (1.1, -0.1),
    "train.coarse_steps": (-1,),
    "train.warmup": (-1,),
    "train.validate_every": (0,),
    "train.save_every": (0,),
    "train.precision": ("float16",),
    "train.device": ("gpu",),
    "train.reinit": ([""], "audio_encoder"),
    "data.frames": (0,),
    "data.run_every": (-1,),
    "data.sequences": (0,),
    "data.sequence_frames": (1,),
    "data.workers": (-1, 100_000),
    "data.train_split": ("",),
    "data.held_out_people": (-1,),
    "losses.image": (-1,),
    "losses.sync": (-0.1,),
    "adversarial.start": (1.1, -0.1),
    "adversarial.widths": ([], [0], [16, -1]),
    "model.ray_size": (0, 2, 6, 63, 4096),
    "model.samples": (0,),
    "model.appearance.widths": ([16, 40, 64, 0], [16, 40, 64], [1, 2, 3, 4, 5]),
    "model.appearance.plane_channels": (0,),
    "model.audio.window": (0, 7000, 10**6),
    "model.audio.context": (-320, 100),
    "model.audio.width": (0, 12),
    "model.audio.dropout": (1, -0.1),
    "model.audio.pretrained": ("",),
    "model.deformation.token_width": (0, 1, 66),
    "model.deformation.hidden": (0, 1),
    "model.deformation.lattice_size": ([1, 96, 6], [44, 96], [44, 0, 6], [10**6, 2, 2]),
    "model.deformation.grid.levels": (0,),
    "model.deformation.grid.log2_hashmap_size": (0, 40),
    "model.deformation.grid.finest_resolution": (0, 4),
    "model.radiance.hidden": (0,),
    "model.radiance.features": (0,),
    "model.super_resolution.widths": ([0, 64, 64], [32, 64]),
    "model.super_resolution.blocks": ([-1, 1, 2], [1, 0, 2], [1, 1, 0], [1, 1, 65], [1, 1]),
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in REFUSED.items() for value in values], ids=str
)
def test_values_that_cannot_work_are_refused(name: str, value: object) -> None:
    with pytest.raises(UserError) as raised:
        from_dict(S3DNeRFConfig, nest(name, value))
    line = str(raised.value)
    assert name.rpartition(".")[2] in line and len(line.splitlines()) == 1


@pytest.mark.parametrize(
    ("tree", "named"),
    [
        ({"data": {"segment_frames": 10}}, ("data.segment_frames (10)", "train.distance (6)")),
        ({"model": {"shapes": 5}}, ("model.shapes (5)", "6")),
        ({"model": {"widths": [16, 20]}}, ("'model'", "[16, 20]", "8")),
        ({"model": {"frames": 4}}, ("'model'", "frames (4)")),
        ({"model": {"crop": {"width": 2}}}, ("model.crop.width",)),
        ({"train": {"steps": 0}}, ("train.steps",)),
        ({"train": {"temperature": 0}}, ("train.temperature",)),
        ({"data": {"versions": 0}}, ("data.versions",)),
    ],
)
def test_values_of_the_discriminator_that_cannot_work_are_refused(tree: dict, named: tuple[str, ...]) -> None:
    with pytest.raises(UserError) as raised:
        from_dict(SyncConfig, tree)
    assert all(name in str(raised.value) for name in named)


@pytest.mark.parametrize(
    ("tree", "named"),
    [
        ({"train": {"batch_size": 5}}, ("train.batch_size (5)", "data.frames (2)")),
        ({"train": {"steps": 0, "mouth_steps": 0, "eye_steps": 0}}, ("'train'", "steps", "mouth_steps", "eye_steps")),
        ({"model": {"ray_size": 8}}, ("model.ray_size (8)", "multiple of 16", "adversarial.widths")),
        ({"model": {"audio": {"features": "hubert"}}}, ("'model.audio'", "pretrained")),
    ],
)
def test_values_that_do_not_fit_together_are_refused(tree: dict, named: tuple[str, ...]) -> None:
    with pytest.raises(UserError) as raised:
        from_dict(S3DNeRFConfig, tree)
    assert all(name in str(raised.value) for name in named), str(raised.value)


def test_a_message_names_file_setting_value_and_default(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("train: {save_every: 0}\n", "utf-8")
    with pytest.raises(UserError) as raised:
        load_config(S3DNeRFConfig, tmp_path / "own.yaml")
    assert all(
        word in str(raised.value) for word in ("own.yaml", "'train.save_every'", "but is 0", "the default is 500")
    )
    with pytest.raises(UserError, match="command line: 'train.save_every'"):
        load_config(S3DNeRFConfig, tmp_path / "own.yaml", ["--train.save_every", "-1"])


def test_settings_changed_in_python_are_checked_where_they_are_used(
    load_smoke: Callable[..., S3DNeRFConfig], tmp_path: Path
) -> None:
    config = load_smoke()
    check_config(config)
    config.train.steps = -1
    with pytest.raises(UserError, match=r"'train\.steps'"):
        check_config(config)
    with pytest.raises(UserError, match=r"'train\.steps'"):
        S3DNeRFTrainer(config, tmp_path)
    config.model.deformation.token_width = 66
    with pytest.raises(UserError, match=r"'deformation'.*token_width \(66\)"):
        S3DNeRF(config.model)
    with pytest.raises(UserError, match="'samples'"):
        S3DNeRF(ModelConfig(samples=0))


@pytest.mark.parametrize(
    "text",
    [
        "seed: 2024-99-99\n",
        f"seed: {'9' * 5000}\n",
        "[" * 1000,
        "seed: !!python/object:os.system 1\n",
        "seed: \x00\n",
        "? [a, b]\n: 1\n",
        "train: {steps: 1\n",
        "extends: 5\n",
        "extends: ''\n",
        "1: 2\n",
        "null: 2\n",
    ],
    ids=lambda text: text[:20],
)
def test_files_that_are_no_settings_are_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(text, "utf-8")
    with pytest.raises(UserError) as raised:
        load_config(S3DNeRFConfig, tmp_path / "own.yaml")
    assert len(str(raised.value).splitlines()) == 1 and len(str(raised.value)) < 700


SMALLEST = {
    "samples": 1,
    "appearance": {"widths": [1, 1, 1, 1], "plane_channels": 1},
    "audio": {"window": 640, "context": 320, "width": 8, "dropout": 0},
    "deformation": {
        "token_width": 4,
        "hidden": 2,
        "code_width": 1,
        "grid": {"levels": 1, "features": 1, "log2_hashmap_size": 1, "base_resolution": 1, "finest_resolution": 1},
        "lattice_size": [2, 2, 2],
    },
    "radiance": {"hidden": 1, "features": 1},
    "super_resolution": {"widths": [1, 1, 1], "blocks": [0, 1, 1]},
}
"""The lower end of every range."""


def test_the_smallest_model_that_is_allowed_renders(
    load_smoke: Callable[..., S3DNeRFConfig], drawn_batch: Batch
) -> None:
    config = from_dict(ModelConfig, {**SMALLEST, "ray_size": load_smoke().model.ray_size})
    model = S3DNeRF(config).eval()
    frames = drawn_batch.images.frames
    with torch.inference_mode():
        identity = model.encode_identity(drawn_batch.images.sources).repeat(drawn_batch.images.frames_per_source)
        motion = model.encode_speech(identity, frames.speech)
        image = model(identity, motion, frames.eyes, frames.camera).image
    assert image.shape == frames.image.shape and torch.isfinite(image).all()
