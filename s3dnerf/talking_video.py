"""A talking head video that is rendered on demand, frame by frame or into a file."""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from s3dnerf.face.motion_state import MotionState
from s3dnerf.media.video import VideoWriter, check_video_output

FRAMES_WAITING = 8
"""Maximum number of rendered frames queued for the video writer."""
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
        # One thread encodes while the next frames are rendered. The queue is bounded.
        with self.open_file(path) as writer, ThreadPoolExecutor(1) as thread, bar:
            waiting: deque[Future[None]] = deque()
            for frame in self:
                waiting.append(thread.submit(self.write_frame, writer, frame))
                if len(waiting) > FRAMES_WAITING:
                    waiting.popleft().result()
                bar.update()
            for task in waiting:
                task.result()
        return Path(path)

    def open_file(self, path: str | Path) -> VideoWriter:
        """Return a writer for the frames and the speech, as a context manager."""
        return VideoWriter(path, self.size, audio=self.audio, preset=PRESET)

    def write_frame(self, writer: VideoWriter, frame: np.ndarray) -> None:
        """Encode one frame and record the time it took."""
        with self.timer("writing"):
            writer.write(frame)
