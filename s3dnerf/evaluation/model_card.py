"""The model card of trained weights, with figures from the files of the run and of its evaluation."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
import yaml
from safetensors.torch import load_file

from s3dnerf.constants import FPS
from s3dnerf.data.clips import open_clips
from s3dnerf.data.config import DataConfig
from s3dnerf.data.dataset import select_held_out
from s3dnerf.errors import UserError
from s3dnerf.evaluation.report import load_report
from s3dnerf.media.files import atomic_write

CARD = "README.md"
TEMPLATE = Path(__file__).parents[1] / "assets" / "model_card.md"


@dataclass(frozen=True)
class CardSources:
    """Where the figures of a model card come from."""

    name: str
    """Name of the weights."""
    config: str
    """Settings file that the run was started with."""
    run: Path
    """Folder of the training run."""
    checkpoint: Path
    """A checkpoint in that folder."""
    evaluation: Path
    """Folder of its evaluation."""
    command: str
    """Command that makes the weights."""
    compared: Path | None = None
    """Folder of the evaluation of other weights, to stand beside these figures."""


def write_model_card(folder: Path, sources: CardSources) -> None:
    """Write the model card into the folder of the weights.

    Args:
        folder: holds ``config.json``, ``render_config.json`` and ``model.safetensors``.
        sources: run, checkpoint and evaluation.

    Raises:
        UserError: one of the files is missing or broken.
    """
    try:
        card = Template(TEMPLATE.read_text("utf-8")).substitute(collect_figures(folder, sources))
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f"no model card can be written ({type(error).__name__}: {error})"
        raise UserError(folder, reason, "train and evaluate the weights first") from error
    with atomic_write(folder / CARD) as temporary:
        temporary.write_text(card, "utf-8")


def collect_figures(folder: Path, sources: CardSources) -> dict[str, str]:
    """Return the fields of the card as text."""
    config = yaml.safe_load((sources.run / "config.yaml").read_text("utf-8"))
    state = json.loads((sources.checkpoint / "training.json").read_text("utf-8"))
    report = load_report(sources.evaluation)
    if sources.compared is not None:
        report.earlier = load_report(sources.compared)
        # The card names no folders of the machine.
        report.earlier.settings["out"] = f"`{sources.compared.resolve().name}`"
    weights = folder / "model.safetensors"
    render = json.loads((folder / "render_config.json").read_text("utf-8"))
    data, train = config["data"], config["train"]
    return {
        "name": sources.name,
        "config": sources.config,
        "size": str(4 * config["model"]["ray_size"]),
        "parameters": f"{count_parameters(weights) / 1e6:.1f}",
        "megabytes": f"{weights.stat().st_size / 1e6:.0f}",
        "data": describe_data(data),
        "stages": describe_stages(train, 4 * config["model"]["ray_size"]),
        "batch": str(train["batch_size"] * train["gradient_accumulation_steps"]),
        "windows": str(data["sequences"] * data["sequence_frames"]),
        "seed": str(config["seed"]),
        "time": describe_time(state),
        "settings": ", ".join(f"{name} {value:g}" for name, value in render.items()),
        "command": sources.command,
        "split": str(report.settings.get("split")),
        "figures": report.format_summary(),
        "evaluation": describe_evaluation(report.settings),
    }


def count_parameters(weights: Path) -> int:
    """Return the number of values in a safetensors file."""
    return sum(value.numel() for value in load_file(weights).values())


def describe_data(data: Mapping[str, Any]) -> str:
    """Return people, clips and minutes of the training split, and how many people were held out."""
    names = ("root", "train_split", "held_out_people", "sequence_frames")
    config = DataConfig(**{name: data[name] for name in names})
    held_out = select_held_out(config)
    index = open_clips(config.root, config.train_split, lambda person: person not in held_out).index
    spoken = index.frames[index.in_sync].sum()
    people = len(np.unique(index.person))
    text = f"{len(index)} clips of {people} people, {spoken / FPS / 60:.1f} minutes with usable speech"
    return f"{text}; {len(held_out)} other people of that split were held out for validation and the inference settings"


def describe_stages(train: Mapping[str, Any], size: int) -> str:
    """Return the stages of the training run."""
    fine = train["steps"] - train["motion_steps"] - train["coarse_steps"]
    stages = [f"{train['motion_steps']} steps of motion alone"]
    if train["coarse_steps"]:
        stages.append(f"{train['coarse_steps']} with images of {size // 2} x {size // 2} pixels")
    return ", ".join([*stages, f"{fine} with images of {size} x {size} pixels"])


def describe_time(state: Mapping[str, Any]) -> str:
    """Return the time that training took, and the machine."""
    return f"{state['seconds'] / 3600:.1f} hours on {state['machine']}"


def describe_evaluation(settings: Mapping[str, Any]) -> str:
    """Return the command of an evaluation, without the folders of the machine."""
    words = ["s3dnerf evaluate --clips CLIPS --manifest MANIFEST.csv --checkpoint WEIGHTS --out OUT"]
    words += [f"--{name.replace('_', '-')} {settings[name]}" for name in ("split", "max_frames") if settings.get(name)]
    return " ".join(words)
