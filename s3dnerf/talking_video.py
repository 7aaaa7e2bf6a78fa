"""A talking head video that is rendered on demand, frame by frame or into a file."""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from s3dnerf.constants import FPS
from s3dnerf.face.motion_state import MotionState
from s3dnerf.limits import require_choice
from s3dnerf.media.credentials import ContentCredentials
from s3dnerf.media.memory import Media
from s3dnerf.media.provenance import Provenance
from s3dnerf.media.video import (
    Region,
    SequenceWriter,
    ThreadedVideoWriter,
    VideoWriter,
    check_video_output,
    open_video,
)
from s3dnerf.media.watermark import Watermark

OUTPUT_TYPES = ("np", "pt", "pil")
CPU = torch.device("cpu")
PRESET = "veryfast"
"""x264 preset. Slower presets take time from rendering; their gain is far below the error of the rendering itself."""


class PhaseTimer:
    """Accumulates the seconds spent in each phase of rendering."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Add the time spent in the ``with`` block to ``phase``."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[phase] += time.perf_counter() - start

    def __str__(self) -> str:
        return ", ".join(f"{phase} {seconds:.1f} s" for phase, seconds in self.seconds.items())


def measure_time(frames: Iterator[np.ndarray], timer: PhaseTimer, phase: str) -> Iterator[np.ndarray]:
    """Yield frames and count the time that each takes as ``phase``."""
    while True:
        with timer(phase):
            frame = next(frames, None)
        if frame is None:
            return
        yield frame


@dataclass(frozen=True)
class TalkingVideo:
    """A video that is rendered on demand. Each iteration renders the frames again."""

    frames: int
    size: tuple[int, int]
    """Width and height."""
    audio: Media
    timer: PhaseTimer
    start: Callable[[bool], Iterator[np.ndarray | torch.Tensor]]
    """Starts rendering frames ``uint8 [height, width, C]``: arrays, or, if it may, tensors on the device."""
    inputs: tuple[Path, ...]
    """Input files of the rendering. None of them is overwritten."""
    ends: deque[MotionState] = field(default_factory=lambda: deque(maxlen=1))
    """Motion state at the end of the last complete rendering."""
    device: torch.device = CPU
    """Device that renders. If it is a GPU with a video encoder, that encoder writes H.264 and HEVC."""
    alpha: bool = False
    """Whether frames have transparency as a fourth channel, not multiplied into the color."""
    fps: int = FPS
    """Frames per second."""
    provenance: Provenance = field(default_factory=Provenance)
    """How it is generated; the metadata of its file."""
    changing: Region | None = None
    """Rows and columns outside of which all frames are equal; None if they may differ everywhere."""

    @property
    def end_state(self) -> MotionState:
        """Final state of head, eyes and mouth, which is the ``start`` of the next utterance.

        Raises:
            RuntimeError: the frames have not been rendered to the end yet.
        """
        if not self.ends:
            raise RuntimeError("end_state is not known yet: iterate over all frames, or save the video, first")
        return self.ends[0]

    def __iter__(self) -> Iterator[np.ndarray]:
        """Render frames ``uint8 [height, width, 3]`` one by one; see :meth:`iterate`."""
        return self.iterate()

    def iterate(self, output_type: str = "np") -> Iterator[Any]:
        """Render frames one by one.

        Args:
            output_type: "np" for arrays ``uint8 [height, width, C]``, "pt" for tensors ``float32 [C, height, width]``
                in [0, 1] on the device that renders, "pil" for images of Pillow. C is 3, or 4 with transparency.

        Raises:
            ArgumentError: ``output_type`` is unknown.
        """
        require_choice("output_type", output_type, OUTPUT_TYPES)
        if output_type == "pt":
            tensors = (torch.as_tensor(frame, device=self.device) for frame in self.start(True))
            return (frame.permute(2, 0, 1).float() / 255.0 for frame in tensors)
        if output_type == "pil":
            return (Image.fromarray(np.asarray(frame)) for frame in self.start(False))
        return self.start(False)

    def __len__(self) -> int:
        return self.frames

    def save(
        self,
        path: str | Path,
        progress: bool = False,
        codec: str = "h264",
        *,
        watermark: str | None = None,
        credentials: ContentCredentials | None = None,
        on_frame: Callable[[], None] | None = None,
    ) -> Path:
        """Render into a file with the speech as its audio track. The file appears when it is complete.

        The metadata of a video file say that it is generated, by which version, weights and seed.

        Args:
            path: the video, or a sequence of PNG files such as "frames/%05d.png", which has no sound. The suffix of a
                video is .mp4, .m4v, .mov or .mkv, or .webm, which can have transparency.
            progress: whether to show a progress bar.
            codec: "h264" or "hevc". WebM always has VP9.
            watermark: a short text in the lower right corner of every frame.
            credentials: key and certificate that sign the file, .mp4, .m4v or .mov.
            on_frame: called after each frame. If it raises, no file is written.

        Raises:
            UserError: the output is one of the inputs, cannot be written, or its suffix is not a video format; the
                watermark cannot be drawn; or the file cannot be signed.
        """
        check_video_output(path, self.inputs, codec, self.alpha)
        mark = None if watermark is None else Watermark(watermark, self.size)
        if credentials is None:
            self._write(path, progress, codec, mark, on_frame)
            return Path(path)
        credentials.check(path)
        with credentials.sign_output(path, self.provenance) as unsigned:
            self._write(unsigned, progress, codec, mark, on_frame)
        return Path(path)

    def _write(
        self,
        path: str | Path,
        progress: bool,
        codec: str,
        mark: Watermark | None,
        on_frame: Callable[[], None] | None,
    ) -> None:
        bar = tqdm(total=self.frames, unit="frame", desc=Path(path).name, disable=not progress)
        writer = ThreadedVideoWriter(self.open_file(path, codec), measure=lambda: self.timer("writing"))
        with bar, writer:
            for frame in self:
                writer.write(frame if mark is None else mark.draw(frame))
                bar.update()
                if on_frame is not None:
                    on_frame()

    def open_file(self, path: str | Path, codec: str = "h264") -> VideoWriter | SequenceWriter:
        """Return a writer for the frames and the speech, as a context manager."""
        hardware = self.device.type == "cuda"
        encoding: dict[str, Any] = {"codec": codec, "alpha": self.alpha, "hardware": hardware, "preset": PRESET}
        encoding |= {"tags": self.provenance.tags, "changing": self.changing}
        return open_video(path, self.size, self.audio, fps=self.fps, **encoding)
