"""Ablation of motion diffusion: variants trained alike, and measured on the people held out of training."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tqdm import tqdm

from s3dnerf.config import load_config, to_dict
from s3dnerf.errors import UserError
from s3dnerf.media.files import atomic_write
from s3dnerf.models.fd2talk.motion_diffusion import load_motion_diffusion
from s3dnerf.training.checkpoint import find_latest
from s3dnerf.training.motion import MotionConfig, MotionTrainer, SplitClips, validate_motion
from s3dnerf.training.motion_sampling import generate_all, measure_amounts, measure_lip_agreement

VARIANTS = {
    "full": (),
    "without alignment mask": ("--model.alignment_mask=false",),
    "without lip expert": ("--losses.lip_expert=0",),
    "one transformer": ("--model.layout=one",),
    "expression alone": ("--model.layout=expression",),
}
"""Settings of the variants."""
TABLE_FILES = ("ablation.md", "ablation.json")


@dataclass(frozen=True)
class MotionAblation:
    """Scores by variant."""

    scores: dict[str, dict[str, float]]
    notes: tuple[str, ...]

    def format_markdown(self) -> str:
        """Return a table with a line for each variant, and the notes."""
        names = list(next(iter(self.scores.values())))
        lines = ["| variant | " + " | ".join(names) + " |", "| --- |" + " ---: |" * len(names)]
        lines += [
            f"| {variant} | " + " | ".join(f"{found[name]:.3f}" for name in names) + " |"
            for variant, found in self.scores.items()
        ]
        return "\n".join([*lines, "", *(f"- {note}" for note in self.notes)])

    def save(self, out: Path) -> None:
        """Write OUT/ablation.md and OUT/ablation.json."""
        tree = {"scores": self.scores, "notes": self.notes}
        for name, text in zip(TABLE_FILES, (self.format_markdown(), json.dumps(tree, indent=1)), strict=True):
            with atomic_write(out / name) as temporary:
                temporary.write_text(text + "\n", "utf-8")


def run_motion_ablation(config: str | Path, words: Sequence[str], out: Path) -> MotionAblation:
    """Train every variant and measure it; finished ones in OUT are not repeated.

    OUT/<variant> holds a run, and ``scores.json`` when it is measured.

    Args:
        config: settings of the full model, a path or a name in configs/.
        words: settings of all variants, as on the command line.
        out: folder of the runs and of the table.

    Raises:
        UserError: a setting is invalid, no people are held out, or OUT holds runs with other settings.
    """
    configs = {name: load_config(MotionConfig, config, [*words, *changed]) for name, changed in VARIANTS.items()}
    full = configs["full"]
    repeated = [name for name, one in configs.items() if name != "full" and to_dict(one) == to_dict(full)]
    if repeated:
        raise UserError(str(config), f"is already the variant {repeated[0]}", "Ablate the full model.")
    clips: SplitClips | None = None
    scores: dict[str, dict[str, float]] = {}
    report = MotionAblation(scores, ())
    for name, one in tqdm(configs.items(), desc="variants", unit="variant"):
        folder = out / name.replace(" ", "_")
        known = read_scores(folder / "scores.json", one)
        if known is None:
            trainer = MotionTrainer(one, folder, clips)
            clips = trainer.split
            if not clips.held_out:
                raise UserError("data.held_out_people", "leaves nobody to measure on", "Hold some people out.")
            trainer.run(one, resume=True)
            known = measure_variant(trainer)
            write_scores(folder / "scores.json", one, known)
        scores[name] = known
        report = MotionAblation(scores, describe(full))
        report.save(out)
    return report


def measure_variant(trainer: MotionTrainer) -> dict[str, float]:
    """Measure a trained model on the people held out: losses with and without speech, and generated motion."""
    latest = find_latest(trainer.run_dir / "checkpoints")
    assert latest is not None, "a run ends with a checkpoint"
    # A finished run that is only measured does not fit its sampling settings again; its checkpoint has them.
    model = load_motion_diffusion(latest / "model").to(trainer.device)
    clips = [clip.spoken for clip in trainer.held_out]
    found = {f"{name}, loss": value for name, value in validate_motion(trainer, model).items()}
    people = [clip.person for clip in clips]
    real = [clip.motion for clip in clips]
    generated = generate_all(model, clips, model.config.sampling, trainer.seed)
    unguided = generate_all(model, clips, replace(model.config.sampling, expert_guidance=0.0), trainer.seed)
    amounts = measure_amounts(generated, people) / measure_amounts(real, people)
    return {
        **found,
        "lip opening r": measure_lip_agreement(real, generated, people),
        "without guidance": measure_lip_agreement(real, unguided, people),
        "lips / real": amounts.lips,
        "head speed / real": amounts.speed,
        "brows / real": amounts.brows,
    }


def describe(config: MotionConfig) -> tuple[str, ...]:
    """Return the notes below the table."""
    train, people = config.train, config.data.held_out_people
    held_out = "as many people as usual" if people is None else f"{people} people"
    return (
        f"{train.steps} steps of {train.batch_size} windows, seed {config.seed}; first {train.expert_steps} steps "
        f"of the lip expert. Measured on {held_out} held out of the split {config.data.train_split}.",
        "Losses are squared errors of standardized motion, with and without the speech. One seed each: small "
        "differences mean nothing.",
    )


def write_scores(path: Path, config: MotionConfig, scores: dict[str, float]) -> None:
    """Write the scores of a variant with its settings."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps({"config": to_dict(config), "scores": scores}, indent=1) + "\n", "utf-8")


def read_scores(path: Path, config: MotionConfig) -> dict[str, float] | None:
    """Read the file of :func:`write_scores`; None if there is none.

    Raises:
        UserError: it is broken, or of other settings.
    """
    if not path.is_file():
        return None
    try:
        tree = json.loads(path.read_text("utf-8"))
        same, scores = tree["config"] == json.loads(json.dumps(to_dict(config))), dict(tree["scores"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(path, f"is broken ({error})", "Delete it; the variant will be measured again.") from error
    if not same:
        raise UserError(path.parent, "holds a run with other settings", "Choose another --out, or delete that folder.")
    return scores
