"""The training loop that all recipes share.

A recipe derives from :class:`TrainingLoop` and defines its batches and losses. The loop implements the rest: learning
rate schedule, gradient accumulation and clipping, exponential moving average, logging, validation, checkpoints, exact
resuming, and a checkpoint before the program ends on Ctrl-C, SIGTERM or SIGHUP.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from s3dnerf.config import save_config
from s3dnerf.constraints import NonNegativeInt, PositiveFloat, PositiveInt, ShareBelowOne
from s3dnerf.device import choose_device, describe_machine
from s3dnerf.errors import UserError
from s3dnerf.interruption import defer_interrupts
from s3dnerf.media.files import make_folder, refuse_inputs
from s3dnerf.optimization import (
    DivergenceCheck,
    ExponentialMovingAverage,
    check_finite,
    clip_gradient,
    schedule,
    seed_step,
)
from s3dnerf.precision import Precision, mixed_precision
from s3dnerf.training.checkpoint import (
    TrainingState,
    drop_old,
    find_latest,
    load_checkpoint,
    read_seconds,
    save_checkpoint,
)

Model = TypeVar("Model", bound=nn.Module)
LOG_INTERVAL = 20
"""Steps between log entries."""
KEPT_CHECKPOINTS = 2
"""Number of checkpoints to keep; older ones are deleted."""


@dataclass
class LoopConfig:
    """Settings that all recipes share."""

    steps: NonNegativeInt = 20_000
    """Total number of steps."""
    learning_rate: PositiveFloat = 8e-4
    """Peak learning rate."""
    warmup: NonNegativeInt = 300
    """Warm-up steps of the learning rate, which then decays along a cosine to a fiftieth of its peak."""
    max_grad_norm: PositiveFloat = 1.0
    """Maximum norm of the gradient."""
    gradient_accumulation_steps: PositiveInt = 1
    """Batches over which gradients are averaged for each step."""
    ema_decay: ShareBelowOne = 0.998
    """Decay of the exponential moving average of the weights."""
    precision: Precision = "auto"
    """Precision of convolutions and matrix products; auto selects bfloat16 if the hardware supports it."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device to train on."""
    validate_every: PositiveInt = 500
    """Steps between validations on held-out people."""
    save_every: PositiveInt = 500
    """Steps between checkpoints."""


class TrainingLoop(ABC, Generic[Model]):
    """A training run: model, averaged model, optimizer, log and checkpoints."""

    progress_metrics: tuple[str, ...] = ()
    """Metrics that the progress bar shows."""

    def __init__(self, config: LoopConfig, run_dir: Path, seed: int) -> None:
        self.loop_config, self.run_dir, self.seed = config, run_dir, seed
        self.device = choose_device(config.device, "train.device")
        torch.manual_seed(seed)
        self.model: Model = self.make_model().to(self.device)
        self.average = ExponentialMovingAverage(self.model, config.ema_decay)
        self.optimizer = self.make_optimizer()
        self.checkpoints = run_dir / "checkpoints"
        self.step = 0
        self.seconds = 0.0
        self.divergence = DivergenceCheck()
        self.begin = time.monotonic()

    @abstractmethod
    def make_model(self) -> Model:
        """Return the initial model."""

    @abstractmethod
    def make_optimizer(self) -> Optimizer:
        """Return the optimizer of ``self.model``. Its groups may set their own peak learning rate as ``peak``."""

    @abstractmethod
    def iterate_batches(self) -> Iterator[Sequence[Any]]:
        """Yield the batches of each remaining step, ``gradient_accumulation_steps`` of them."""

    @abstractmethod
    def compute_loss(self, batch: Any, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor | float]]:
        """Return the loss of a batch, and metrics to log. ``generator`` is seeded by the step."""

    @property
    def averaged_model(self) -> Model:
        """The averaged model."""
        return cast(Model, self.average.module)

    def initialize(self) -> None:
        """Run once before the first step."""

    def finish_step(self) -> None:
        """Run after each step of the optimizer."""

    def finalize(self) -> None:
        """Run once after the last step, before the last checkpoint."""

    def validate(self, log: SummaryWriter) -> dict[str, float]:
        """Evaluate the averaged model on held-out people."""
        return {}

    def run(self, config: Any, resume: bool = False) -> None:
        """Train to the last step.

        On Ctrl-C, SIGTERM and SIGHUP, a checkpoint is saved and the signal is raised again.

        Args:
            config: all settings of the run, saved next to the checkpoints.
            resume: continue from the last checkpoint in the folder of the run.
        """
        make_folder(self.run_dir)
        latest = find_latest(self.checkpoints) if resume else None
        if latest is not None:
            self.step = load_checkpoint(latest, self.state)
            self.average.n_averaged.fill_(self.step)
            self.seconds = read_seconds(latest)
        save_config(self.run_dir / "config.yaml", config)
        self.begin = time.monotonic() - self.seconds
        if latest is None:
            self.initialize()
            self.save()
        loop = self.loop_config
        bar = tqdm(total=loop.steps, initial=self.step, desc="training", dynamic_ncols=True)
        with SummaryWriter(self.run_dir / "log") as log, defer_interrupts() as interrupted, bar:
            for batches in self.iterate_batches():
                metrics = self.update(batches)
                self.step += 1
                bar.update()
                if self.step % LOG_INTERVAL == 0 or self.step == loop.steps:
                    self.log_metrics(log, bar, metrics)
                if self.step % loop.validate_every == 0:
                    self.validate(log)
                if self.step == loop.steps:
                    self.finalize()
                if self.step % loop.save_every == 0 or self.step == loop.steps or interrupted():
                    self.save()
                if interrupted():
                    tqdm.write(f"stopped at step {self.step}; continue with --resume")
                    return

    def update(self, batches: Sequence[Any]) -> dict[str, Tensor | float]:
        """Run one optimizer step and return the metrics of its last batch."""
        loop = self.loop_config
        self.model.train()
        for group in self.optimizer.param_groups:
            group["lr"] = group.get("peak", loop.learning_rate) * schedule(self.step, loop.steps, loop.warmup)
        # With one seed per step, a resumed run repeats dropout and jitter exactly.
        generator = seed_step(self.seed, self.step, self.device)
        self.optimizer.zero_grad(set_to_none=True)
        metrics: dict[str, Tensor | float] = {}
        for batch in batches:
            loss, metrics = self.compute_loss(batch, generator)
            # On the CPU, the backward pass of grid_sample crashes at non-finite positions.
            if self.device.type == "cpu":
                check_finite(loss, "loss", self.step)
            (loss / len(batches)).backward()
        self.divergence.watch(clip_gradient(self.model, loop.max_grad_norm), self.step)
        self.optimizer.step()
        self.average.update_parameters(self.model)
        self.finish_step()
        return metrics

    def log_metrics(self, log: SummaryWriter, bar: tqdm[Any], metrics: dict[str, Tensor | float]) -> None:
        """Write metrics to the log and the progress bar."""
        self.divergence.require_finite()
        values = {name: float(value) for name, value in metrics.items()}
        for name, value in values.items():
            log.add_scalar(f"train/{name}", value, self.step)
        log.add_scalar("train/learning_rate", self.optimizer.param_groups[0]["lr"], self.step)
        bar.set_postfix({name: f"{values[name]:.4f}" for name in self.progress_metrics if name in values})

    def save(self) -> None:
        """Write a checkpoint and delete old ones."""
        self.divergence.require_finite()
        self.seconds = time.monotonic() - self.begin
        save_checkpoint(self.checkpoints / f"step_{self.step:07d}", self.step, self.state)
        drop_old(self.checkpoints, KEPT_CHECKPOINTS)

    @property
    def state(self) -> TrainingState:
        """Contents of a checkpoint."""
        return TrainingState(
            self.average.module, {"model": self.model}, {"optimizer": self.optimizer}, self.make_record()
        )

    def make_record(self) -> dict[str, Any]:
        """Return what the model card tells of the run: the time since its start, without pauses, and the machine."""
        return {"seconds": round(self.seconds, 1), "machine": describe_machine(self.device)}

    def autocast(self) -> torch.autocast:
        """Return the autocast context."""
        return mixed_precision(self.device, self.loop_config.precision)


def check_run_folder(run_dir: Path, resume: bool, inputs: Sequence[str | Path | None]) -> None:
    """Check the folder of a run before anything is loaded, and create it.

    Raises:
        UserError: it is an input, or already holds a run, whose checkpoints would be mixed with those of this one.
    """
    refuse_inputs(run_dir, inputs)
    if not resume and find_latest(run_dir / "checkpoints"):
        raise UserError(run_dir, "holds a run already", "Continue it with --resume, or choose another --out.")
    make_folder(run_dir)
