"""Evaluation of motion without rendering: metrics of coefficients for real motion, baselines and a model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from s3dnerf import limits
from s3dnerf.data.clips import open_clips
from s3dnerf.data.index import decode_text
from s3dnerf.errors import UserError
from s3dnerf.evaluation.estimates import NAN
from s3dnerf.evaluation.motion_judge import MotionJudge, SpeechReader
from s3dnerf.evaluation.motion_plot import draw_pose_curves
from s3dnerf.evaluation.motion_report import MotionReport
from s3dnerf.evaluation.motion_rows import (
    OURS,
    WRONG_SPEECH,
    MotionModel,
    Row,
    copy_motion,
    generate_rows,
    make_idle,
    make_random_walk,
    make_still,
    make_white_noise,
)
from s3dnerf.evaluation.motion_scores import (
    EvaluatedClip,
    cut_windows,
    measure_clip,
    measure_floor,
    measure_long_recording,
    measure_seeds,
)
from s3dnerf.evaluation.motion_theval import BROWS, HEAD, average_tracks, compare_with_real
from s3dnerf.face.coefficients import compute_coefficients
from s3dnerf.media.image import write_image
from s3dnerf.metrics import head_motion as metrics

MIN_FRAMES = 100
"""Shorter clips are left out: agreement with speech needs four seconds."""
MIN_PEOPLE = 3
"""A clip, the donor of its copied motion, and one whose speech is that of neither."""
MAX_REFERENCE_CLIPS = 300
COPIED, WHITE_NOISE, RANDOM_WALK = "copied", "white noise", "random walk"
FRECHET = "pose Fréchet"


def evaluate_motion(
    clips: str | Path,
    out: str | Path,
    split: str = "val",
    reference: str = "train",
    max_clips: int | None = None,
    model: MotionModel | None = None,
    seed: int = 0,
    liveliness: float = 1.0,
) -> MotionReport:
    """Compare the motion of a model and of baselines with real motion.

    Args:
        clips: prepared clips.
        out: folder for table and plots.
        split: the evaluated split.
        reference: split of other people. The judge is fitted to it as well, and the Fréchet distance is from it.
        max_clips: evaluate this many clips, of as many people as there are; all by default.
        model: generates motion; its rows are left out without one.
        seed: of idle motion and noise; the model gets this and the following seeds.
        liveliness: of the model, see :class:`~s3dnerf.evaluation.motion_rows.MotionModel`.

    Raises:
        UserError: ``max_clips`` is below three; fewer than three people of the split, or no other people of the
            reference, speak for four seconds.
    """
    if max_clips is not None:
        limits.MOTION_CLIPS.require("max_clips", max_clips)
    read, others = _read_splits(clips, split, reference, max_clips)
    known = [*read, *others]
    judge = MotionJudge([clip.features for clip in known], [clip.motion for clip in known], [c.person for c in known])
    people = [clip.person for clip in read]
    donors = _find_donors(people)
    rows = _make_baselines(read, donors, judge, seed)
    if model is not None:
        rows |= generate_rows(model, [clip.speech for clip in read], donors, seed, liveliness)
    seeds = [row for row in rows if row.startswith(f"{OURS}, seed")]
    report = MotionReport(people, {}, {}, tuple(row for row in rows if row in (WHITE_NOISE, RANDOM_WALK, *seeds)))
    real = cut_windows([clip.motion for clip in others], [clip.person for clip in others])
    for row, motions in tqdm(rows.items(), desc="rows", unit="row"):
        is_donated = row in (COPIED, WRONG_SPEECH)
        report.clips[row] = [
            measure_clip(motion, read, index, judge, donors[index] if is_donated else None)
            for index, motion in enumerate(motions)
        ]
        windows = list(cut_windows(motions, people).values())
        report.sets[row] = {FRECHET: (metrics.measure_pose_frechet(list(real.values()), windows), NAN, NAN)}
    for row, closeness in compare_with_real(report.clips, people).items():
        report.sets[row] |= closeness
    if model is not None:
        over_seeds = zip(*(rows[row] for row in (OURS, *seeds)), strict=True)
        for scores, motions in zip(report.clips[OURS], over_seeds, strict=True):
            scores |= measure_seeds(motions)
        speech = np.concatenate([clip.speech for clip in read])
        report.sets[OURS] |= measure_long_recording(model, speech, seed, liveliness)
    floor = measure_floor(real, cut_windows(rows["real"], people), seed)
    report.notes = _describe(report, read, others, reference, floor)
    report.save(Path(out))
    for index, clip in enumerate(read):
        curves = {row: motions[index].pose for row, motions in rows.items() if row not in report.details}
        write_image(Path(out) / "curves" / f"{clip.track.clip.id}.png", draw_pose_curves(curves, clip.level))
    return report


def choose_clips(people: Sequence[str], count: int) -> list[int]:
    """Choose clips by number: one of each person, then a second of each, and so on, in order.

    If there are more people than clips wanted, they are spread evenly.
    """
    earlier: dict[str, int] = {}
    turns = []
    for name in people:
        turns.append(earlier.get(name, 0))
        earlier[name] = turns[-1] + 1
    firsts = [clip for clip, turn in enumerate(turns) if turn == 0]
    if count < len(firsts):
        return [firsts[i] for i in np.linspace(0, len(firsts) - 1, count).round().astype(int).tolist()]
    return sorted(sorted(range(len(people)), key=lambda clip: (turns[clip], clip))[:count])


def _read_splits(
    root: str | Path, split: str, reference: str, max_clips: int | None
) -> tuple[list[EvaluatedClip], list[EvaluatedClip]]:
    """Return the clips of a split that are evaluated, and those of other people of the reference."""
    chosen = _find_speaking(root, split)
    if len(set(chosen.values())) < MIN_PEOPLE:
        reason = f"has {len(set(chosen.values()))} people that speak for four seconds in the split {split}"
        raise UserError(root, reason, f"Use {MIN_PEOPLE} or more people.")
    people = set(chosen.values())
    others = {clip: name for clip, name in _find_speaking(root, reference).items() if name not in people}
    if not others:
        reason = f"has no other people that speak for four seconds in the split {reference}"
        raise UserError(root, reason, "Name a split of other people by --reference.")
    read = _read_clips(root, split, chosen, max_clips)
    return read, _read_clips(root, reference, others, MAX_REFERENCE_CLIPS)


def _find_speaking(root: str | Path, split: str) -> dict[int, str]:
    """Return the people of the clips of a split that speak for four seconds, by number of the clip."""
    clips = open_clips(root, split)
    return {row: decode_text(clips.index.person[row]) for row in clips.find_speaking(MIN_FRAMES).tolist()}


def _read_clips(root: str | Path, split: str, people: dict[int, str], max_clips: int | None) -> list[EvaluatedClip]:
    """Read the clips with these numbers, at most ``max_clips`` of them."""
    clips, reader, rows = open_clips(root, split), SpeechReader(), list(people)
    read = []
    for choice in tqdm(choose_clips(list(people.values()), max_clips or len(rows)), f"clips of {split}", unit="clip"):
        track = clips.read_track(rows[choice])
        if track.speech is None:
            raise UserError(track.clip.path, "has no speech, and the index says that it has", "Prepare it again.")
        frames = track.clip.frames
        speech = track.speech[: frames * 640]
        read.append(EvaluatedClip(track, compute_coefficients(track), speech, reader.read(speech, frames)))
    return read


def _find_donors(people: Sequence[str]) -> list[int]:
    """Return for each clip the number of the next one of another person."""
    count = len(people)
    return [next(o % count for o in range(i, i + count) if people[o % count] != people[i]) for i in range(count)]


def _make_baselines(
    read: Sequence[EvaluatedClip], donors: Sequence[int], judge: MotionJudge, seed: int
) -> dict[str, Row]:
    real = [clip.motion for clip in read]
    return {
        "real": real,
        "still": [make_still(len(motion)) for motion in real],
        "idle": [make_idle(clip.track, seed + index) for index, clip in enumerate(read)],
        COPIED: [copy_motion(real[donor], len(motion)) for donor, motion in zip(donors, real, strict=True)],
        "ridge": [judge.predict_motion(index) for index in range(len(read))],
        WHITE_NOISE: [make_white_noise(motion, seed + index) for index, motion in enumerate(real)],
        RANDOM_WALK: [make_random_walk(motion, seed + index) for index, motion in enumerate(real)],
    }


def _describe(
    report: MotionReport,
    read: Sequence[EvaluatedClip],
    others: Sequence[EvaluatedClip],
    reference: str,
    floor: tuple[float, float, float],
) -> list[str]:
    """Return the notes below the tables."""
    summary = report.summarize()
    beats = {row: f"{summary[row]['beat alignment'][0]:.2f}" for row in ("real", WHITE_NOISE, RANDOM_WALK)}
    people, seconds = len({clip.person for clip in read}), sum(len(clip.motion) for clip in read) / 25
    notes = [
        f"{len(read)} clips of {people} people, {seconds:.0f} s. People weigh the same; intervals are 95 % bootstrap "
        "intervals over people.",
        f"Head-speech agreement is that of a regression on the other people of both splits, "
        f"{len({clip.person for clip in others})} of {reference}. `ridge` is that regression, so its agreement is no "
        "merit.",
    ]
    if np.isfinite(floor[0]):
        notes.append(
            f"{FRECHET} is the distance from real people of {reference}. As many of them, with as many windows as are "
            f"evaluated here, are {floor[0]:.2f} from the others (90 % of draws: {floor[1]:.2f} to {floor[2]:.2f})."
        )
    else:
        notes.append(f"{FRECHET} is the distance from real people of {reference}, too few to measure its floor.")
    notes.append(
        "Beat alignment is for comparison with papers only, it rewards noise: "
        f"{beats[WHITE_NOISE]} for white noise, {beats[RANDOM_WALK]} for a random walk, {beats['real']} for real heads."
    )
    tracked = average_tracks([clip.track for clip in read])
    measured = f"head {tracked[HEAD]:.2f} px, brows {tracked[BROWS]:.5f}"
    notes.append(f"Real clips by THEval's measures on tracked landmarks in place of coefficients: {measured}.")
    if OURS not in report.clips:
        notes.append("No motion model is given: its rows, seeds, joins and drift are left out.")
    return notes
