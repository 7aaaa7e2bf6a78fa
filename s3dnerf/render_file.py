"""Rendering to a file, with progress and a summary, for ``s3dnerf render``."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from s3dnerf.face.motion_state import read_state, write_state
from s3dnerf.media.credentials import ContentCredentials
from s3dnerf.media.files import check_output, is_stream, require_file
from s3dnerf.media.image import list_images
from s3dnerf.media.video import check_video_output
from s3dnerf.media.watermark import check_watermark
from s3dnerf.memory import measure_peak_memory
from s3dnerf.pipeline import TalkingHeadPipeline
from s3dnerf.render_options import TRANSPARENT, RenderOptions


def render(
    image: str | Path | Sequence[str | Path],
    audio: str | Path,
    out: str | Path,
    options: RenderOptions | None = None,
    *,
    checkpoint: str | Path | None = None,
    device: str = "auto",
    fit_steps: int = 0,
    settings: Mapping[str, float] | None = None,
    start: str | Path | None = None,
    end: str | Path | None = None,
    codec: str = "h264",
    watermark: str | None = None,
    credentials: ContentCredentials | None = None,
) -> Path:
    """Render to a file with a progress bar, and print one line with the time of each phase and the peak memory.

    Args:
        image: the portrait, or several images of one person.
        audio: the speech.
        out: see ``TalkingVideo.save``.
        options: what the video shows.
        checkpoint: see ``TalkingHeadPipeline.from_pretrained``, as device, fit_steps and settings.
        device: where to compute.
        fit_steps: steps of fitting to the portrait.
        settings: inference settings.
        start: file with the end state of the previous utterance.
        end: file to write the end state of this one to.
        codec: see ``TalkingVideo.save``, as watermark and credentials.
        watermark: text in a corner of the frames.
        credentials: what the file is signed with.
    """
    begin = time.perf_counter()
    options = (options or RenderOptions()).check(continues=start is not None)
    require_file(audio, "speech")
    images = [image] if isinstance(image, (str, Path)) else list(image)
    list_images(images)  # refuses none and too many, before the model is loaded
    for part in images:
        require_file(part, "image")
    inputs = [*images, audio, start, *options.inputs]
    if credentials is not None:
        inputs += [credentials.key, credentials.certificate]
    check_video_output(out, inputs, codec, options.background == TRANSPARENT)
    if watermark is not None:
        check_watermark(watermark)
    if credentials is not None:
        credentials.check(out)
    if end is not None:
        check_output(end, [*inputs, out])
    state = None if start is None else read_state(start)
    pipeline = TalkingHeadPipeline.from_pretrained(checkpoint, device, fit_steps, settings)
    loading = time.perf_counter() - begin
    video = pipeline(images, audio, options, start=state)
    video.save(out, progress=True, codec=codec, watermark=watermark, credentials=credentials)
    if end is not None:
        write_state(end, video.end_state)
    total = time.perf_counter() - begin
    print(
        f"{out}: {len(video)} frames, {len(video) / video.timer.seconds['rendering']:.1f} rendered per second; "
        f"loading {loading:.1f} s, {video.timer}, in all {total:.1f} s; peak memory {measure_peak_memory():.0f} MB",
        # If the video is written to a pipe, the pipe may be the standard output.
        file=sys.stderr if is_stream(out) else sys.stdout,
    )
    return Path(out)
