"""Compiled parts of a training step: each is one graph, and losses and gradients stay what they are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from s3dnerf.models.s3dnerf.s3dnerf import S3DNeRF
from s3dnerf.optimization import seed_step
from s3dnerf.training.compilation import compile_parts, list_compiled_parts
from s3dnerf.training.config import S3DNeRFConfig
from s3dnerf.training.losses import weighted_sum
from s3dnerf.training.s3dnerf import S3DNeRFTrainer

pytestmark = pytest.mark.slow


def differentiate(trainer: S3DNeRFTrainer, step: int) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """Return the losses and the gradients of a step."""
    trainer.step = step
    trainer.model.zero_grad()
    losses = trainer.compute_losses(trainer.data[step], seed_step(0, step))
    weighted_sum(losses, trainer.config.losses).backward()
    gradients = {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None}
    return {name: value.item() for name, value in losses.items()}, gradients


def test_compiled_parts_have_the_same_losses_and_gradients(
    load_smoke: Callable[..., S3DNeRFConfig], drawn_clips: Path, tmp_path: Path
) -> None:
    words = ("--train.motion_steps", "0", "--train.speech_from", "0", "--train.steps", "20")
    trainer = S3DNeRFTrainer(load_smoke("--data.root", str(drawn_clips), *words), tmp_path)
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    names = list(trainer.model.state_dict())
    before, expected = differentiate(trainer, 0)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    # A part that is not one graph is an error.
    compile_parts(trainer.model, trainer.face_mesh, backend="aot_eager", fullgraph=True)
    losses, gradients = differentiate(trainer, 0)
    assert losses == pytest.approx(before, rel=1e-4, abs=1e-6)
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        # Elements are sums over all pixels, so their rounding errors are relative to the largest of them.
        error = (gradient - expected[name]).abs().max()
        assert error <= 2e-3 * expected[name].abs().max() + 1e-9, name
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= len(list_compiled_parts(trainer.model, None))
    assert list(trainer.model.state_dict()) == names


def test_the_setting_compiles_the_trained_model_and_not_its_average(
    load_smoke: Callable[..., S3DNeRFConfig], drawn_clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **options: compiled.append(self))
    config = load_smoke("--data.root", str(drawn_clips))
    S3DNeRFTrainer(config, tmp_path)
    assert not compiled
    config.train.compile = True
    trainer = S3DNeRFTrainer(config, tmp_path)
    assert compiled == list(list_compiled_parts(trainer.model, trainer.face_mesh).values())
    assert isinstance(trainer.averaged_model, S3DNeRF)
    assert not any(part in compiled for part in trainer.averaged_model.modules())
