"""Rendering jobs: a queue with limits, threads that work on it, results that are kept for a while."""

from __future__ import annotations

import secrets
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any

from s3dnerf.render_options import RenderOptions
from s3dnerf.serving.errors import RequestError, describe_error
from s3dnerf.serving.settings import ServerSettings
from s3dnerf.serving.uploads import StoredFile, hide_paths, remove_files

WAITING, RUNNING, DONE, FAILED, CANCELLED = "waiting", "running", "done", "failed", "cancelled"
ENDED = (DONE, FAILED, CANCELLED)
LAST_SECONDS = 60.0
"""How long a cancelled job is waited for. The search for a face and the encoding of a picture cannot be interrupted."""


class JobEndedError(Exception):
    """The job was cancelled, or took too long."""


@dataclass
class Job:
    """A video to render."""

    client: str
    """Address of who asked for it."""
    options: RenderOptions
    image: StoredFile
    audio: StoredFile
    motion: StoredFile | None
    background: StoredFile | None
    result: Path
    """Where the video is written."""
    id: str = field(default_factory=lambda: secrets.token_urlsafe(16))
    state: str = WAITING
    frames: int = 0
    """Frames of the video; 0 until it is known."""
    frames_done: int = 0
    notes: tuple[str, ...] = ()
    """What in the picture limits the video."""
    error: str | None = None
    deadline: float = float("inf")
    ended: float = 0.0
    """When it ended, in seconds of the monotonic clock."""
    cancelled: threading.Event = field(default_factory=threading.Event)

    @property
    def files(self) -> list[StoredFile]:
        """Uploads of the job."""
        return [file for file in (self.image, self.audio, self.motion, self.background) if file is not None]

    def check(self) -> None:
        """Raise JobEndedError if the job was cancelled or takes too long."""
        if self.cancelled.is_set():
            raise JobEndedError("The job was cancelled.")
        if time.monotonic() > self.deadline:
            raise JobEndedError("The video took longer than the server allows. Use a shorter sound or a smaller size.")

    def count_frame(self) -> None:
        """Count a rendered frame. Raises JobEndedError as :meth:`check`."""
        self.frames_done += 1
        self.check()

    def describe(self) -> dict[str, Any]:
        """Return what the client may know."""
        described: dict[str, Any] = {"id": self.id, "status": self.state}
        described |= {"frames": self.frames, "frames_done": self.frames_done}
        described["progress"] = 1.0 if self.state == DONE else self.frames_done / max(self.frames, 1)
        described["notes"] = list(self.notes)
        if self.error is not None:
            described["error"] = self.error
        if self.state == DONE:
            described["result"] = f"/v1/render/{self.id}/result"
        return described


class JobQueue:
    """Jobs that wait, run and have ended."""

    def __init__(
        self, settings: ServerSettings, render: Callable[[Job], None], report: Callable[[Job, float], None]
    ) -> None:
        """Start the threads.

        Args:
            settings: limits.
            render: renders a job into its result; calls ``count_frame`` after each frame.
            report: called with each job that was worked on, and the seconds it took.
        """
        self.settings, self.render, self.report = settings, render, report
        self.jobs: dict[str, Job] = {}
        self.waiting: deque[Job] = deque()
        self.changed = threading.Condition()
        self.stopping = False
        self.threads = [
            threading.Thread(target=self._work, name=f"job-{number}", daemon=True)
            for number in range(settings.jobs_at_once)
        ]
        for thread in self.threads:
            thread.start()

    def check_room(self, client: str) -> None:
        """Raise RequestError if no further job of a client is taken."""
        with self.changed:
            if self.stopping:
                raise RequestError(HTTPStatus.SERVICE_UNAVAILABLE, "The server is stopping. Try again later.")
            if len(self.waiting) >= self.settings.waiting_jobs:
                sentence = f"{len(self.waiting)} videos wait already, which is the limit. Try again later."
                raise RequestError(HTTPStatus.SERVICE_UNAVAILABLE, sentence)
            own = sum(job.client == client and job.state not in ENDED for job in self.jobs.values())
            if own >= self.settings.client_jobs:
                sentence = f"{own} of your videos are not finished, which is the limit. Wait for one, or delete it."
                raise RequestError(HTTPStatus.TOO_MANY_REQUESTS, sentence)

    def submit(self, job: Job) -> None:
        """Add a job. Raises RequestError if there is no room."""
        with self.changed:
            self.check_room(job.client)
            self.jobs[job.id] = job
            self.waiting.append(job)
            self.changed.notify()

    def find(self, id: str) -> Job:
        """Return a job. Raises RequestError if there is none."""
        with self.changed:
            if id not in self.jobs:
                sentence = "There is no job of this id; its result may have been removed."
                raise RequestError(HTTPStatus.NOT_FOUND, sentence)
            return self.jobs[id]

    def count(self, state: str) -> int:
        """Return the number of jobs in a state."""
        with self.changed:
            return sum(job.state == state for job in self.jobs.values())

    def remove(self, id: str) -> None:
        """Cancel a job, or remove its result. Raises RequestError if there is none."""
        job = self.find(id)
        with self.changed:
            self.jobs.pop(id, None)
            job.cancelled.set()
            if job in self.waiting:
                self.waiting.remove(job)
                self._end(job, CANCELLED)
            if job.state in ENDED:
                job.result.unlink(missing_ok=True)

    def expire(self, now: float) -> None:
        """Remove the results that are older than results are kept."""
        with self.changed:
            old = [job for job in self.jobs.values() if job.state in ENDED]
            for job in old:
                if now - job.ended > self.settings.result_seconds:
                    del self.jobs[job.id]
                    job.result.unlink(missing_ok=True)

    def stop(self, seconds: float) -> None:
        """Cancel what waits, let what runs go on for so many seconds, and end the threads."""
        with self.changed:
            self.stopping = True
            while self.waiting:
                self._end(self.waiting.popleft(), CANCELLED)
            self.changed.notify_all()
        deadline = time.monotonic() + seconds
        for thread in self.threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        for job in list(self.jobs.values()):
            job.cancelled.set()
        for thread in self.threads:
            thread.join(LAST_SECONDS)

    def _work(self) -> None:
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self.stopping or self.waiting)
                if self.stopping:
                    return
                job = self.waiting.popleft()
                job.state = RUNNING
            begin = time.monotonic()
            job.deadline = begin + self.settings.job_seconds
            state, job.error = self._run(job)
            with self.changed:
                self._end(job, state)
                if job.id not in self.jobs:
                    job.result.unlink(missing_ok=True)
            self.report(job, time.monotonic() - begin)

    def _run(self, job: Job) -> tuple[str, str | None]:
        try:
            with hide_paths(job.files):
                job.check()
                self.render(job)
        except JobEndedError as error:
            return CANCELLED if job.cancelled.is_set() else FAILED, str(error)
        except Exception as error:
            return FAILED, describe_error(error)[1]
        return DONE, None

    @staticmethod
    def _end(job: Job, state: str) -> None:
        job.state, job.ended = state, time.monotonic()
        remove_files(job.files)
