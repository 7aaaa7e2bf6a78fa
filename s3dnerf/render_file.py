"""Rendering to a file, with progress and a summary, for ``s3dnerf render``."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path

from s3dnerf.face.motion_state import read_state, write_state
from s3dnerf.media.files import check_output, is_stream, require_file
from s3dnerf.media.video import check_video_output
from s3dnerf.memory import measure_peak_memory
from s3dnerf.pipeline import TalkingHeadPipeline
from s3dnerf.render_options import MOTIONS, TRANSPARENT, check_options, check_renderer


def render(
    image: str | Path,
    audio: str | Path,
    out: str | Path,
    checkpoint: str | Path | None = None,
    size: int | None = None,
    pose: str = "idle",
    turn: tuple[float, float] = (0.0, 0.0),
    blink: str = "auto",
    background: str = "keep",
    framing: str = "crop",
    seed: int = 0,
    device: str = "auto",
    face: int | None = None,
    fit_steps: int = 0,
    start: str | Path | None = None,
    end: str | Path | None = None,
    settings: Mapping[str, float] | None = None,
    liveliness: float = 1.0,
    method: str = "s3dnerf",
    renderer: str = "nerf",
    refine: str = "off",
    max_side: int = 1920,
    codec: str = "h264",
) -> Path:
    """Render to a file with a progress bar, and print one line with the time of each phase and the peak memory.

    ``start`` is a file with the end state of the previous utterance. The end state of this one is written to ``end``.
    """
    begin = time.perf_counter()
    check_options(pose, turn, blink, background, framing, size, face, seed, max_side)
    check_renderer(method, renderer, refine, background, start is not None)
    require_file(audio, "speech")
    require_file(image, "image")
    inputs = [image, audio, start, *([] if pose in MOTIONS else [pose])]
    check_video_output(out, inputs, codec, background == TRANSPARENT)
    if end is not None:
        check_output(end, [*inputs, out])
    state = None if start is None else read_state(start)
    pipeline = TalkingHeadPipeline.from_pretrained(checkpoint, device, fit_steps, settings)
    loading = time.perf_counter() - begin
    video = pipeline(
        image,
        audio,
        pose=pose,
        turn=turn,
        blink=blink,
        background=background,
        framing=framing,
        size=size,
        face=face,
        seed=seed,
        start=state,
        liveliness=liveliness,
        method=method,
        renderer=renderer,
        refine=refine,
        max_side=max_side,
    )
    video.save(out, progress=True, codec=codec)
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
