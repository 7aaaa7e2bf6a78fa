"""Checkpoints: folders with a loadable model and a training state from which a run resumes exactly.

``model/`` holds the averaged weights, which ``S3DNeRF.from_pretrained`` loads. ``training.safetensors`` and
``training.json`` hold raw weights and optimizer state. Nothing is pickled.
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.optim import Optimizer

from s3dnerf.errors import UserError, first_line, shorten
from s3dnerf.media.files import atomic_write_folder

STATE, NUMBERS, MODEL = "training.safetensors", "training.json", "model"
NAME = re.compile(r"step_(\d+)")
"""Names of checkpoints. Folders of other names, such as copies, are left alone."""
MAX_DETAIL = 200
"""Characters of PyTorch's explanation that a message keeps."""


@dataclass(frozen=True)
class TrainingState:
    """The complete state of training."""

    average: nn.Module
    """The averaged model, which ``from_pretrained`` loads."""
    modules: dict[str, nn.Module]
    """All other trained modules by name."""
    optimizers: dict[str, Optimizer]
    """Optimizers by name."""
    record: dict[str, Any] = field(default_factory=dict)
    """What the model card tells of the run, such as its time and machine."""


def save_checkpoint(folder: Path, step: int, state: TrainingState) -> None:
    """Write a checkpoint. The folder appears under its name only when it is complete."""
    tensors = collect_tensors(state)
    with atomic_write_folder(folder) as part:
        save_pretrained: Any = state.average.save_pretrained
        save_pretrained(part / MODEL)
        copies = {name: value.detach().clone().contiguous() for name, value in tensors.items()}
        (part / STATE).write_bytes(save(copies))
        (part / NUMBERS).write_text(json.dumps({"step": step, **state.record}))


def load_checkpoint(folder: Path, state: TrainingState) -> int:
    """Restore the state in place and return the step.

    Raises:
        UserError: the checkpoint is incomplete or belongs to a model of other sizes.
    """
    step = read_step(folder)
    try:
        tensors = load_file(folder / STATE)
    except (OSError, ValueError, SafetensorError) as error:
        raise _make_error(folder, error) from error
    try:
        restore_tensors(state, tensors)
    except (KeyError, ValueError, RuntimeError) as error:
        # PyTorch names the module in the first line, and what differs in the others.
        detail = " ".join(str(error).split("\n\t")[:2])
        reason = f"cannot be resumed with these settings ({shorten(detail, MAX_DETAIL)})"
        raise UserError(
            folder, reason, "resume with the settings it was made with, or start in a new folder"
        ) from error
    return step


def collect_tensors(state: TrainingState) -> dict[str, Tensor]:
    """Return all tensors of a state by name."""
    tensors: dict[str, Tensor] = {}
    for prefix, module in {"average": state.average, **state.modules}.items():
        tensors |= {f"{prefix}.{name}": value for name, value in module.state_dict().items()}
    for prefix, optimizer in state.optimizers.items():
        tensors |= {f"{prefix}.{name}": value for name, value in flatten_optimizer(optimizer).items()}
    return tensors


def restore_tensors(state: TrainingState, tensors: dict[str, Tensor]) -> None:
    """Restore the result of :func:`collect_tensors` in place.

    Raises:
        RuntimeError: a module has other sizes.
        ValueError: an optimizer has other parameters.
    """
    for prefix, module in {"average": state.average, **state.modules}.items():
        module.load_state_dict(_select(tensors, f"{prefix}."))
    for prefix, optimizer in state.optimizers.items():
        restore_optimizer(optimizer, _select(tensors, f"{prefix}."))


def read_step(folder: Path) -> int:
    """Return the step of a checkpoint. Raises UserError if it is damaged."""
    try:
        return int(json.loads((folder / NUMBERS).read_text())["step"])
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise _make_error(folder, error) from error


def read_seconds(folder: Path) -> float:
    """Return the seconds that training took up to a checkpoint; those of earlier versions do not know it."""
    return float(json.loads((folder / NUMBERS).read_text()).get("seconds", 0.0))


def flatten_optimizer(optimizer: Optimizer) -> dict[str, Tensor]:
    """Return the optimizer's state as named tensors."""
    state = optimizer.state_dict()["state"]
    return {
        f"{index}.{name}": torch.as_tensor(value) for index, entry in state.items() for name, value in entry.items()
    }


def restore_optimizer(optimizer: Optimizer, tensors: dict[str, Tensor]) -> None:
    """Restore the result of :func:`flatten_optimizer`. Raises ValueError if it belongs to other parameters."""
    shapes = [parameter.shape for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, name = key.split(".", 1)
        # Parameters have numbers, which shift when another part is frozen. Numbers of steps have no dimensions.
        if int(index) >= len(shapes) or (value.dim() and value.shape != shapes[int(index)]):
            raise ValueError(f"its optimizer trains other parameters: number {index} differs")
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def find_latest(folder: Path) -> Path | None:
    """Return the checkpoint with the highest step in ``folder``, or None."""
    found = list_checkpoints(folder)
    return found[-1] if found else None


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints in ``folder`` by step."""
    steps = {path: int(name[1]) for path in folder.glob("step_*") if (name := NAME.fullmatch(path.name))}
    return sorted(steps, key=steps.__getitem__)


def drop_old(folder: Path, keep: int) -> None:
    """Delete all but the ``keep`` newest checkpoints."""
    for old in list_checkpoints(folder)[:-keep]:
        shutil.rmtree(old)


def _make_error(folder: Path, error: Exception) -> UserError:
    """Return the error about a damaged checkpoint."""
    reason = f"is damaged and cannot be resumed ({first_line(error)})"
    return UserError(folder, reason, "delete it to resume from the checkpoint before it, if there is one")


def _select(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
