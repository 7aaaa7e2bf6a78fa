"""A run over a table of jobs: what is left to do, in which processes, and a report."""

from __future__ import annotations

import csv
import os
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from tqdm import tqdm

from s3dnerf.batch.jobs import IMAGE_SEPARATOR, Job
from s3dnerf.batch.worker import BatchSettings, Outcome, render_job
from s3dnerf.data.engines import WorkerDied, run_in_processes, run_on_ray
from s3dnerf.media.files import atomic_write, is_stream
from s3dnerf.media.video.sequence import is_sequence

COLUMNS = ("line", "image", "audio", "out", "status", "frames", "seconds", "reason")
"""Columns of the report."""
REPORT_SECONDS = 60.0
"""Time between two writings of the report during a run."""
WORKER_DIED = "the process that rendered it ended abruptly (out of memory?)"


@dataclass
class BatchReport:
    """What became of the jobs."""

    jobs: list[Job]
    skipped: set[int] = field(default_factory=set)
    """Lines whose output was there before."""
    outcomes: dict[int, Outcome] = field(default_factory=dict)
    """Outcomes by line."""
    seconds: float = 0.0
    """Duration of the run."""

    @property
    def failed(self) -> list[tuple[Job, str]]:
        """The jobs that failed, with the reason."""
        found = [(job, self.outcomes[job.line].reason) for job in self.jobs if job.line in self.outcomes]
        return [(job, reason) for job, reason in found if reason is not None]

    @property
    def done(self) -> int:
        """Number of videos that were rendered."""
        return sum(outcome.reason is None for outcome in self.outcomes.values())

    def describe_status(self, job: Job) -> str:
        """Return "done", "skipped", "failed" or "not run"."""
        if job.line in self.skipped:
            return "skipped"
        if job.line not in self.outcomes:
            return "not run"
        return "done" if self.outcomes[job.line].reason is None else "failed"

    def write(self, path: str | Path) -> None:
        """Write the report as a CSV table with one row for each job. Raises UserError if that fails."""
        with atomic_write(path) as part, part.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(COLUMNS)
            for job in self.jobs:
                outcome = self.outcomes.get(job.line, Outcome())
                figures = (outcome.frames, f"{outcome.seconds:.1f}", outcome.reason or "")
                images = IMAGE_SEPARATOR.join(map(str, job.image))
                writer.writerow((job.line, images, job.audio, job.out, self.describe_status(job), *figures))

    def __str__(self) -> str:
        counts = f"{self.done} done, {len(self.skipped)} skipped, {len(self.failed)} failed"
        return f"{counts} in {self.seconds:.1f} s"


def run_jobs(
    jobs: list[Job],
    report_file: str | Path,
    settings: BatchSettings | None = None,
    *,
    workers: int = 1,
    ray: str | None = None,
    overwrite: bool = False,
) -> BatchReport:
    """Render jobs. A second run renders only what the first one did not finish, since outputs appear when complete.

    Args:
        jobs: what to render.
        report_file: CSV file for the report, which is also written during the run.
        settings: of the model and of the files.
        workers: number of processes of this machine, or of a local Ray cluster.
        ray: address of a Ray cluster, or "local"; see :func:`s3dnerf.data.engines.run_on_ray`.
        overwrite: whether outputs that exist are rendered again.

    Raises:
        UserError: there are no weights, the report cannot be written, or Ray cannot be used.
    """
    settings = settings or BatchSettings()
    report, begin = BatchReport(jobs), time.monotonic()
    report.outcomes = {job.line: Outcome(job.reason) for job in jobs if job.reason is not None}
    waiting = [job for job in jobs if job.reason is None]
    if not overwrite:
        report.skipped = {job.line for job in waiting if has_output(job.out)}
    waiting = [job for job in waiting if job.line not in report.skipped]
    if waiting and ray is None:
        settings.load_pipeline()  # Fails here if there are no weights, so that jobs are not reported as failed.
    report.write(report_file)
    try:
        _run(waiting, report, report_file, settings, workers, ray)
    finally:
        report.seconds = time.monotonic() - begin
        report.write(report_file)
    return report


def _run(
    waiting: list[Job],
    report: BatchReport,
    report_file: str | Path,
    settings: BatchSettings,
    workers: int,
    ray: str | None,
) -> None:
    written = time.monotonic()
    function = partial(render_job, settings=settings)
    results = (
        run_in_processes(function, waiting, workers) if ray is None else run_on_ray(function, waiting, ray, workers)
    )
    with tqdm(total=len(waiting), desc="batch", unit="video") as bar:
        for job, result in results:
            outcome = Outcome(WORKER_DIED) if isinstance(result, WorkerDied) else result
            report.outcomes[job.line] = outcome
            bar.set_postfix_str(f"{len(report.failed)} failed", refresh=False)
            bar.update()
            if time.monotonic() - written > REPORT_SECONDS:
                report.write(report_file)
                written = time.monotonic()


def has_output(out: Path) -> bool:
    """Tell whether an output exists: a file, or the first picture of a sequence. Pipes and devices never do."""
    if is_stream(out):
        return False
    return os.path.isfile(out.with_name(out.name % 0) if is_sequence(out) else out)
