"""What one process does with a job: load the model once, encode each portrait once, render."""

from __future__ import annotations

import os
import time
from collections import OrderedDict
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from s3dnerf.batch.jobs import Job
from s3dnerf.encoded_portrait import EncodedPortrait
from s3dnerf.errors import UserError
from s3dnerf.failures import explain_failure
from s3dnerf.media.credentials import ContentCredentials
from s3dnerf.media.files import require_file
from s3dnerf.media.video import check_video_output
from s3dnerf.pipeline import TalkingHeadPipeline
from s3dnerf.render_options import TRANSPARENT, RenderOptions

MAX_PORTRAITS = 8
"""Encoded portraits that a process keeps; one takes some megabytes."""
_MOTION_OPTIONS = (
    *("pose", "turn", "camera", "liveliness", "blink", "lip_scale", "expression_scale", "overrides", "fps", "seed"),
)
"""Options that an encoded portrait does not depend on, unless it is fitted, which uses the seed."""


@dataclass(frozen=True)
class BatchSettings:
    """Settings of a run that its processes need."""

    checkpoint: str | Path | None = None
    """See ``TalkingHeadPipeline.from_pretrained``, as the next three."""
    device: str = "auto"
    fit_steps: int = 0
    settings: tuple[tuple[str, float], ...] = ()
    codec: str = "h264"
    """See ``TalkingVideo.save``, as the next two."""
    watermark: str | None = None
    credentials: ContentCredentials | None = None
    threads: int = 1
    """Threads of each process."""
    folder: Path = field(default_factory=Path.cwd)
    """Where relative paths start; the processes of a cluster run elsewhere."""

    def load_pipeline(self) -> TalkingHeadPipeline:
        """Load the model. Raises UserError if there is none."""
        return TalkingHeadPipeline.from_pretrained(self.checkpoint, self.device, self.fit_steps, dict(self.settings))


@dataclass(frozen=True)
class Outcome:
    """What became of a job."""

    reason: str | None = None
    """Why it failed; None if it did not."""
    frames: int = 0
    seconds: float = 0.0
    """Time of rendering and all that it needs, without loading the model."""


class Worker:
    """A pipeline and the portraits that it has encoded."""

    def __init__(self, settings: BatchSettings) -> None:
        self.settings = settings
        self.pipeline = settings.load_pipeline()
        self.encoded = 0
        """Number of portraits that were encoded."""
        self._portraits: OrderedDict[tuple[object, ...], EncodedPortrait] = OrderedDict()

    def render(self, job: Job) -> int:
        """Render a job and return its number of frames.

        Raises:
            UserError: it cannot be rendered.
        """
        settings, options = self.settings, job.options.check()
        require_file(job.audio, "speech")
        inputs = [*job.image, job.audio, *options.inputs]
        check_video_output(job.out, inputs, settings.codec, options.background == TRANSPARENT)
        video = self.pipeline(self.encode(job.image, options), job.audio, options)
        video.save(job.out, codec=settings.codec, watermark=settings.watermark, credentials=settings.credentials)
        return len(video)

    def encode(self, images: tuple[Path, ...], options: RenderOptions) -> EncodedPortrait:
        """Return the portrait of images, which are encoded again only if a file or an option has changed."""
        files = [(os.path.realpath(path), require_file(path, "image").stat()) for path in images]
        defaults = RenderOptions()
        kept = {name: getattr(defaults, name) for name in _MOTION_OPTIONS}
        if self.settings.fit_steps:
            del kept["seed"]
        states = tuple((path, state.st_size, state.st_mtime_ns) for path, state in files)
        key = (states, replace(options, **kept))
        if key not in self._portraits:
            self._portraits[key] = self.pipeline.encode_portrait(images, self.pipeline.check_options(options))
            self.encoded += 1
            if len(self._portraits) > MAX_PORTRAITS:
                self._portraits.popitem(last=False)
        self._portraits.move_to_end(key)
        return self._portraits[key]


_workers: dict[BatchSettings, Worker] = {}
"""The worker of this process; a dict because it is made at the first job."""


def render_job(job: Job, settings: BatchSettings) -> Outcome:
    """Render a job in this process. Errors become its outcome, so that they stop no other job."""
    os.chdir(settings.folder)
    if settings not in _workers:
        torch.set_num_threads(settings.threads)
        _workers[settings] = Worker(settings)
    begin = time.perf_counter()
    frames, reason = 0, None
    try:
        frames = _workers[settings].render(job)
    except UserError as error:
        reason = str(error)
    except Exception as error:
        explained = explain_failure(error)
        reason = f"cannot be rendered ({type(error).__name__}: {error})" if explained is None else str(explained)
    return Outcome(reason, frames, time.perf_counter() - begin)
