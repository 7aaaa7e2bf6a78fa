"""Speed of a training step on our kernels and on PyTorch's operators, and the difference of their losses."""

from __future__ import annotations

import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, Protocol

import torch
from tqdm import tqdm

from s3dnerf import limits
from s3dnerf.config import load_config
from s3dnerf.evaluation.benchmark.report import Table
from s3dnerf.evaluation.benchmark.timing import force_backend
from s3dnerf.ops.backend import keep_freed_memory
from s3dnerf.precision import choose_precision
from s3dnerf.training.config import S3DNeRFConfig
from s3dnerf.training.losses import weighted_sum

BACKENDS = {"ours": "auto", "PyTorch": "pytorch"}


class Batches(Protocol):
    """Batches by step number."""

    def __getitem__(self, step: int) -> Any: ...


class StepTrainer(Protocol):
    """The part of ``S3DNeRFTrainer`` that is measured."""

    step: int
    motion_interval: int
    device: torch.device

    @property
    def data(self) -> Batches:
        """The batches of all steps."""

    def update(self, batches: list[Any]) -> Any:
        """Make one training step and return its losses."""


def measure_training(
    make_trainer: Callable[[S3DNeRFConfig, Path], StepTrainer],
    clips: Path,
    steps: int = 50,
    config: str = "base.yaml",
    device: str = "auto",
) -> list[Table]:
    """Make the same training steps on both backends in turns, with the same seed and batches.

    Images are trained from the first step on, as in most of a run; motion is trained in every other step.

    Args:
        make_trainer: builds a trainer from settings and the folder of a run, such as ``S3DNeRFTrainer``.
        clips: folder of prepared clips.
        steps: number of steps, 2 or more.
        config: settings file.
        device: "auto", "cpu" or "cuda".

    Raises:
        UserError: the folder has no prepared clips, or an argument is invalid.
    """
    limits.STEPS.require("steps", steps)
    keep_freed_memory()
    words = ["--data.root", str(clips), "--data.cache_gb", "0", "--train.motion_steps", "0"]
    settings = load_config(S3DNeRFConfig, config, [*words, "--train.device", device])
    seconds: dict[tuple[str, str], list[float]] = defaultdict(list)
    differences = []
    with tempfile.TemporaryDirectory() as folder:
        trainers = {name: make_trainer(settings, Path(folder)) for name in BACKENDS}
        data = trainers["ours"].data
        for step in tqdm(range(steps), desc="steps on both", unit="step"):
            batch, values = data[step], {}
            kind = "images and motion" if step % trainers["ours"].motion_interval == 0 else "images"
            for name, trainer in trainers.items():
                with force_backend(BACKENDS[name]):
                    begin = time.perf_counter()
                    trainer.step = step
                    values[name] = weighted_sum(trainer.update([batch]), settings.losses).item()
                    seconds[kind, name].append(time.perf_counter() - begin)
            differences.append(abs(values["ours"] - values["PyTorch"]) / abs(values["PyTorch"]))
    rows = []
    for kind in ("images", "images and motion"):
        ours, other = (1e3 * median(seconds[kind, name]) for name in BACKENDS)
        rows.append({"step": kind, "ours ms": ours, "PyTorch ms": other, "times as fast": other / ours})
    precision = choose_precision(trainers["ours"].device, settings.train.precision)
    speed = Table(f"Training {config}, medians of {steps} steps, {torch.get_num_threads()} threads, {precision}", rows)
    difference = {"steps": steps, "largest relative difference of the loss": f"{max(differences):.1e}"}
    return [speed, Table("The same losses on both", [{**difference, "last": f"{differences[-1]:.1e}"}])]
