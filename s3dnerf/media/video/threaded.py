"""Writing of video in threads of its own, so that the next frames are rendered meanwhile."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import Any

import numpy as np

from s3dnerf.media.video.sequence import SequenceWriter
from s3dnerf.media.video.writer import VideoWriter

FRAMES_WAITING = 8
"""Default for the most frames that wait for the encoder."""


class ThreadedVideoWriter:
    """Context manager around a writer of video: one thread converts colors, and one encodes.

    The queue of frames is bounded: :meth:`write` waits while it is full. An error in a thread is raised by the next
    call of :meth:`write`, or at the end of the block. After an error, or if the block is interrupted, frames that wait
    are dropped and the file does not appear.

    Args:
        writer: writes the video; not entered yet.
        waiting: most frames that wait.
        measure: context manager around the encoding of each frame, for its time.
    """

    def __init__(
        self,
        writer: VideoWriter | SequenceWriter,
        waiting: int = FRAMES_WAITING,
        measure: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self.writer, self.waiting, self.measure = writer, waiting, measure
        self._frames: deque[Future[None]] = deque()

    def __enter__(self) -> ThreadedVideoWriter:
        self.writer.__enter__()
        self._converter, self._encoder = ThreadPoolExecutor(1, "convert"), ThreadPoolExecutor(1, "encode")
        return self

    def write(self, frame: np.ndarray) -> None:
        """Append a frame as of the writer, which must not be modified afterwards.

        Raises:
            Exception: what went wrong with an earlier frame.
        """
        image = self._converter.submit(self.writer.convert, frame)
        self._frames.append(self._encoder.submit(self._encode, image))
        while len(self._frames) > self.waiting or (self._frames and self._frames[0].done()):
            self._frames.popleft().result()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if error is None:
                for frame in self._frames:
                    frame.result()
        except BaseException as late:
            kind, error, trace = type(late), late, late.__traceback__
            raise
        finally:
            # The threads use the writer, so they end before it does.
            interruption = self._end_threads()
            if interruption is None:
                self.writer.__exit__(kind, error, trace)
            else:
                self.writer.__exit__(type(interruption), interruption, interruption.__traceback__)
                raise interruption

    def _end_threads(self) -> KeyboardInterrupt | None:
        """Drop frames that wait, and wait for the threads; return an interruption (a second Ctrl-C) meanwhile."""
        interruption = None
        while True:
            try:
                self._encoder.shutdown(cancel_futures=True)
                self._converter.shutdown(cancel_futures=True)
                return interruption
            except KeyboardInterrupt as again:
                interruption = again

    def _encode(self, image: Future[Any]) -> None:
        converted = image.result()
        with self.measure():
            self.writer.encode(converted)
