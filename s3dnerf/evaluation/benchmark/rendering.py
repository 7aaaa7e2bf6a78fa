"""Speed of rendering, phase by phase, and against PyTorch's own operators."""

from __future__ import annotations

import math
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

import s3dnerf
from s3dnerf import limits
from s3dnerf import pipeline as pipeline_module
from s3dnerf.constants import SAMPLE_RATE, SAMPLES_PER_FRAME
from s3dnerf.device import choose_device
from s3dnerf.evaluation.benchmark.report import Table
from s3dnerf.evaluation.benchmark.startup import measure_startup
from s3dnerf.evaluation.benchmark.timing import force_backend
from s3dnerf.media.audio import read_speech
from s3dnerf.media.image import write_image
from s3dnerf.media.video import ThreadedVideoWriter, VideoWriter
from s3dnerf.metrics import measure_psnr
from s3dnerf.models.s3dnerf import s3dnerf as model_module
from s3dnerf.models.s3dnerf.deformation_field import CrossModalFacialDeformationField
from s3dnerf.models.s3dnerf.s3dnerf import S3DNeRF
from s3dnerf.models.s3dnerf.super_resolution import SuperResolution
from s3dnerf.ops import backend
from s3dnerf.pipeline import TalkingHeadPipeline
from s3dnerf.rendering.threads import use_threads
from s3dnerf.talking_video import TalkingVideo

PHASES: tuple[tuple[str, object, str], ...] = (
    ("speech", S3DNeRF, "encode_speech"),
    ("deformation", S3DNeRF, "drive"),
    ("deformation", S3DNeRF, "mark_needed_points"),
    ("deformation", CrossModalFacialDeformationField, "deform_lattice"),
    ("samples along rays", model_module, "sample_rays"),
    ("lookup, MLP and compositing, fused", model_module, "render_rays"),
    ("foveated rays and person layer", model_module, "compose_rays"),
    ("warp of the source image", model_module, "warp_source_image"),
    ("super-resolution", SuperResolution, "forward"),
    ("mouth interior", S3DNeRF, "composite_mouth_interior"),
    ("background", model_module, "composite_background"),
    ("encoding to mp4", VideoWriter, "write"),
)
"""Phases of a frame, and the functions that make them up. Functions that the model does not call are left out."""
POSES = ("idle", "speech")
"""Head motions whose cost is compared."""


class PhaseProfiler:
    """Measures the time spent in named functions, less the time of the named functions that they call."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = defaultdict(float)
        self.stack = threading.local()

    def wrap(self, phase: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return ``function`` with its time added to ``phase``."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            inner, self.stack.inner = getattr(self.stack, "inner", 0.0), 0.0
            begin = time.perf_counter()
            try:
                result = function(*args, **kwargs)
                if self.device.type == "cuda":
                    torch.cuda.synchronize()
                return result
            finally:
                spent = time.perf_counter() - begin
                self.seconds[phase] += spent - self.stack.inner
                self.stack.inner = inner + spent

        return timed

    @contextmanager
    def profile(self) -> Iterator[None]:
        """Time the functions of :data:`PHASES` inside the block, where batches are rendered one after another."""
        with ExitStack() as stack:
            # Beside the thread that renders, another would prepare motion and write at the same time.
            stack.enter_context(patch.object(pipeline_module, "map_in_threads", map))
            for phase, owner, name in PHASES:
                if hasattr(owner, name):
                    stack.enter_context(patch.object(owner, name, self.wrap(phase, getattr(owner, name))))
            yield


def measure_render(
    image: Path | None = None,
    audio: Path | None = None,
    checkpoint: str | None = None,
    frames: int = 75,
    device: str = "auto",
) -> list[Table]:
    """Time the start, phases of frames in one thread, and all threads into an mp4; compare with PyTorch's operators.

    Args:
        image: a source image; None for the portrait of scikit-image.
        audio: speech; None for the shipped sentence.
        checkpoint: as in ``TalkingHeadPipeline.from_pretrained``.
        frames: maximum number of frames.
        device: "auto", "cpu" or "cuda".

    Raises:
        UserError: there is no model, no usable face or speech, or an argument is invalid.
    """
    limits.FRAMES.require("frames", frames)
    place = choose_device(device)
    backend.keep_freed_memory()
    pipeline = TalkingHeadPipeline.from_pretrained(checkpoint, place.type)
    profiler = PhaseProfiler(place)
    with default_inputs(image, audio) as (image, audio), tempfile.TemporaryDirectory() as folder:
        startup = measure_startup(image, audio, checkpoint, frames, place.type)
        video = pipeline(image, audio)
        next(iter(video))
        with profiler.profile(), use_threads(1):
            begin = time.perf_counter()
            with video.open_file(Path(folder) / "video.mp4") as writer:
                count = 0
                for frame in islice(video, frames):
                    writer.write(frame)
                    count += 1
            total = time.perf_counter() - begin
        begin = time.perf_counter()
        with ThreadedVideoWriter(video.open_file(Path(folder) / "video.mp4")) as writer:
            for frame in islice(video, frames):
                writer.write(frame)
        together = time.perf_counter() - begin
        comparison = _compare_renderings(video, min(count, 40))
        poses = _compare_poses(pipeline, image, audio, count)
    seconds = {**profiler.seconds, "all else": total - sum(profiler.seconds.values()), "in all": total}
    rows = [
        {"phase": phase, "ms a frame": 1e3 * spent / count, "frames a second": count / spent}
        for phase, spent in seconds.items()
    ]
    width, height = video.size
    size, machine = f"{width} x {height}", f"{torch.get_num_threads()} threads, {place.type}"
    rate = {"ms a frame": 1e3 * together / count, "frames a second": count / together}
    return [
        startup,
        Table(f"Rendering, {count} frames {size}, one thread, {place.type}", rows),
        Table(f"Speech to mp4, {size}, {machine}", [rate]),
        Table(f"Frames without the file, {size}, {machine}", comparison),
        Table(f"Head motion, speech of {count} frames to mp4, one thread, {place.type}", poses),
    ]


@contextmanager
def default_inputs(image: Path | None = None, audio: Path | None = None) -> Iterator[tuple[Path, Path]]:
    """Yield a source image and speech: those given, or the portrait of scikit-image and the shipped sentence."""
    with tempfile.TemporaryDirectory() as folder:
        if image is None:
            from skimage.data import astronaut

            image = Path(folder) / "portrait.png"
            write_image(image, astronaut())
        yield image, audio or Path(s3dnerf.__file__).parent / "assets" / "speech.wav"


def _compare_poses(pipeline: TalkingHeadPipeline, image: Path, audio: Path, frames: int) -> list[dict[str, Any]]:
    """Render a recording of so many frames with motion that ignores the speech and with motion from it, in turns.

    The best of three counts, and on the CPU the time of all threads, as motion is generated beside the rendering.
    """
    clock = time.process_time if pipeline.device.type == "cpu" else time.perf_counter
    sound = read_speech(audio)[: frames * SAMPLES_PER_FRAME], SAMPLE_RATE
    seconds: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder, use_threads(1):
        videos = {pose: pipeline(image, sound, pose=pose) for pose in POSES}
        for pose, video in 3 * tuple(videos.items()):
            begin = clock()
            with video.open_file(Path(folder) / "video.mp4") as writer:
                for frame in video:
                    writer.write(frame)
            seconds[pose] = min(clock() - begin, seconds.get(pose, math.inf))
    first = seconds[POSES[0]]
    return [
        {"--pose": pose, "ms a frame": 1e3 * spent / frames, f"times {POSES[0]}": spent / first}
        for pose, spent in seconds.items()
    ]


def _compare_renderings(video: TalkingVideo, frames: int) -> list[dict[str, Any]]:
    """Render the same frames on our kernels and on PyTorch's operators, in turns; the best of two counts."""
    seconds: dict[str, float] = {}
    rendered: dict[str, list[np.ndarray]] = {}
    for name in ("auto", "pytorch") * 2:
        with force_backend(name):
            begin = time.perf_counter()
            rendered[name] = list(islice(video, frames))
            seconds[name] = min(time.perf_counter() - begin, seconds.get(name, math.inf))
    psnr = [float(measure_psnr(a, b)[0]) for a, b in zip(*rendered.values(), strict=True)]
    return [
        {
            "ours ms a frame": 1e3 * seconds["auto"] / frames,
            "PyTorch ms a frame": 1e3 * seconds["pytorch"] / frames,
            "times as fast": seconds["pytorch"] / seconds["auto"],
            "PSNR between them, dB": sum(psnr) / len(psnr),
        }
    ]
