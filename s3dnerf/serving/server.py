"""What all requests share: limits, files, jobs, live sessions and measurements."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor

from s3dnerf.pipeline import TalkingHeadPipeline
from s3dnerf.serving.jobs import RUNNING, WAITING, Job, JobQueue
from s3dnerf.serving.live import LiveSessions
from s3dnerf.serving.marks import VideoMarks
from s3dnerf.serving.metrics import Metrics
from s3dnerf.serving.renderer import Renderer
from s3dnerf.serving.settings import ServerSettings
from s3dnerf.serving.uploads import Storage
from s3dnerf.serving.webrtc import LivePeers

EXPIRE_SECONDS = 5.0
"""How often old files are looked for."""


class Server:
    """What the routes of an application share."""

    def __init__(
        self, pipeline: TalkingHeadPipeline, settings: ServerSettings, ice_servers: tuple[str, ...], marks: VideoMarks
    ) -> None:
        self.settings = settings.check()
        self.metrics = Metrics()
        self.storage = Storage(settings)
        self.renderer = Renderer(pipeline, settings.cached_portraits, marks)
        self.jobs = JobQueue(settings, self.renderer.render_job, self._report)
        self.sessions = LiveSessions(settings, self.metrics)
        self.peers = LivePeers(self.sessions, self.renderer, self.storage, ice_servers)
        self.metrics.watch("jobs_running", "Jobs that run", lambda: self.jobs.count(RUNNING))
        self.metrics.watch("jobs_waiting", "Jobs that wait", lambda: self.jobs.count(WAITING))
        self.metrics.watch("live_sessions", "Live sessions", lambda: self.sessions.open)
        self.metrics.watch("live_sessions_limit", "Live sessions that are admitted", lambda: settings.live_sessions)
        self.metrics.watch("stored_bytes", "Bytes of uploads and results", self.storage.measure_size)

    async def expire(self) -> None:
        """Remove old files, again and again."""
        while True:
            await asyncio.sleep(EXPIRE_SECONDS)
            self.jobs.expire(time.monotonic())
            self.storage.expire(time.monotonic())

    async def stop(self) -> None:
        """End all sessions and jobs, and remove all files."""
        self.sessions.stop()
        await self.peers.close()
        try:
            # A thread of its own, because those of `asyncio.to_thread` may all be busy with uploads.
            with ThreadPoolExecutor(1) as executor:
                loop = asyncio.get_running_loop()
                await loop.run_in_executor(executor, self.jobs.stop, self.settings.stop_seconds)
                await loop.run_in_executor(executor, self.sessions.close)
        finally:
            self.storage.close()

    def _report(self, job: Job, seconds: float) -> None:
        self.metrics.jobs.labels(job.state).inc()
        self.metrics.job_seconds.observe(seconds)
        self.metrics.frames.labels("job").inc(job.frames_done)
