"""Self-reenactment: the first frame of a clip is the source image, its audio and head poses drive the motion."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

import s3dnerf
from s3dnerf import limits
from s3dnerf.errors import ArgumentError, UserError
from s3dnerf.evaluation.clip_list import find_clips, find_people, select_names
from s3dnerf.evaluation.contact_sheet import draw_overview
from s3dnerf.evaluation.finished_clips import TARGET, FinishedClip, FinishedClips, hash_checkpoint
from s3dnerf.evaluation.report import REPORT_FILES, EvaluationReport, load_report
from s3dnerf.evaluation.rows import DEFAULT_ROWS, MODEL_ROWS, ROWS, ClipJob, Reenactor
from s3dnerf.evaluation.scorer import load_scorer
from s3dnerf.evaluation.weights_folder import find_weights
from s3dnerf.media.files import check_output, refuse_inputs
from s3dnerf.media.image import write_image
from s3dnerf.metrics import FeatureStatistics, measure_frechet_distance

OVERVIEW_CLIPS = 24
"""Maximum number of clips on the overview sheet; every clip has a sheet of its own."""


def evaluate_clips(
    clips: str | Path,
    out: str | Path,
    checkpoint: str | Path | None = None,
    manifest: str | Path | None = None,
    split: str | None = None,
    max_frames: int | None = None,
    device: str = "cpu",
    rows: Sequence[str] = DEFAULT_ROWS,
    seed: int = 0,
    pipeline: Reenactor | None = None,
    weights_folder: str | Path | None = None,
    fit_steps: int = 0,
    only: Sequence[str] = (),
    subset: Sequence[str] = (),
    compare: str | Path | None = None,
    resume: bool = False,
) -> EvaluationReport:
    """Reenact every mp4 in a folder and score it against the original, frame by frame.

    Writes OUT/<clip>.mp4 (row ``ours``), OUT/rows/<row>/<clip>.mp4 (the other rows), OUT/sheets/<clip>.png and
    OUT/contact_sheet.png (target above generated), and OUT/table.md, table.csv and report.json, which are updated after
    each clip. Clips that cannot be used (no face, no audio, broken) are listed with a reason. OUT/finished holds what
    ``resume`` needs.

    Args:
        clips: folder of the mp4 files. A ``.wav`` next to a clip replaces the audio track of the clip.
        out: output folder.
        checkpoint: a folder or hub id; None for the shipped weights.
        manifest: a CSV file with the columns ``file`` and ``split``, and ``identity`` for the people in the clips.
            Without it every clip counts as a person of its own.
        split: evaluate only the clips of this split.
        max_frames: evaluate only so many frames of each clip, at 25 per second.
        device: where the model and the networks run.
        rows: which of :data:`ROWS` to generate. The default leaves out those of diffusion.
        seed: seed of the blinks, from which every clip gets its own.
        pipeline: used instead of loading the checkpoint.
        weights_folder: folder with the weights of public networks, see ``weights_folder.WEIGHTS_FILES``. Scores whose
            weights are missing are not measured.
        fit_steps: optimization steps that fit the model to each source image.
        only: evaluate only these clips or people; all if empty.
        subset: clips or people whose means the summary gives as well.
        compare: output folder of an earlier evaluation of the same clips, which the summary compares with this one.
        resume: go on after an interruption: clips that were finished with the same settings, clip, weights and version
            of the package are not repeated.

    Raises:
        UserError: no clip can be evaluated, or an argument is invalid.
    """
    clips, out, rows = Path(clips), Path(out), tuple(dict.fromkeys(rows))
    _check_settings(clips, out, rows, max_frames, seed, fit_steps)
    for name in REPORT_FILES:
        check_output(out / name, [manifest])
    videos = find_clips(clips, manifest, split, only)
    people = find_people(videos, manifest)
    chosen = select_names("subset", subset, people)
    earlier = load_report(compare) if compare else None
    weights = find_weights(weights_folder)
    scorer = load_scorer(weights, device)
    if pipeline is None and set(rows) & set(MODEL_ROWS):
        pipeline = _load_pipeline(checkpoint, device, fit_steps)
    settings: dict[str, object] = {
        "clips": str(clips),
        "checkpoint": str(checkpoint) if checkpoint else None,
        "split": split,
    }
    settings |= {"max_frames": max_frames, "seed": seed, "fit_steps": fit_steps}
    settings |= {"weights_folder": str(weights_folder) if weights_folder else None}
    made_with = {**settings, "version": s3dnerf.__version__, "model": hash_checkpoint(checkpoint)}
    finished = FinishedClips(out, made_with, rows, "fid" not in weights.missing)
    settings |= {"only": " ".join(only) or None, "subset": " ".join(subset) or None}
    report = EvaluationReport(settings, {row: {} for row in rows}, missing=weights.missing, people=people)
    report.subset, report.earlier = chosen, earlier
    fid = FIDAccumulator()
    overview: list[np.ndarray] = []
    if not resume:
        for video in videos:
            finished.forget(video)
    for video in tqdm(videos, desc="clips", unit="clip"):
        result = finished.read(video) if resume else None
        if result is None:
            try:
                result = ClipJob(video, out, max_frames, seed, pipeline, scorer).run(rows).finish()
            except UserError as error:
                report.skipped[video.stem] = f"{error.reason}. {error.hint}"
                continue
            finished.write(video, result)
        for row, scores in result.scores.items():
            report.clips[row][video.stem] = scores
        fid.add(result)
        if len(overview) < OVERVIEW_CLIPS:
            overview.append(result.sheet)
            write_image(out / "contact_sheet.png", draw_overview(overview))
        report.save(out)
    if not overview:
        reasons = "; ".join(f"{clip}: {reason}" for clip, reason in report.skipped.items())
        raise UserError(clips, f"no clip could be evaluated ({reasons})", "Use videos of one person speaking.")
    report.fid = fid.compute()
    report.save(out)
    return report


class FIDAccumulator:
    """Accumulates Inception features over clips, of the targets and of each row, for FID."""

    def __init__(self) -> None:
        self._target: FeatureStatistics | None = None
        self._generated: dict[str, FeatureStatistics] = {}

    def add(self, result: FinishedClip) -> None:
        """Add a clip, unless it was scored without Inception."""
        if not result.features:
            return
        target = result.features[TARGET]
        self._target = self._target or FeatureStatistics(target.shape[1])
        self._target.add(target)
        for row in result.scores:
            self._generated.setdefault(row, FeatureStatistics(target.shape[1])).add(result.features[row])

    def compute(self) -> dict[str, float]:
        """Return the FID of each row; empty without features."""
        if self._target is None:
            return {}
        return {row: measure_frechet_distance(self._target, generated) for row, generated in self._generated.items()}


def _check_settings(
    clips: Path, out: Path, rows: Sequence[str], max_frames: int | None, seed: int, fit_steps: int
) -> None:
    unknown = [row for row in rows if row not in ROWS]
    if unknown or not rows:
        question = limits.suggest(unknown[0], ROWS) if unknown else ""
        reason = f"no row {', '.join(unknown)}" if unknown else "none given"
        raise ArgumentError("rows", None, reason, f"{question}Choose from: {', '.join(ROWS)}.")
    if max_frames is not None:
        limits.MAX_FRAMES.require("max_frames", max_frames)
    limits.SEED.require("seed", seed)
    limits.FIT_STEPS.require("fit_steps", fit_steps)
    for folder in (out, *(out / "rows" / row for row in rows)):
        refuse_inputs(folder, [clips])


def _load_pipeline(checkpoint: str | Path | None, device: str, fit_steps: int) -> Reenactor:
    # Imported here because rows without a model do not need torch.
    from s3dnerf.pipeline import TalkingHeadPipeline

    return TalkingHeadPipeline.from_pretrained(checkpoint, device, fit_steps)
