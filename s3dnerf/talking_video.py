"""A talking head video that is rendered on demand, frame by frame or into a file."""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from s3dnerf.face.motion_state import MotionState
from s3dnerf.media.video import ThreadedVideoWriter, VideoWriter, check_video_output

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
    audio: Path
    timer: PhaseTimer
    start: Callable[[], Iterator[np.ndarray]]
    inputs: tuple[Path, ...]
    """Input files of the rendering. None of them is overwritten."""
    ends: deque[MotionState] = field(default_factory=lambda: deque(maxlen=1))
    """Motion state at the end of the last complete rendering."""
    on_gpu: bool = False
    """Whether a GPU renders. Then its video encoder, if it has one, writes H.264."""

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
        """Render frames ``uint8 [height, width, 3]`` one by one, at 25 frames per second."""
        return self.start()

    def __len__(self) -> int:
        return self.frames

    def save(self, path: str | Path, progress: bool = False) -> Path:
        """Render into a video file with the speech as its audio track. The file appears when it is complete.

        Raises:
            UserError: the output is one of the inputs, cannot be written, or its suffix is not a video format.
        """
        check_video_output(path, self.inputs)
        bar = tqdm(total=self.frames, unit="frame", desc=Path(path).name, disable=not progress)
        writer = ThreadedVideoWriter(self.open_file(path), measure=lambda: self.timer("writing"))
        with bar, writer:
            for frame in self:
                writer.write(frame)
                bar.update()
        return Path(path)

    def open_file(self, path: str | Path) -> VideoWriter:
        """Return a writer for the frames and the speech, as a context manager."""
        return VideoWriter(path, self.size, audio=self.audio, preset=PRESET, hardware=self.on_gpu)
