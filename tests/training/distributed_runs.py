"""Training runs of test_processes.py, in one process or in each of several: ``distributed_runs.py NAME SETTINGS.json``.

The first argument is a function of this file; its keyword arguments are in the file.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn

from s3dnerf import cli
from s3dnerf.interruption import Interrupted, raise_on_signals
from s3dnerf.training.loop import LoopConfig, TrainingLoop
from s3dnerf.training.processes import leave_processes


class Lines(nn.Module, PyTorchModelHubMixin):
    """Two layers with dropout, of which batches use one or both."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.dropout = nn.Linear(8, 8), nn.Linear(8, 8), nn.Dropout(0.5)
        self.unused = nn.Linear(1, 1)

    def forward(self, x: Tensor, both: bool) -> Tensor:
        y = self.dropout(self.first(x))
        return self.second(y) if both else y


class LinesTrainer(TrainingLoop[Lines]):
    """A recipe in which a batch is its number; a process interrupts itself or waits at some step."""

    def __init__(
        self, folder: str, accumulated: int = 1, steps: int = 8, interrupt: int = -1, pause: float = 0.0
    ) -> None:
        config = LoopConfig(steps, 1e-2, warmup=2, gradient_accumulation_steps=accumulated, device="cpu", save_every=3)
        super().__init__(config, Path(folder), seed=0)
        self.interrupt, self.pause = interrupt, pause

    def make_model(self) -> Lines:
        return Lines()

    def make_optimizer(self) -> torch.optim.Optimizer:
        # Parameters without a gradient keep their moments, so these tell whether gradients are zero or missing.
        return torch.optim.AdamW(self.model.parameters(), weight_decay=0.1)

    def initialize(self) -> None:
        nn.init.constant_(self.model.second.bias, 0.25)
        self.averaged_model.load_state_dict(self.model.state_dict())

    def iterate_batches(self) -> Iterator[list[int]]:
        numbers, accumulated = self.batch_numbers, self.loop_config.gradient_accumulation_steps
        for first in range(0, len(numbers), accumulated):
            yield list(numbers[first : first + accumulated])

    def compute_loss(self, batch: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor | float]]:
        x, target = torch.randn(2, 4, 8, generator=generator)
        # One batch of a step uses the second layer, or none.
        loss = (self.model(x, both=batch % 4 == 1) - target).square().mean()
        time.sleep(self.pause)
        return loss, {"loss": loss.detach()}

    def finish_step(self) -> None:
        if self.step + 1 == self.interrupt and self.processes.index == self.processes.count - 1:
            os.kill(os.getpid(), signal.SIGTERM)


def record_losses(trainer: TrainingLoop[Any]) -> list[dict[str, float]]:
    """Record the metrics of every step of a run, means over all processes."""
    recorded: list[dict[str, float]] = []
    update = trainer.update

    def note(batches: list[Any]) -> Any:
        metrics = update(batches)
        found = trainer.processes.gather({name: float(value) for name, value in metrics.items()})
        names = {name for part in found for name in part}
        means = {name: [part[name] for part in found if name in part] for name in names}
        recorded.append({name: sum(values) / len(values) for name, values in means.items()})
        return metrics

    trainer.update = note  # type: ignore[method-assign]
    return recorded


def train_s3dnerf(folder: str, words: list[str], accumulated: int = 1) -> list[dict[str, float]]:
    from s3dnerf.config import load_config
    from s3dnerf.training import S3DNeRFConfig
    from s3dnerf.training.s3dnerf import S3DNeRFTrainer

    accumulation = ["--train.gradient_accumulation_steps", str(accumulated)]
    config = load_config(S3DNeRFConfig, "smoke.yaml", [*words, *accumulation])
    trainer = S3DNeRFTrainer(config, Path(folder))
    losses = record_losses(trainer)
    trainer.run(config)
    return losses


def train_sync(folder: str, words: list[str], accumulated: int = 1) -> list[dict[str, float]]:
    from s3dnerf.config import load_config
    from s3dnerf.training.sync import SyncConfig, SyncTrainer, read_clips

    accumulation = ["--train.gradient_accumulation_steps", str(accumulated)]
    config = load_config(SyncConfig, "sync.yaml", [*words, *accumulation])
    trainer = SyncTrainer(config, Path(folder), read_clips(config.data, config.model, config.seed))
    losses = record_losses(trainer)
    trainer.run(config)
    return losses


def train_lines(folder: str, resume: bool = False, **settings: Any) -> list[dict[str, float]]:
    trainer = LinesTrainer(folder, **settings)
    losses = record_losses(trainer)
    try:
        with raise_on_signals():
            trainer.run(trainer.loop_config, resume)
    except Interrupted as interruption:
        losses.append({"signal": interruption.number})
    return losses


def run_all(runs: dict[str, tuple[str, dict[str, Any]]], out: str) -> None:
    """Make several runs and write the losses of each process and run."""
    torch.set_num_threads(1)
    with leave_processes():
        losses = {name: globals()[function](**settings) for name, (function, settings) in runs.items()}
        Path(f"{out}.{os.environ['RANK']}").write_text(json.dumps(losses))


def run_command(**settings: Any) -> None:
    """Train as a command does, with its messages and exit codes."""

    def train() -> None:
        with leave_processes():
            trainer = LinesTrainer(**settings)
            trainer.run(trainer.loop_config)

    sys.exit(cli.report_errors(train))


if __name__ == "__main__":
    globals()[sys.argv[1]](**json.loads(Path(sys.argv[2]).read_text()))
