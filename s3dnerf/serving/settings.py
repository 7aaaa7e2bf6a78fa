"""Limits of the server, which are also the options of ``s3dnerf serve``."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from s3dnerf.limits import IntRange

MEGABYTE = 2**20


def _limit(default: int, text: str, minimum: int = 1, maximum: int = 1_000_000) -> Any:
    """Declare a limit: its default, its help text and its range."""
    return field(default=default, metadata={"help": text, "whole": IntRange(minimum, maximum)})


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """What one server accepts. Requests beyond a limit are refused with one sentence."""

    upload_megabytes: int = _limit(32, "largest request in megabytes; larger ones get 413")
    sound_seconds: int = _limit(600, "longest sound and driving video; longer ones get 413")
    picture_megapixels: int = _limit(50, "largest picture; larger ones get 413")
    jobs_at_once: int = _limit(1, "videos that are rendered at once, each in a thread", maximum=64)
    waiting_jobs: int = _limit(16, "videos that may wait; further ones get 503")
    client_jobs: int = _limit(4, "videos that wait or are rendered for one address; further ones get 429")
    job_seconds: int = _limit(1800, "longest time of rendering a video; it is ended then")
    result_seconds: int = _limit(3600, "how long results and uploaded pictures are kept")
    stored_megabytes: int = _limit(2000, "room for uploads and results; uploads beyond it get 503")
    live_sessions: int = _limit(1, "live sessions at once; the next one gets 503", minimum=0, maximum=1000)
    live_seconds: int = _limit(3600, "longest live session")
    idle_seconds: int = _limit(60, "a live session ends when its client sends nothing for so long")
    cached_portraits: int = _limit(8, "encoded pictures that are kept in memory")
    stop_seconds: int = _limit(20, "how long running jobs may go on after SIGTERM; they are cancelled then", minimum=0)

    def check(self) -> ServerSettings:
        """Return the settings if all are in range.

        Raises:
            ArgumentError: one is not.
        """
        for part in fields(self):
            part.metadata["whole"].require(part.name, getattr(self, part.name))
        return self
