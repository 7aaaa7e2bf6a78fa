"""How fast a training step is on our kernels and on PyTorch's operators, and whether both learn the same."""

from __future__ import annotations

import tempfile
import time
from collections import defaultdict
from pathlib import Path
from statistics import median

import torch
from tqdm import tqdm

from s3dnerf import limits
from s3dnerf.config import load_config
from s3dnerf.evaluation.benchmark import Table, force_backend
from s3dnerf.ops.backend import keep_freed_memory
from s3dnerf.precision import choose_precision
from s3dnerf.training import S3DNeRFConfig
from s3dnerf.training.losses import weighted_sum
from s3dnerf.training.s3dnerf import MOTION_INTERVAL, S3DNeRFTrainer

BACKENDS = {"ours": "auto", "PyTorch": "pytorch"}


def measure_training(clips: Path, steps: int = 50, config: str = "base.yaml", device: str = "auto") -> list[Table]:
    """Make the same steps twice, from one seed and on the same batches, the two backends taking turns.

    Pictures are learned from the first step on, as in most of a run; every other step learns movement too.

    Args:
        clips: folder of prepared clips.
        steps: how many steps to make, 2 or more.
        config: settings to train with.
        device: "auto", "cpu" or "cuda".

    Raises:
        UserError: there are no prepared clips in the folder, or an argument is wrong.
    """
    limits.STEPS.require("--steps", steps)
    keep_freed_memory()
    words = ["--data.root", str(clips), "--data.cache", "false", "--train.motion_steps", "0"]
    settings = load_config(S3DNeRFConfig, config, [*words, "--train.device", device])
    seconds: dict[tuple[str, str], list[float]] = defaultdict(list)
    apart = []
    with tempfile.TemporaryDirectory() as folder:
        trainers = {name: S3DNeRFTrainer(settings, Path(folder)) for name in BACKENDS}
        data = trainers["ours"].data
        for step in tqdm(range(steps), desc="steps on both", unit="step"):
            batch, values = data[step], {}
            kind = "pictures and movement" if step % MOTION_INTERVAL == 0 else "pictures"
            for name, trainer in trainers.items():
                with force_backend(BACKENDS[name]):
                    begin = time.perf_counter()
                    trainer.step = step
                    values[name] = weighted_sum(trainer.update([batch]), settings.losses).item()
                    seconds[kind, name].append(time.perf_counter() - begin)
            apart.append(abs(values["ours"] - values["PyTorch"]) / abs(values["PyTorch"]))
    rows = []
    for kind in ("pictures", "pictures and movement"):
        ours, other = (1e3 * median(seconds[kind, name]) for name in BACKENDS)
        rows.append({"step": kind, "ours ms": ours, "PyTorch ms": other, "times as fast": other / ours})
    precision = choose_precision(trainers["ours"].device, settings.train.precision)
    speed = Table(f"Training {config}, medians of {steps} steps, {torch.get_num_threads()} threads, {precision}", rows)
    difference = {"steps": steps, "largest relative difference of the loss": f"{max(apart):.1e}"}
    return [speed, Table("The same losses on both", [{**difference, "last": f"{apart[-1]:.1e}"}])]
