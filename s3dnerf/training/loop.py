"""The training loop that all recipes share.

A recipe derives from :class:`TrainingLoop` and defines its batches and losses. The loop implements the rest: learning
rate schedule, gradient accumulation and clipping, exponential moving average, logging, validation, checkpoints, exact
resuming, and a checkpoint before the program ends on Ctrl-C, SIGTERM or SIGHUP.

Batches are numbered over all processes. Each step averages the gradients of ``gradient_accumulation_steps`` batches of
each process, so N processes that accumulate A batches train as one process that accumulates N A. Process r makes the
batches whose number is r modulo N. Only the main process writes; the others wait while it validates or saves.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
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
from s3dnerf.device import describe_machine
from s3dnerf.errors import UserError
from s3dnerf.interruption import defer_interrupts, raise_interrupt
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
    collect_tensors,
    drop_old,
    find_latest,
    load_checkpoint,
    read_seconds,
    restore_tensors,
    save_checkpoint,
)
from s3dnerf.training.processes import Objective, Processes, accumulate

Model = TypeVar("Model", bound=nn.Module)
Metrics = dict[str, Tensor | float]
LOG_INTERVAL = 20
"""Steps between log entries, and between checks that training has not diverged on a GPU."""
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
    """Batches of each process over which gradients are averaged for each step."""
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
        self.processes = Processes(config.device)
        self.device = self.processes.device
        torch.manual_seed(seed)
        self.model: Model = self.make_model().to(self.device)
        self.average = ExponentialMovingAverage(self.model, config.ema_decay)
        self.optimizer = self.make_optimizer()
        self.objective = self.processes.wrap(Objective(self.model, self.compute_loss), find_unused=True)
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
        """Yield the batches of this process in each remaining step: those of ``batch_numbers``."""

    @abstractmethod
    def compute_loss(self, batch: Any, generator: torch.Generator) -> tuple[Tensor, Metrics]:
        """Return the loss of a batch, and metrics to log. ``generator`` is seeded by the number of the batch."""

    @property
    def averaged_model(self) -> Model:
        """The averaged model."""
        return cast(Model, self.average.module)

    @property
    def batches_per_step(self) -> int:
        """Batches of all processes in each step."""
        return self.loop_config.gradient_accumulation_steps * self.processes.count

    @property
    def batch_numbers(self) -> range:
        """Numbers of the batches of this process in all remaining steps."""
        first, end = (step * self.batches_per_step for step in (self.step, self.loop_config.steps))
        return range(first + self.processes.index, end, self.processes.count)

    def initialize(self) -> None:
        """Run once before the first step, in the main process."""

    def finish_step(self) -> None:
        """Run after each step of the optimizer, in every process."""

    def finalize(self) -> None:
        """Run once after the last step, before the last checkpoint, in the main process."""

    def validate(self, log: SummaryWriter) -> dict[str, float]:
        """Evaluate the averaged model on held-out people, in the main process."""
        return {}

    def run(self, config: Any, resume: bool = False) -> Path:
        """Train to the last step and return the path of the last checkpoint.

        On Ctrl-C, SIGTERM and SIGHUP in any of the processes, a checkpoint is saved and the signal is raised again.

        Args:
            config: all settings of the run, saved next to the checkpoints.
            resume: continue from the last checkpoint in the folder of the run.
        """
        is_main = self.processes.is_main
        if is_main:
            self.begin_or_resume(config, resume)
        self.share_state()
        repeats = self.processes.launched
        with (
            SummaryWriter(self.run_dir / "log") if is_main else nullcontext() as log,
            defer_interrupts(ignore_repeated=repeats) as interrupted,
        ):
            number = self.train(log, interrupted)
            if number and not interrupted():
                raise_interrupt(number)
        return self.checkpoint

    def begin_or_resume(self, config: Any, resume: bool) -> None:
        """Initialize the model, or load the last checkpoint if there is one and ``resume`` is set."""
        make_folder(self.run_dir)
        latest = find_latest(self.checkpoints) if resume else None
        if latest is not None:
            self.step = load_checkpoint(latest, self.state)
            self.seconds = read_seconds(latest)
        elif resume:
            self.processes.write(f"{self.checkpoints} holds no checkpoint: training starts from the beginning")
        save_config(self.run_dir / "config.yaml", config)
        self.begin = time.monotonic() - self.seconds
        if latest is None:
            self.initialize()
            self.save()

    def share_state(self) -> None:
        """Copy the state of the main process to all others."""
        self.step = self.processes.maximum(self.step)
        if self.processes.count > 1:
            tensors = self.processes.share(collect_tensors(self.state))
            if not self.processes.is_main:
                restore_tensors(self.state, tensors)
        self.average.n_averaged.fill_(self.step)

    def train(self, log: SummaryWriter | None, interrupted: Callable[[], int]) -> int:
        """Run the remaining steps. Return the number of a signal that ended them early, or 0."""
        loop, is_main = self.loop_config, self.processes.is_main
        bar = tqdm(total=loop.steps, initial=self.step, desc="training", dynamic_ncols=True, disable=not is_main)
        with bar:
            for batches in self.iterate_batches():
                metrics = self.update(batches)
                self.step += 1
                bar.update()
                number, is_last = self.processes.maximum(interrupted()), self.step == loop.steps
                if self.step % LOG_INTERVAL == 0 or is_last:
                    self.log_metrics(log, bar, metrics)
                if log is not None and self.step % loop.validate_every == 0:
                    self.validate(log)
                if is_main and is_last:
                    self.finalize()
                if is_main and (self.step % loop.save_every == 0 or is_last or number):
                    self.save()
                if number:
                    self.processes.write(f"stopped at step {self.step}; continue with --resume")
                    return number
        return 0

    def update(self, batches: Sequence[Any]) -> Metrics:
        """Run one optimizer step on batches of this process, and return the means of their metrics."""
        loop = self.loop_config
        self.model.train()
        for group in self.optimizer.param_groups:
            group["lr"] = group.get("peak", loop.learning_rate) * schedule(self.step, loop.steps, loop.warmup)
        self.optimizer.zero_grad(set_to_none=True)
        found = []
        for place, batch in enumerate(batches):
            # With one seed per batch, dropout and jitter depend neither on resuming nor on the number of processes.
            number = self.step * self.batches_per_step + place * self.processes.count + self.processes.index
            generator = seed_step(self.seed, number, self.device)
            with accumulate(self.objective, is_last=place == len(batches) - 1):
                loss, metrics = self.objective(batch, generator)
                # On the CPU, the backward pass of grid_sample crashes at non-finite positions.
                if self.device.type == "cpu":
                    check_finite(loss, "loss", self.step)
                (loss / len(batches)).backward()
            found.append(metrics)
        self.divergence.watch(clip_gradient(self.model, loop.max_grad_norm), self.step)
        self.optimizer.step()
        self.average.update_parameters(self.model)
        self.finish_step()
        return average_metrics(found)

    def log_metrics(self, log: SummaryWriter | None, bar: tqdm[Any], metrics: Metrics) -> None:
        """Write the means of the metrics of all processes to the log and the progress bar."""
        self.divergence.require_finite()
        gathered = self.processes.gather({name: float(value) for name, value in metrics.items()})
        if log is None:
            return
        values = average_metrics(gathered)
        for name, value in values.items():
            log.add_scalar(f"train/{name}", value, self.step)
        log.add_scalar("train/learning_rate", self.optimizer.param_groups[0]["lr"], self.step)
        bar.set_postfix({name: f"{values[name]:.4f}" for name in self.progress_metrics if name in values})

    def save(self) -> None:
        """Write a checkpoint and delete old ones."""
        self.divergence.require_finite()
        self.seconds = time.monotonic() - self.begin
        save_checkpoint(self.checkpoint, self.step, self.state)
        drop_old(self.checkpoints, KEPT_CHECKPOINTS)

    @property
    def checkpoint(self) -> Path:
        """Path of the checkpoint of the current step."""
        return self.checkpoints / f"step_{self.step:07d}"

    @property
    def state(self) -> TrainingState:
        """Contents of a checkpoint."""
        return TrainingState(
            self.average.module, {"model": self.model}, {"optimizer": self.optimizer}, self.make_record()
        )

    def make_record(self) -> dict[str, Any]:
        """Return what the model card tells of the run: the time since its start, without pauses, and the machine."""
        machine, count = describe_machine(self.device), self.processes.count
        return {"seconds": round(self.seconds, 1), "machine": machine if count == 1 else f"{count} x {machine}"}

    def autocast(self) -> torch.autocast:
        """Return the autocast context."""
        return mixed_precision(self.device, self.loop_config.precision)


def average_metrics(parts: Sequence[Metrics]) -> Metrics:
    """Return the mean of each metric over the parts that have it."""
    if len(parts) == 1:
        return parts[0]
    names = {name: None for part in parts for name in part}
    return {name: mean([part[name] for part in parts if name in part]) for name in names}


def mean(values: Sequence[Tensor | float]) -> Tensor | float:
    """Return the mean."""
    return sum(values) / len(values)


def check_run_folder(run_dir: Path, resume: bool, inputs: Sequence[str | Path | None]) -> None:
    """Check the folder of a run before anything is loaded, and create it.

    Raises:
        UserError: it is an input, or already holds a run, whose checkpoints would be mixed with those of this one.
    """
    refuse_inputs(run_dir, inputs)
    if not resume and find_latest(run_dir / "checkpoints"):
        raise UserError(run_dir, "holds a run already", "Continue it with --resume, or choose another --out.")
    make_folder(run_dir)
