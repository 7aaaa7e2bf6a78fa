"""A training step never waits for the GPU: counted on a GPU, and on the CPU with tensors that have no values."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from s3dnerf.errors import UserError
from s3dnerf.ops.constant import constant, select_rows
from s3dnerf.optimization import DivergenceCheck, ExponentialMovingAverage, clip_gradient
from s3dnerf.structures import map_tensors
from s3dnerf.training.config import S3DNeRFConfig
from s3dnerf.training.s3dnerf import S3DNeRFTrainer

WORDS = ("--adversarial.start", "0", "--train.speech_from", "0", "--train.motion_steps", "2", "--train.steps", "20")
WORDS += ("--model.audio.features", "moonshine", "--model.audio.context", "7680")
STEPS = {"motion": 0, "images and motion, with R1 penalty": 8, "a run of frames": 3}


@pytest.fixture
def config(load_smoke: Callable[..., S3DNeRFConfig], drawn_clips: Path) -> S3DNeRFConfig:
    return load_smoke("--data.root", str(drawn_clips), *WORDS)


class CopyCounter(TorchDispatchMode):
    """Lists the operators that take tensors from the CPU to the device or back."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device, self.found = device, []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        given, results = (
            [x for x in tree_leaves(part) if isinstance(x, torch.Tensor)] for part in ((args, kwargs), result)
        )
        # A 0-d tensor on the CPU is passed to a kernel as a number.
        arrays, inputs, outputs = (
            {x.device.type for x in part} for part in ([x for x in given if x.dim() > 0], given, results)
        )
        if {"cpu", self.device} <= arrays or (inputs and outputs and inputs.isdisjoint(outputs)):
            self.found.append(str(function))
        return result


def use_meta(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the device "meta" stand for a GPU. Its tensors have no values, so reading one is an error."""

    def draw(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        return lambda *shape, generator, device: function(*shape, device=device)

    for name in ("rand", "randn"):
        monkeypatch.setattr(torch, name, draw(getattr(torch, name)))
    generator = SimpleNamespace(device=torch.device("meta"))
    monkeypatch.setattr("s3dnerf.training.loop.seed_step", lambda *args: generator)
    # PyTorch has no autocast and no foreach kernels for this device.
    monkeypatch.setattr(torch, "autocast", lambda *args, **options: contextlib.nullcontext())
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *args: False)
    clip = torch.nn.utils.clip_grad_norm_
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda parameters, norm, foreach: clip(parameters, norm))


def move_trainer(trainer: S3DNeRFTrainer) -> None:
    """Move the networks of a trainer, which was made on the CPU, to the device "meta"."""
    trainer.device = torch.device("meta")
    for module in (trainer.model, trainer.average.module, trainer.face_mesh, trainer.sync_discriminator):
        module.to("meta")
    trainer.adversary.to("meta")
    trainer.optimizer = trainer.make_optimizer()
    trainer.adversary.optimizer = torch.optim.Adam(trainer.adversary.parameters(), 1e-3, foreach=True)
    # The first update copies the weights.
    trainer.average.n_averaged += 1


@pytest.mark.slow
def test_a_step_neither_copies_nor_reads(
    config: S3DNeRFConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = S3DNeRFTrainer(config, tmp_path)
    move_trainer(trainer)
    batches = {step: map_tensors(trainer.data[step], lambda x: x.to("meta")) for step in STEPS.values()}
    use_meta(monkeypatch)
    for kind, step in STEPS.items():
        trainer.step, batch = step, batches[step]
        trainer.update([batch])
        with CopyCounter("meta") as counter:
            metrics = trainer.update([batch])
        assert not counter.found, (kind, counter.found)
        assert ("matching" in metrics) == ("sync" in metrics or "images" in kind)
        assert ("sync" in metrics) == ("run" in kind)


def test_the_counter_sees_copies_and_the_device_refuses_to_be_read() -> None:
    values, rows = torch.ones(4, 3, device="meta"), torch.tensor([0, 2])
    with CopyCounter("meta") as counter:
        _ = values[:, rows]
        torch.ones(()).to("meta")
        _ = torch.tensor(2.0) * values
    assert len(counter.found) == 2
    with pytest.raises((RuntimeError, NotImplementedError)):
        values.sum().item()
    with pytest.raises((RuntimeError, NotImplementedError)):
        values.unique()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("kind", STEPS)
def test_a_step_never_waits_for_the_gpu(config: S3DNeRFConfig, tmp_path: Path, kind: str) -> None:
    config.train.device, config.train.precision = "cuda", "auto"
    trainer = S3DNeRFTrainer(config, tmp_path)
    trainer.step = STEPS[kind]
    batch = trainer.data[trainer.step].pin_memory()
    for _ in range(3):
        trainer.update([batch])
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        trainer.update([batch])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    trainer.divergence.require_finite()


def test_constants_are_copied_once_and_can_be_saved_for_a_backward_pass() -> None:
    numbers, device = (1.0, 2.0, 4.0), torch.device("cpu")
    with torch.inference_mode():
        first = constant(numbers, device, torch.float64)
    assert first.tolist() == [1.0, 2.0, 4.0] and first.dtype == torch.float64
    assert constant(numbers, device, torch.float64) is first
    assert constant(numbers, device, torch.float32).dtype == torch.float32
    x = torch.ones(3, dtype=torch.float64, requires_grad=True)
    (first * x).sum().backward()
    assert x.grad.tolist() == [1.0, 2.0, 4.0]


def test_rows_are_those_of_indexing() -> None:
    points, rows = torch.arange(24.0).view(2, 4, 3), torch.tensor([3, 1])
    assert torch.equal(select_rows(points, rows), points[:, [3, 1]])


def test_the_average_is_exponential_and_copies_buffers() -> None:
    torch.manual_seed(0)
    steps = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    average, decay = ExponentialMovingAverage(steps, 0.75), 0.75
    expected = [parameter.detach().clone() for parameter in steps.parameters()]
    for step in range(4):
        with torch.no_grad():
            for parameter in steps.parameters():
                parameter.add_(step + 1.0)
        steps[1].running_mean.fill_(float(step))
        average.update_parameters(steps)
        current = [parameter.detach() for parameter in steps.parameters()]
        share = decay if step > 0 else 0.0
        expected = [share * old + (1.0 - share) * new for old, new in zip(expected, current, strict=True)]
    for parameter, value in zip(average.module.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.detach(), value)
    assert average.module[1].running_mean.tolist() == [3.0, 3.0] and int(average.n_averaged) == 4


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_divergence_is_reported_with_its_first_step(bad: float) -> None:
    check = DivergenceCheck()
    check.require_finite()
    # Norms on a GPU; any device but the CPU is watched in this way.
    norms = [torch.tensor(value) for value in (1.0, bad, 2.0, bad)]
    for step, norm in enumerate(norms):
        check.note(norm, step)
    with pytest.raises(UserError, match="step 2: training has diverged: the gradient"):
        check.require_finite()
    healthy = DivergenceCheck()
    healthy.note(torch.tensor(3.0), 0)
    healthy.require_finite()


def test_on_the_cpu_divergence_is_reported_before_the_weights_change() -> None:
    model = torch.nn.Linear(2, 2)
    model.weight.grad = torch.full((2, 2), math.nan)
    with pytest.raises(UserError, match="step 5"):
        DivergenceCheck().watch(clip_gradient(model, 1.0), 4)
