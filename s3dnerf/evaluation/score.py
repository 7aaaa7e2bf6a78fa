"""Scoring of talking-head videos of any method against real clips."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from s3dnerf import limits
from s3dnerf.data.engines import WorkerDied, run_in_processes
from s3dnerf.data.videos import VIDEO_SUFFIXES
from s3dnerf.errors import UserError
from s3dnerf.evaluation.clip_list import find_clips, find_people, list_videos, read_manifest
from s3dnerf.evaluation.contact_sheet import draw_overview
from s3dnerf.evaluation.framing import CROPS
from s3dnerf.evaluation.measures import TASKS
from s3dnerf.evaluation.protocol import hash_file
from s3dnerf.evaluation.score_jobs import REAL_METHOD, ScoreJob, ScoreSettings, VideoResult, features_path, run_job
from s3dnerf.evaluation.score_report import SCORE_FILES, ScoreReport
from s3dnerf.evaluation.weights_folder import find_weights
from s3dnerf.media.files import check_output, refuse_inputs
from s3dnerf.media.image import read_image, write_image
from s3dnerf.metrics import FeatureStatistics, measure_frechet_distance
from s3dnerf.metrics.face_descriptor import INSTALL_COMMAND, has_face_descriptor

OVERVIEW_SHEETS = 24
"""Maximum number of sheets on the overview; every video has a sheet of its own."""
SAVE_SECONDS = 60.0
DIED = "the process that scored it ended abruptly (out of memory?)"


@dataclass(frozen=True)
class RealClips:
    """The real clips of a comparison."""

    folder: Path
    """A ``.wav`` beside a clip replaces its audio track."""
    manifest: Path | None = None
    """CSV file with the column ``file``, and optionally ``split``, ``identity`` (the person) and ``sha256``. Without it
    every clip counts as a person of its own."""
    split: str | None = None
    """Only the clips of this split of the manifest."""
    only: Sequence[str] = ()
    """Only these clips or people, see ``select_names``; all if empty."""

    def find(self) -> list[Path]:
        """List the clips. Raises UserError as ``find_clips`` does."""
        return find_clips(self.folder, self.manifest, self.split, self.only, VIDEO_SUFFIXES)

    def describe(self) -> str:
        """Return which clips these are, with the SHA-256 of the manifest, for a report."""
        parts = [f"real clips {self.folder}"]
        if self.manifest is not None:
            parts.append(f"manifest {self.manifest.name} (sha256 {hash_file(self.manifest)})")
        if self.split is not None:
            parts.append(f"split {self.split}")
        if self.only:
            parts.append(f"only {' '.join(self.only)}")
        return ", ".join(parts)

    def read_manifest(self) -> dict[str, dict[str, str]]:
        """Return the cells of the manifest by clip; empty without one."""
        return {} if self.manifest is None else read_manifest(self.manifest, self.split)


def score_videos(
    generated: str | Path,
    real: RealClips | str | Path,
    out: str | Path,
    against: Sequence[str | Path] = (),
    settings: ScoreSettings | None = None,
    workers: int = 2,
) -> ScoreReport:
    """Score the videos in a folder against the real clips of the same names.

    Writes OUT/scores.json, scores.csv (every video), scores.md and contact_sheet.png, and a sheet of every video in
    OUT/sheets. Results are kept in OUT/clips, so that a run that was ended goes on, and only new videos are scored.
    What cannot be scored is listed with its reason and stops nothing.

    Args:
        generated: folder of the videos to score. A ``.wav`` beside a video replaces its audio track.
        real: the real clips, or their folder.
        out: output folder.
        against: folders of other methods' videos of the same clips, scored as well and compared with ``generated``.
        settings: how videos are scored.
        workers: number of processes.

    Raises:
        UserError: an argument is invalid, or no video could be scored.
    """
    settings, out = settings or ScoreSettings(), Path(out)
    real = real if isinstance(real, RealClips) else RealClips(Path(real))
    check_score_settings(settings, workers)
    methods = name_methods([Path(generated), *map(Path, against)])
    for name in SCORE_FILES:
        check_output(out / name, [real.manifest])
    refuse_inputs(out, [real.folder, *methods.values()])
    missing = find_weights(settings.weights_folder).missing
    if not has_face_descriptor():
        missing = missing | {"identity_distance": f"not installed; run: {INSTALL_COMMAND}"}
    clips = real.find()
    report = ScoreReport(settings, methods, find_people(clips, real.manifest), real.folder, missing=missing)
    report.clips = real.describe()
    listed = real.read_manifest()
    if not real.only:
        report_absences(listed, clips, report)
    jobs = list(match_videos(clips, listed, out, report))
    collect(run_jobs(jobs, settings, workers), len(jobs), report, out)
    if not any(report.scores[method] for method in methods):
        method = next(iter(methods))
        reason = next(iter(report.failed[method].values()), "no file has the name of a real clip")
        raise UserError(methods[method], f"no video could be scored ({reason})", "Name videos like their real clips.")
    report.of_sets = measure_sets(report, out)
    report.save(out)
    write_overview(report, out)
    return report


def check_score_settings(settings: ScoreSettings, workers: int) -> None:
    """Raise UserError unless the settings are valid."""
    limits.require_choice("--task", settings.task, TASKS)
    limits.require_choice("--crop", settings.crop, CROPS)
    limits.WORKERS.require("--workers", workers)
    if settings.max_frames is not None:
        limits.MAX_FRAMES.require("--max-frames", settings.max_frames)


def name_methods(folders: Sequence[Path]) -> dict[str, Path]:
    """Name methods after their folders, with as many parents as tell them apart.

    Raises:
        UserError: a folder is given twice.
    """
    paths = [folder.resolve() for folder in folders]
    for folder, path in zip(folders, paths, strict=True):
        if paths.count(path) > 1:
            raise UserError(folder, "is given twice", "Compare a method with another one.")
    for depth in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["_".join(path.parts[-depth:]).strip("/") or "root" for path in paths]
        if len({*names, REAL_METHOD}) > len(names):
            return dict(zip(names, folders, strict=True))
    raise UserError(folders[0], f"cannot be told from {REAL_METHOD}", "Use another name for the folder.")


def report_absences(listed: Mapping[str, Mapping[str, str]], clips: Sequence[Path], report: ScoreReport) -> None:
    """List the videos without a real clip, and the clips of a manifest that are not in the folder of the real clips."""
    found = {clip.stem for clip in clips}
    for name, cells in listed.items():
        if name not in found and Path(cells["file"]).suffix.lower() in VIDEO_SUFFIXES:
            report.fail(report.methods, name, f"its real clip is in the manifest, but not in {report.real}")
    for method, folder in report.methods.items():
        names = {path.stem for path in list_videos(folder, VIDEO_SUFFIXES)}
        report.unmatched[method] = sorted(names - found - listed.keys())


def match_videos(
    clips: Sequence[Path], listed: Mapping[str, Mapping[str, str]], out: Path, report: ScoreReport
) -> Iterator[ScoreJob]:
    """Yield the jobs of all real clips with videos; list in the report what has no partner."""
    videos = {
        method: {path.stem: path for path in list_videos(folder, VIDEO_SUFFIXES)}
        for method, folder in report.methods.items()
    }
    for clip in clips:
        checksum = listed.get(clip.stem, {}).get("sha256")
        if checksum and checksum.lower() != hash_file(clip):
            report.fail(report.methods, clip.stem, "its real clip is another file than the manifest's (sha256 differs)")
            continue
        have = {method: paths[clip.stem] for method, paths in videos.items() if clip.stem in paths}
        lacking = [method for method in report.methods if method not in have]
        report.fail(lacking, clip.stem, "missing: no video of this name")
        if have:
            yield ScoreJob(clip.stem, clip, have, out)


def run_jobs(
    jobs: Sequence[ScoreJob], settings: ScoreSettings, workers: int
) -> Iterator[tuple[ScoreJob, dict[str, VideoResult]]]:
    """Run jobs, in this process if there is one worker, and yield each with its results as it is done."""
    function: Callable[[ScoreJob], dict[str, VideoResult]] = partial(run_job, settings=settings)
    if workers == 1:
        yield from ((job, function(job)) for job in jobs)
        return
    for job, results in run_in_processes(function, jobs, workers):
        if isinstance(results, WorkerDied):
            yield job, {method: VideoResult(reason=DIED) for method in job.generated}
        else:
            yield job, results


def collect(
    done: Iterable[tuple[ScoreJob, dict[str, VideoResult]]], count: int, report: ScoreReport, out: Path
) -> None:
    """Add results to a report as they come, and save it every minute: its intervals take seconds."""
    saved = time.monotonic()
    with tqdm(total=count, desc="score", unit="clip") as bar:
        for job, results in done:
            for method, result in results.items():
                report.add(method, job.clip, result)
            if time.monotonic() - saved > SAVE_SECONDS:
                report.save(out)
                saved = time.monotonic()
            failed = sum(map(len, report.failed.values()))
            bar.set_postfix_str(f"{failed} videos not scored" if failed else "", refresh=False)
            bar.update()


def measure_sets(report: ScoreReport, out: Path) -> dict[str, dict[str, float]]:
    """Measure the FID of each method over all of its scored clips, where their features were kept."""
    if "fid" in report.missing:
        return {}
    fid = {}
    for method in report.methods:
        statistics: list[FeatureStatistics] = []
        for clip in report.scores[method]:
            pair = np.load(features_path(out, method, clip), allow_pickle=False)
            statistics = statistics or [FeatureStatistics(pair.shape[-1]) for _ in pair]
            for one, features in zip(statistics, pair, strict=True):
                one.add(features)
        if statistics:
            fid[method] = {"fid": measure_frechet_distance(*statistics)}
    return fid


def write_overview(report: ScoreReport, out: Path) -> None:
    """Draw the sheets of the first clips of all methods into OUT/contact_sheet.png."""
    paths = [
        out / "sheets" / method / f"{clip}.png"
        for clip in report.people
        for method in report.methods
        if clip in report.scores[method]
    ]
    sheets = [read_image(path) for path in paths[:OVERVIEW_SHEETS]]
    write_image(out / "contact_sheet.png", draw_overview(sheets))
