"""Checkpoints: everything is restored, incomplete ones are ignored, the oldest are deleted."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from s3dnerf.errors import UserError
from s3dnerf.models.s3dnerf.s3dnerf import S3DNeRF
from s3dnerf.training.adversarial import Adversary
from s3dnerf.training.checkpoint import TrainingState, drop_old, find_latest, load_checkpoint, save_checkpoint
from s3dnerf.training.config import S3DNeRFConfig
from s3dnerf.training.s3dnerf import make_model, make_optimizer


@pytest.fixture
def make_state(load_smoke: Callable[..., S3DNeRFConfig]) -> Callable[..., TrainingState]:
    """Makes a model, a different model as its average, a discriminator, and optimizers after one step."""

    def make(seed: int, *words: str) -> TrainingState:
        config = load_smoke(*words)
        torch.manual_seed(seed)
        model, average = S3DNeRF(config.model), S3DNeRF(config.model)
        adversary = Adversary(config.adversarial, config.model.image_size)
        optimizers = {"optimizer": make_optimizer(model, config.train), "adversary_optimizer": adversary.optimizer}
        for module, optimizer in zip((model, adversary), optimizers.values(), strict=True):
            sum(parameter.square().sum() for parameter in module.parameters()).backward()
            optimizer.step()
        return TrainingState(average, {"model": model, "adversary": adversary}, optimizers)

    return make


def test_everything_comes_back(make_state: Callable[..., TrainingState], tmp_path: Path) -> None:
    saved, other = make_state(0), make_state(1)
    save_checkpoint(tmp_path / "step_0000007", 7, saved)
    assert load_checkpoint(tmp_path / "step_0000007", other) == 7
    modules = [{"average": one.average, **one.modules} for one in (saved, other)]
    for name, module in modules[0].items():
        there = modules[1][name].state_dict()
        assert all(torch.equal(value, there[key]) for key, value in module.state_dict().items())
    for name, least in (("optimizer", 50), ("adversary_optimizer", 30)):
        state, restored = (one.optimizers[name].state_dict()["state"] for one in (saved, other))
        assert state.keys() == restored.keys() and len(state) > least
        for index, entry in state.items():
            for key, value in entry.items():
                assert torch.equal(torch.as_tensor(value), torch.as_tensor(restored[index][key]))


def test_the_model_folder_holds_the_average(make_state: Callable[..., TrainingState], tmp_path: Path) -> None:
    state = make_state(0)
    save_checkpoint(tmp_path / "step_0000001", 1, state)
    loaded = S3DNeRF.from_pretrained(str(tmp_path / "step_0000001" / "model"))
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in state.average.state_dict().items())


def test_files_are_safetensors_and_json_only(make_state: Callable[..., TrainingState], tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "step_0000001", 1, make_state(0))
    suffixes = {path.suffix for path in tmp_path.rglob("*") if path.is_file()}
    assert suffixes <= {".safetensors", ".json", ".md"}
    assert json.loads((tmp_path / "step_0000001" / "training.json").read_text()) == {"step": 1}
    assert any(name.startswith("optimizer.") for name in load_file(tmp_path / "step_0000001" / "training.safetensors"))


def test_saving_again_replaces_the_checkpoint(make_state: Callable[..., TrainingState], tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "step_0000001", 1, make_state(0))
    state, other = make_state(1), make_state(2)
    save_checkpoint(tmp_path / "step_0000001", 1, state)
    load_checkpoint(tmp_path / "step_0000001", other)
    for name, module in state.modules.items():
        assert torch.equal(next(other.modules[name].parameters()), next(module.parameters()))
    assert [path.name for path in tmp_path.iterdir()] == ["step_0000001"]


def test_a_checkpoint_of_another_model_size_is_refused(
    make_state: Callable[..., TrainingState], tmp_path: Path
) -> None:
    save_checkpoint(tmp_path / "step_0000001", 1, make_state(0))
    larger = make_state(0, "--model.radiance.hidden", "24")
    with pytest.raises(UserError, match=r"step_0000001: cannot be resumed.*size mismatch") as raised:
        load_checkpoint(tmp_path / "step_0000001", larger)
    assert len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize("damage", ["no numbers", "broken numbers", "other numbers", "no tensors", "cut tensors"])
def test_a_damaged_checkpoint_is_refused(make_state: Callable[..., TrainingState], tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "step_0000001"
    state = make_state(0)
    save_checkpoint(folder, 1, state)
    numbers, tensors = folder / "training.json", folder / "training.safetensors"
    if damage == "no numbers":
        numbers.unlink()
    elif damage == "broken numbers":
        numbers.write_text("{")
    elif damage == "other numbers":
        numbers.write_text("[]")
    elif damage == "no tensors":
        tensors.unlink()
    else:
        tensors.write_bytes(tensors.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"damaged and cannot be resumed.*delete it"):
        load_checkpoint(folder, state)


def test_an_optimizer_of_other_parameters_is_refused(
    make_state: Callable[..., TrainingState], load_smoke: Callable[..., S3DNeRFConfig], tmp_path: Path
) -> None:
    save_checkpoint(tmp_path / "step_0000001", 1, make_state(0))
    for part in ("audio_encoder", "radiance"):
        config = load_smoke("--train.freeze", f"[{part}]")
        model = make_model(config.model, config.train)
        optimizers = {"optimizer": make_optimizer(model, config.train)}
        frozen = TrainingState(model, {"model": model}, optimizers)
        with pytest.raises(UserError, match=r"cannot be resumed with these settings.*other parameters"):
            load_checkpoint(tmp_path / "step_0000001", frozen)


def test_the_latest_is_the_one_with_most_steps_and_complete(tmp_path: Path) -> None:
    assert find_latest(tmp_path) is None
    for name in ("step_0000900", "step_0010000", "step_0002000", ".step_0020000.part", "step_0030000.copy", "step_old"):
        (tmp_path / name).mkdir()
    assert find_latest(tmp_path) == tmp_path / "step_0010000"
    (tmp_path / "step_12345678").mkdir()
    assert find_latest(tmp_path) == tmp_path / "step_12345678"


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (100, 200, 300, 1000):
        (tmp_path / f"step_{step:07d}").mkdir()
    for name in ("step_0000050.copy", "step_best"):
        (tmp_path / name).mkdir()
    drop_old(tmp_path, keep=2)
    kept = ["step_0000050.copy", "step_0000300", "step_0001000", "step_best"]
    assert sorted(path.name for path in tmp_path.iterdir()) == kept
