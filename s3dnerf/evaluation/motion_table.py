"""Evaluation of motion without rendering: metrics of coefficients for real motion, baselines and a model."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from s3dnerf.data.clips import open_clips
from s3dnerf.data.motion_statistics import measure_brow_height
from s3dnerf.data.tracks import ClipTrack
from s3dnerf.errors import UserError
from s3dnerf.evaluation.motion_judge import MotionJudge, SpeechReader, measure_frame_level
from s3dnerf.evaluation.motion_plot import draw_pose_curves
from s3dnerf.evaluation.motion_rows import MotionModel, copy_motion, make_idle, make_still
from s3dnerf.face.coefficients import MotionCoefficients, compute_coefficients
from s3dnerf.face.expression_basis import load_shipped_basis
from s3dnerf.media.files import atomic_write
from s3dnerf.media.image import write_image
from s3dnerf.metrics import bootstrap_interval, measure_weighted_mean
from s3dnerf.metrics import head_motion as metrics

MIN_FRAMES = 100
"""Shorter clips are left out: agreement with speech needs four seconds."""
SEEDS = 4
DRIFT_FRAMES = 10 * 60 * 25
FLOOR_SPLITS = 20
DONATED_ROWS = ("copied", "ours, wrong speech")
"""Rows whose motion comes from another clip."""
Row = Sequence[MotionCoefficients]


@dataclass(frozen=True)
class EvaluatedClip:
    """A clip with its speech, and the real motion that is compared."""

    track: ClipTrack
    motion: MotionCoefficients
    features: np.ndarray
    speech: np.ndarray
    level: np.ndarray

    @property
    def person(self) -> str:
        """Who speaks."""
        return self.track.clip.person


@dataclass
class MotionReport:
    """Scores of each row."""

    people: list[str]
    clips: dict[str, list[dict[str, float]]]
    """Scores of each clip by row."""
    sets: dict[str, dict[str, float]]
    """Scores of a row as a whole."""
    notes: list[str]

    def summarize(self) -> dict[str, dict[str, tuple[float, float, float]]]:
        """Return people-balanced means with the ends of their 95% bootstrap intervals over people."""
        return {
            row: {n: self._summarize([s[n] for s in scores]) for n in scores[0]} for row, scores in self.clips.items()
        }

    def _summarize(self, values: Sequence[float]) -> tuple[float, float, float]:
        groups = {name: [v for v, p in zip(values, self.people, strict=True) if p == name] for name in set(self.people)}
        known = {name: [v for v in group if np.isfinite(v)] for name, group in groups.items()}
        means = {name: float(np.mean(group)) for name, group in known.items() if group}
        if not means:
            return (float("nan"),) * 3
        balanced = np.array(list(means.values()))
        return float(balanced.mean()), *bootstrap_interval(partial(measure_weighted_mean, balanced), list(means))

    def format_markdown(self) -> str:
        """Return a table with a line for each metric and a column for each row, and the notes."""
        summary = self.summarize()
        rows = list(summary)
        lines = ["| metric | " + " | ".join(rows) + " |", "| --- |" + " ---: |" * len(rows)]
        for name in next(iter(summary.values())):
            cells = [_format_interval(*summary[row][name]) for row in rows]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
        for name in dict.fromkeys(name for scores in self.sets.values() for name in scores):
            cells = [_format_number(self.sets.get(row, {}).get(name, float("nan"))) for row in rows]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
        return "\n".join([*lines, "", *(f"- {note}" for note in self.notes)])

    def save(self, out: Path) -> None:
        """Write OUT/motion.md, OUT/motion.csv (a line for each row and clip) and OUT/motion.json."""
        table = io.StringIO()
        names = list(next(iter(self.clips.values()))[0])
        writer = csv.writer(table, lineterminator="\n")
        writer.writerow(["row", "person", *names])
        for row, scores in self.clips.items():
            for person, score in zip(self.people, scores, strict=True):
                writer.writerow([row, person, *(f"{score[name]:.6g}" for name in names)])
        stored = {"people": self.people, "means": self.summarize(), "sets": self.sets, "notes": self.notes}
        report = json.dumps(_replace_nan(stored), indent=1)
        for name, text in (("md", self.format_markdown()), ("csv", table.getvalue()), ("json", report)):
            with atomic_write(out / f"motion.{name}") as temporary:
                temporary.write_text(text + "\n" * (name != "csv"), "utf-8")


def evaluate_motion(
    clips: str | Path,
    out: str | Path,
    split: str = "val",
    max_clips: int | None = None,
    model: MotionModel | None = None,
    seed: int = 0,
) -> MotionReport:
    """Compare the motion of a model and of baselines with real motion.

    Args:
        clips: prepared clips.
        out: folder for table and plots.
        split: the evaluated split. The judge is fitted to it without the person whose motion it judges.
        max_clips: use this many clips, spread over the people; all by default.
        model: generates motion; its rows are left out without one.
        seed: of idle motion; models get this and the following seeds.

    Raises:
        UserError: fewer than three people speak for four seconds.
    """
    out = Path(out)
    read = _read_clips(clips, split, max_clips)
    people = [clip.person for clip in read]
    if len(set(people)) < 3:
        raise UserError(clips, f"has {len(set(people))} people that speak in {split}", "Use three or more people.")
    judge = MotionJudge([clip.features for clip in read], [clip.motion for clip in read], people)
    others = [next(o for o in (*range(i, len(read)), *range(i)) if people[o] != people[i]) for i in range(len(read))]
    rows: dict[str, Row] = {
        "real": [clip.motion for clip in read],
        "still": [make_still(len(clip.motion)) for clip in read],
        "idle": [make_idle(clip.track, seed + index) for index, clip in enumerate(read)],
        "copied": [copy_motion(read[o].motion, len(c.motion)) for o, c in zip(others, read, strict=True)],
        "ridge": [judge.predict_motion(index) for index in range(len(read))],
    }
    report = MotionReport(people, {}, {}, [])
    if model is None:
        report.notes.append("No motion model is given: the rows `ours`, `ours, wrong speech` and seeds are left out.")
    else:
        rows |= _generate_rows(model, read, others, seed)
    real = _cut_windows(rows["real"], people)
    for row, motions in rows.items():
        report.clips[row] = [
            _measure_clip(motion, read, index, judge, others[index] if row in DONATED_ROWS else None)
            for index, motion in enumerate(motions)
        ]
        report.sets[row] = {"pose Frechet": metrics.measure_pose_frechet(real, _cut_windows(motions, people))}
    report.sets["real"]["pose Frechet"] = _measure_floor(real, seed)
    report.notes.append("Pose Frechet of `real` is the floor: halves of the people against each other, mean of splits.")
    if model is not None:
        report.sets["ours"] |= _measure_model(model, read, rows, seed)
    report.notes.append("Beat alignment is for comparison with papers: noise scores as well as real motion.")
    report.save(out)
    for index, clip in enumerate(read):
        curves = {row: motions[index].pose for row, motions in rows.items() if row not in ("still", "copied")}
        write_image(out / "curves" / f"{clip.track.clip.id}.png", draw_pose_curves(curves))
    return report


def _read_clips(root: str | Path, split: str, max_clips: int | None) -> list[EvaluatedClip]:
    clips, reader = open_clips(root, split), SpeechReader()
    chosen = clips.find_speaking(MIN_FRAMES).tolist()
    if max_clips is not None and max_clips < len(chosen):
        chosen = [chosen[i] for i in np.linspace(0, len(chosen) - 1, max_clips).round().astype(int)]
    read = []
    for row in tqdm(chosen, desc="clips", unit="clip"):
        track = clips.read_track(row)
        if track.speech is None:
            continue
        frames = track.clip.frames
        level = measure_frame_level(track.speech, frames)
        features = reader.read(track.speech, frames)
        read.append(EvaluatedClip(track, compute_coefficients(track), features, track.speech, level))
    return read


def _measure_clip(
    motion: MotionCoefficients, read: list[EvaluatedClip], index: int, judge: MotionJudge, donor: int | None
) -> dict[str, float]:
    """Measure the motion of a clip, made from that of the clip ``donor`` or its speech, if not from its own."""
    clip = read[index]
    excluded = {clip.person, clip.person if donor is None else read[donor].person}
    wrong = [other.level for other in read if other.person not in excluded]
    rotation = motion.pose[:, :3]
    degrees = np.degrees(rotation.astype(np.float64))
    scores = {"speed (°/s)": metrics.measure_speed(rotation)}
    for axis, std, spread in zip(
        ("pitch", "yaw", "roll"), degrees.std(axis=0), metrics.measure_range(degrees), strict=True
    ):
        scores |= {f"{axis} std (°)": float(std), f"{axis} range (°)": float(spread)}
    shares = metrics.measure_spectrum_shares(rotation)
    scores |= {
        f"power {band} Hz": float(share) for band, share in zip(("< 0.5", "0.5-1.5", "> 1.5"), shares, strict=True)
    }
    scores["shift std (head)"] = float(np.hypot(*motion.pose[:, 3:5].std(axis=0)))
    scores["zoom std"] = float(motion.pose[:, 5].std())
    blinks = metrics.measure_blinks(motion.eyes)
    scores |= {"blinks/min": blinks.per_minute, "closed (s)": blinks.closed_seconds}
    scores["variation of pauses"] = blinks.pause_variation
    state = np.concatenate([motion.eyes - 1.0, motion.gaze], axis=1)
    scores["brow std (head)"] = float(
        measure_brow_height(load_shipped_basis().displace(motion.expression, state)).std()
    )
    scores["gaze std (eye widths)"] = float(np.hypot(*motion.gaze.std(axis=0)))
    scores["head-speech agreement (AUC)"] = judge.measure_agreement(motion, index, donor)
    scores["level-speed r"] = metrics.measure_level_speed_correlation(clip.level, rotation)
    scores["level-speed r, wrong speech"] = float(
        np.nanmean([metrics.measure_level_speed_correlation(level, rotation) for level in wrong])
    )
    scores["beat alignment"] = metrics.measure_beat_alignment(clip.level, rotation)
    return scores


def _generate_rows(model: MotionModel, read: list[EvaluatedClip], others: list[int], seed: int) -> dict[str, Row]:
    lengths = [len(clip.motion) for clip in read]
    rows: dict[str, Row] = {}
    for number in range(SEEDS):
        name = "ours" if number == 0 else f"ours, seed {seed + number}"
        pairs = zip(read, lengths, strict=True)
        rows[name] = [model.generate(clip.speech, frames, seed + number) for clip, frames in pairs]
    wrong = [np.resize(read[o].speech, len(clip.speech)) for o, clip in zip(others, read, strict=True)]
    rows["ours, wrong speech"] = [
        model.generate(sound, frames, seed) for sound, frames in zip(wrong, lengths, strict=True)
    ]
    return rows


def _measure_model(
    model: MotionModel, read: list[EvaluatedClip], rows: Mapping[str, Row], seed: int
) -> dict[str, float]:
    """Measure what needs several seeds, known joins or a long recording."""
    seeds = [row for name, row in rows.items() if name == "ours" or name.startswith("ours, seed")]
    spread = [
        metrics.measure_seed_diversity(np.stack([one.pose[:, :3] for one in clip])) for clip in zip(*seeds, strict=True)
    ]
    speech = np.resize(np.concatenate([clip.speech for clip in read]), DRIFT_FRAMES * 640)
    long = model.generate(speech, DRIFT_FRAMES, seed).pose[:, :3]
    return {
        "seed diversity (°)": float(np.mean(spread)),
        "acceleration at joins / elsewhere": metrics.measure_join_ratio(long, model.find_joins(DRIFT_FRAMES)),
        "drift in ten minutes (°)": metrics.measure_drift(long),
    }


def _cut_windows(motions: Row, people: Sequence[str]) -> list[np.ndarray]:
    """Return the pose windows of each person."""
    windows = [metrics.cut_pose_windows(motion.pose) for motion in motions]
    names = sorted(set(people))
    return [np.concatenate([w for w, p in zip(windows, people, strict=True) if p == name]) for name in names]


def _measure_floor(real: list[np.ndarray], seed: int) -> float:
    rng = np.random.default_rng(seed)
    distances = []
    for _ in range(FLOOR_SPLITS):
        order = rng.permutation(len(real))
        one, other = ([real[i] for i in half] for half in np.array_split(order, 2))
        distances.append(metrics.measure_pose_frechet(one, other, reference=real))
    return float(np.mean(distances))


def _format_number(value: float) -> str:
    return f"{value:.3g}" if np.isfinite(value) else "-"


def _format_interval(mean: float, low: float, high: float) -> str:
    return f"{_format_number(mean)} ({_format_number(low)} … {_format_number(high)})" if np.isfinite(mean) else "-"


def _replace_nan(value: object) -> object:
    if isinstance(value, dict):
        return {key: _replace_nan(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_replace_nan(one) for one in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
