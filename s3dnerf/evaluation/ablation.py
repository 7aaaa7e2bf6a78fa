"""Ablation study: variants of the method, trained alike and ranked against the ablation table of the S3D-NeRF paper.

A run is one variant with one seed. All settings except those of the variant are equal, so that equal seeds give equal
batches. OUT/<variant>/seed_<n> holds a run: its checkpoint, its evaluation and ``scores.json``, which is written last.
Finished runs are not repeated. The function that trains is an argument: this module depends on no trainer.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path

from tqdm import tqdm

from s3dnerf import limits
from s3dnerf.config import dotted_names, from_dict, load_config, to_dict
from s3dnerf.data.clips import read_root_index
from s3dnerf.device import choose_device
from s3dnerf.errors import ArgumentError, UserError
from s3dnerf.evaluation.clip_list import find_clips
from s3dnerf.evaluation.evaluate import evaluate_clips
from s3dnerf.evaluation.report import REPORT_FILES
from s3dnerf.evaluation.score_file import read_scores, write_scores
from s3dnerf.evaluation.scores import Scores, average_scores, spread_scores
from s3dnerf.evaluation.tables import (
    COLUMNS,
    ROW_TITLES,
    Column,
    format_score,
    jsonable_scores,
    write_number,
)
from s3dnerf.media.files import atomic_write, check_output, refuse_inputs
from s3dnerf.training.checkpoint import find_latest, read_step
from s3dnerf.training.config import S3DNeRFConfig

Train = Callable[[S3DNeRFConfig, Path, bool], Path]
"""Takes settings, the folder of the run and whether to resume; returns the last checkpoint."""

SHOWN = (
    *("psnr", "ssim", "lpips", "cpbd", "f_lmd", "m_lmd"),
    *("lip_correlation", "lip_gain", "lip_slope", "sync_confidence", "lse_c"),
)
"""Scores in the table, if they were measured."""
REFERENCE_ROWS = ("unmoved_portrait", "ground_truth")


@dataclass(frozen=True)
class Variant:
    """One line of the paper's ablation table."""

    title: str
    settings: Mapping[str, str]
    """Settings that differ from the method, by dotted name."""
    paper: float
    """Its Sync score in the paper."""


VARIANTS = {
    "full": Variant("full", {}, 6.51),
    "concatenation": Variant("concatenation", {"model.deformation.fusion": "concatenation"}, 6.11),
    "without_sync": Variant("without lip-sync discriminator", {"losses.sync": "0"}, 5.65),
    "whole_face": Variant("whole-face deformation", {"model.deformation.scope": "whole_face"}, 5.20),
    "without_deformation": Variant("without deformation", {"model.deformation.scope": "nothing"}, 0.24),
}


@dataclass(frozen=True)
class Protocol:
    """Clips that the variants are evaluated on; see :func:`evaluate_clips`."""

    clips: Path
    manifest: Path | None = None
    split: str | None = None
    max_frames: int | None = None
    only: tuple[str, ...] = ()

    def measure(
        self, out: Path, rows: Sequence[str], checkpoint: Path | None = None, device: str = "cpu"
    ) -> dict[str, Scores]:
        """Evaluate a checkpoint and return the means over clips by row."""
        report = evaluate_clips(out=out, rows=rows, checkpoint=checkpoint, device=device, **vars(self))
        return report.means


@dataclass
class AblationReport:
    """Results so far."""

    settings: dict[str, object]
    rank_by: Column
    scores: dict[str, dict[int, Scores]] = field(default_factory=dict)
    """Means over clips by variant and seed."""
    reference: dict[str, Scores] = field(default_factory=dict)
    """Scores of the unmoved portrait and the ground truth, which have no seed."""

    @property
    def means(self) -> dict[str, Scores]:
        """Mean over seeds of each variant."""
        return {name: average_scores(by_seed.values()) for name, by_seed in self.scores.items()}

    @property
    def spreads(self) -> dict[str, Scores]:
        """Sample standard deviation over seeds of each variant."""
        return {name: spread_scores(by_seed.values()) for name, by_seed in self.scores.items()}

    def rank(self) -> list[str]:
        """Return the variants from worst to best; NaN is worst."""
        sign = 1.0 if is_better_high(self.rank_by) else -1.0
        values = {name: sign * getattr(mean, self.rank_by.name) for name, mean in self.means.items()}
        return sorted(values, key=lambda name: -math.inf if math.isnan(values[name]) else values[name])

    def describe_order(self) -> str:
        """Return one line: whether the order is the paper's, and how many of its steps exceed the spread."""
        found = self.rank()
        wanted = sorted(found, key=lambda name: VARIANTS[name].paper)
        clear = sum(self._is_clear(worse, better) for worse, better in pairwise(found))
        order = " < ".join(VARIANTS[name].title for name in found)
        verdict = f"By {self.rank_by.name}"
        if found == wanted:
            verdict += f" the paper's order holds: {order}"
        else:
            verdict += f" the paper's order does not hold: here {order}"
            verdict += f"; paper {' < '.join(VARIANTS[name].title for name in wanted)}"
        return f"{verdict}. {clear} of {len(found) - 1} steps are larger than both spreads together."

    def _is_clear(self, worse: str, better: str) -> bool:
        means, spreads = self.means, self.spreads
        a, b = (getattr(means[name], self.rank_by.name) for name in (worse, better))
        noise = sum(getattr(spreads[name], self.rank_by.name) for name in (worse, better))
        return abs(a - b) > noise

    def format_table(self) -> str:
        """Return a Markdown table: variants, best first, with mean ± spread, then the reference rows."""
        means, spreads = self.means, self.spreads
        everything = [*means.values(), *self.reference.values()]
        columns = [column for column in COLUMNS if self._shows(column, everything)]
        lines = [
            "| " + " | ".join(["variant", *(column.heading for column in columns), "Sync in the paper ↑"]) + " |",
            "|---|" + "---:|" * (len(columns) + 1),
        ]
        for name in reversed(self.rank()):
            cells = [format_spread(means[name], spreads[name], column) for column in columns]
            lines.append("| " + " | ".join([VARIANTS[name].title, *cells, f"{VARIANTS[name].paper:.2f}"]) + " |")
        for row, scores in self.reference.items():
            cells = [format_score(getattr(scores, column.name), column.decimals) for column in columns]
            lines.append("| " + " | ".join([ROW_TITLES[row], *cells, ""]) + " |")
        return "\n".join(lines)

    def _shows(self, column: Column, scores: Sequence[Scores]) -> bool:
        wanted = column.name in SHOWN or column == self.rank_by
        return wanted and any(getattr(entry, column.name) is not None for entry in scores)

    def save(self, out: Path) -> None:
        """Write OUT/table.md, OUT/table.csv and OUT/report.json."""
        texts = self._format_markdown(), self._format_csv(), self._format_json()
        for name, text in zip(REPORT_FILES, texts, strict=True):
            with atomic_write(out / name) as temporary:
                temporary.write_text(text, "utf-8")

    def _format_markdown(self) -> str:
        given = ", ".join(f"{name} {value}" for name, value in self.settings.items() if value is not None)
        seeds = "; ".join(f"{VARIANTS[name].title}: {len(by_seed)}" for name, by_seed in self.scores.items())
        notes = f"Mean ± standard deviation over seeds ({seeds}). Settings: {given}."
        return "\n\n".join(["# Ablation", notes, self.format_table(), self.describe_order()]) + "\n"

    def _format_csv(self) -> str:
        """Return lines ``variant, seed, scores...``, with "mean" and "spread" in place of the seed of a summary."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["variant", "seed", *(column.name for column in COLUMNS)])
        means, spreads = self.means, self.spreads
        for name, by_seed in self.scores.items():
            for seed, scores in [*by_seed.items(), ("mean", means[name]), ("spread", spreads[name])]:
                numbers = [getattr(scores, column.name) for column in COLUMNS]
                writer.writerow([name, seed, *map(write_number, numbers)])
        for row, scores in self.reference.items():
            writer.writerow([row, "", *(write_number(getattr(scores, column.name)) for column in COLUMNS)])
        return text.getvalue()

    def _format_json(self) -> str:
        tree = {
            "settings": self.settings,
            "rank_by": self.rank_by.name,
            "order": self.rank(),
            "verdict": self.describe_order(),
            "means": {name: jsonable_scores(scores) for name, scores in self.means.items()},
            "spreads": {name: jsonable_scores(scores) for name, scores in self.spreads.items()},
            "seeds": {
                name: {str(seed): jsonable_scores(scores) for seed, scores in by_seed.items()}
                for name, by_seed in self.scores.items()
            },
            "reference": {row: jsonable_scores(scores) for row, scores in self.reference.items()},
        }
        return json.dumps(tree, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def run_ablation(
    train: Train,
    config: str | Path,
    out: Path,
    protocol: Protocol,
    seeds: Sequence[int] = (0, 1),
    variants: Sequence[str] | None = None,
    settings: Sequence[str] = (),
    rank_by: str = "lip_correlation",
) -> AblationReport:
    """Train and evaluate every variant with every seed, except finished runs, and write the tables.

    Args:
        train: the function that trains, such as :func:`s3dnerf.training.train`.
        config: settings of the method, a path or a name in configs/.
        out: folder of the runs and tables.
        protocol: clips that the variants are evaluated on.
        seeds: two or more.
        variants: keys of :func:`list_variants`; None for all.
        settings: command line words that change the settings of all variants.
        rank_by: name of a score.

    Raises:
        UserError: a setting is invalid, no clip can be evaluated, or ``out`` holds runs with other settings.
    """
    configs = configure_variants(config, settings, variants)
    report = AblationReport(describe_settings(configs, protocol), choose_ranking(rank_by))
    for seed in seeds:
        limits.SEED.require("seeds", seed)
    if len(set(seeds)) < max(2, len(seeds)):
        raise ArgumentError("seeds", None, "there is no spread with fewer than two", "Give two or more different ones.")
    if protocol.max_frames is not None:
        limits.MAX_FRAMES.require("max_frames", protocol.max_frames)
    find_clips(protocol.clips, protocol.manifest, protocol.split, protocol.only)
    refuse_inputs(out, [protocol.clips])
    for name in REPORT_FILES:
        check_output(out / name, [protocol.manifest])
    # The inputs of training are checked before the reference is measured, which takes minutes.
    some = next(iter(configs.values()))
    choose_device(some.train.device, "train.device")
    read_root_index(some.data.root)
    report.reference = measure_reference(out / "reference", protocol)
    # All variants of one seed come first, so that a comparison is available early.
    runs = [(seed, name) for seed in seeds for name in configs]
    for seed, name in tqdm(runs, desc="runs", unit="run"):
        folder = out / name / f"seed_{seed}"
        tqdm.write(f"{VARIANTS[name].title}, seed {seed}")
        scores = evaluate_variant(train, replace(configs[name], seed=seed), folder, protocol)
        report.scores.setdefault(name, {})[seed] = scores
        report.save(out)
    return report


def list_variants() -> dict[str, Variant]:
    """Return the variants whose settings exist."""
    known = dotted_names(S3DNeRFConfig)
    return {name: variant for name, variant in VARIANTS.items() if variant.settings.keys() <= known.keys()}


def configure_variants(
    config: str | Path, words: Sequence[str] = (), chosen: Sequence[str] | None = None
) -> dict[str, S3DNeRFConfig]:
    """Return the settings of the chosen variants.

    Raises:
        UserError: a name or a setting is invalid, or a variant does not differ from the configured method.
    """
    known = list_variants()
    unknown = [name for name in chosen or () if name not in known]
    if unknown:
        hint = f"{limits.suggest(unknown[0], known)}Choose from: {', '.join(known)}."
        raise ArgumentError("variants", None, f"no variant {', '.join(unknown)}", hint)
    method = load_config(S3DNeRFConfig, config, words)
    configs = {}
    for name in chosen or known:
        changed = [f"--{setting}={value}" for setting, value in known[name].settings.items()]
        configs[name] = load_config(S3DNeRFConfig, config, [*words, *changed])
        if changed and configs[name] == method:
            raise UserError(str(config), f"is already {known[name].title}", f"Leave out {', '.join(changed)}.")
    return configs


def describe_settings(configs: Mapping[str, S3DNeRFConfig], protocol: Protocol) -> dict[str, object]:
    """Return the settings that the report states."""
    some = next(iter(configs.values()))
    return {
        "frames of": f"{some.model.image_size} pixels",
        "steps": some.train.steps,
        "of these for movement alone": some.train.motion_steps,
        "batch": some.train.batch_size,
        **_describe_protocol(protocol),
    }


def choose_ranking(name: str) -> Column:
    """Return the column of that name. Raises UserError if there is none, or if it has no better direction."""
    ranked = {column.name: column for column in COLUMNS if "↑" in column.heading or "↓" in column.heading}
    if name not in ranked:
        hint = f"{limits.suggest(name, ranked)}Choose from: {', '.join(ranked)}."
        raise ArgumentError("rank_by", None, f"cannot rank by {name}", hint)
    return ranked[name]


def is_better_high(column: Column) -> bool:
    """Whether higher is better."""
    return "↑" in column.heading


def format_spread(mean: Scores, spread: Scores, column: Column) -> str:
    """Format a cell: mean ± spread."""
    numbers = [format_score(getattr(scores, column.name), column.decimals) for scores in (mean, spread)]
    return " ± ".join(numbers)


def evaluate_variant(train: Train, config: S3DNeRFConfig, folder: Path, protocol: Protocol) -> Scores:
    """Train one variant with one seed and evaluate it. Finished steps are read from disk.

    Raises:
        UserError: the folder holds a run with other settings.
        KeyboardInterrupt: training was interrupted; the next call continues from its checkpoint.
    """
    checkpoint = train_variant(train, config, folder)
    done = folder / "scores.json"
    known = read_scores(done, _describe_protocol(protocol))
    if "ours" not in known:
        known = protocol.measure(folder / "evaluation", ("ours",), checkpoint, config.train.device)
        write_scores(done, _describe_protocol(protocol), known)
    return known["ours"]


def train_variant(train: Train, config: S3DNeRFConfig, folder: Path) -> Path:
    """Train to the last step and return the checkpoint; see :func:`evaluate_variant`."""
    made_with = folder / "config.yaml"
    # The settings are converted as when they are saved, so that only real differences count.
    if made_with.is_file() and load_config(S3DNeRFConfig, made_with) != from_dict(S3DNeRFConfig, to_dict(config)):
        raise UserError(folder, "holds a run with other settings", "Choose another --out, or delete that folder.")
    latest = find_latest(folder / "checkpoints")
    if latest is None or read_step(latest) < config.train.steps:
        latest = train(config, folder, True)
    if read_step(latest) < config.train.steps:
        raise KeyboardInterrupt
    return latest


def measure_reference(folder: Path, protocol: Protocol) -> dict[str, Scores]:
    """Return the scores of the unmoved portrait and the ground truth, from disk if they were measured before."""
    done = folder / "scores.json"
    known = read_scores(done, _describe_protocol(protocol))
    if not known:
        known = protocol.measure(folder, REFERENCE_ROWS)
        write_scores(done, _describe_protocol(protocol), known)
    return known


def _describe_protocol(protocol: Protocol) -> dict[str, object]:
    described: dict[str, object] = asdict(protocol) | {"only": " ".join(protocol.only) or None}
    return {name: str(value) if isinstance(value, Path) else value for name, value in described.items()}
