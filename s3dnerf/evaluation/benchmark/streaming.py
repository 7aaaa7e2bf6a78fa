"""Latency of live sessions: from the sound of a frame to the frame."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from tqdm import tqdm

from s3dnerf.constants import FPS, SAMPLES_PER_FRAME
from s3dnerf.device import choose_device
from s3dnerf.evaluation.benchmark.rendering import default_inputs
from s3dnerf.evaluation.benchmark.report import Table
from s3dnerf.live.session import TalkingHeadSession
from s3dnerf.media.audio import read_speech
from s3dnerf.memory import measure_peak_memory
from s3dnerf.ops import backend
from s3dnerf.pipeline import TalkingHeadPipeline
from s3dnerf.render_options import RenderOptions

WARM_UP = 0.1
"""Fraction of a session after which memory should not grow."""


def measure_streaming(
    image: Path | None = None,
    audio: Path | None = None,
    checkpoint: str | None = None,
    seconds: int = 30,
    device: str = "auto",
    poses: tuple[str, ...] = ("idle", "speech"),
    paced: bool = True,
) -> Table:
    """Feed speech frame by frame, at its own pace, and measure when the frames are there.

    Args:
        image: a source image; None for the portrait of scikit-image.
        audio: speech, which is repeated; None for the shipped sentence.
        checkpoint: as in ``TalkingHeadPipeline.from_pretrained``.
        seconds: length of the session.
        device: "auto", "cpu" or "cuda".
        poses: head motions to measure.
        paced: False feeds as fast as frames are rendered: long sessions of a busy machine, without latencies.

    Returns:
        A row for each head motion. The latency of a frame is the time from the end of its sound to the frame; what the
        model hears ahead is part of it. The drift is what the last frame came later than the first ones (median of a
        second each).

    Raises:
        UserError: there is no model, no usable face or speech, or an argument is invalid.
    """
    place = choose_device(device)
    backend.keep_freed_memory()
    pipeline = TalkingHeadPipeline.from_pretrained(checkpoint, place.type)
    with default_inputs(image, audio) as (image, audio):
        speech = read_speech(audio)
        portrait = pipeline.encode_portrait(image, RenderOptions(pose="idle"))
        rows = []
        for pose in poses:
            session = pipeline.stream(portrait, pose=pose)
            measure = measure_session if paced else measure_long_session
            rows.append({"head motion": pose, **measure(session, speech, seconds * FPS)})
    return Table(f"Live session of {seconds} s, {place.type}", rows)


def measure_session(
    session: TalkingHeadSession,
    speech: np.ndarray,
    frames: int,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
) -> dict[str, float]:
    """Feed a session speech at its own pace; return latencies in seconds, and what is lost.

    Args:
        session: a new session.
        speech: ``float32 [n]``, 16 kHz, at least one frame; it is repeated.
        frames: frames of sound to feed.
        clock: the time in seconds.
        sleep: waits so many seconds.
    """
    blocks = split_frames(speech)
    latencies: list[float] = []
    warm_memory, busy, shifted, start = measure_peak_memory(), 0.0, 0, clock()

    def take() -> None:
        nonlocal shifted
        for frame in session.frames_with_sound():
            shifted += not np.array_equal(frame.sound, blocks[len(latencies) % len(blocks)])
            # The sound of frame k ends (k + 1) / FPS seconds after the start.
            latencies.append(clock() - start - (len(latencies) + 1) / FPS)

    for index in tqdm(range(frames), "live session", unit="frame", leave=False):
        sleep(max(0.0, start + (index + 1) / FPS - clock()))
        begin = clock()
        session.feed(blocks[index % len(blocks)])
        take()
        busy += clock() - begin
        if index == int(WARM_UP * frames):
            warm_memory = measure_peak_memory()
    session.finish()
    # The last frames do not wait for further sound, so they come early.
    heard_on_time = np.array(latencies)
    take()
    return {
        "heard ahead, s": session.lookahead_seconds,
        "latency median, s": float(np.median(heard_on_time)),
        "p99, s": float(np.quantile(heard_on_time, 0.99)),
        "drift, s": float(np.median(heard_on_time[-FPS:]) - np.median(heard_on_time[:FPS])),
        "busy, %": 100.0 * busy * FPS / frames,
        "frames missing": frames - len(latencies),
        "frames with other sound": shifted,
        "memory growth, MB": measure_peak_memory() - warm_memory,
    }


def measure_long_session(session: TalkingHeadSession, speech: np.ndarray, frames: int) -> dict[str, float]:
    """Feed a session speech as fast as it renders, and return whether it loses sound, frames or memory.

    Args:
        session: a new session.
        speech: ``float32 [n]``, 16 kHz, at least one frame; it is repeated.
        frames: frames of sound to feed.
    """
    blocks = split_frames(speech)
    warm_memory, start, shown, shifted = measure_peak_memory(), time.perf_counter(), 0, 0

    def take() -> None:
        nonlocal shown, shifted
        for frame in session.frames_with_sound():
            shifted += not np.array_equal(frame.sound, blocks[shown % len(blocks)])
            shown += 1

    for index in tqdm(range(frames), "live session", unit="frame", leave=False):
        session.feed(blocks[index % len(blocks)])
        take()
        if index == int(WARM_UP * frames):
            warm_memory = measure_peak_memory()
    session.finish()
    take()
    return {
        "heard ahead, s": session.lookahead_seconds,
        "frames/s": frames / (time.perf_counter() - start),
        "frames missing": frames - shown,
        "frames with other sound": shifted,
        "pending, s": session.pending_seconds,
        "memory growth, MB": measure_peak_memory() - warm_memory,
    }


def split_frames(speech: np.ndarray) -> np.ndarray:
    """Split speech ``[n]`` into the sound of frames ``[T, 640]``, without the rest."""
    return speech[: len(speech) // SAMPLES_PER_FRAME * SAMPLES_PER_FRAME].reshape(-1, SAMPLES_PER_FRAME)
