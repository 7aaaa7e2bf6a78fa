"""Frames that are read several times but decoded once."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np


class FrameCache:
    """Frames that can be iterated over several times, one iteration at a time.

    They are made once and kept in memory, unless they exceed ``max_bytes``; then every iteration makes them again, and
    memory stays bounded. An iteration that stops early is continued, not repeated, by the next one. The frames must not
    be changed.

    Args:
        open_frames: starts making the frames ``uint8 [H, W, 3]``.
        max_bytes: largest total size of the frames that are kept.
    """

    def __init__(self, open_frames: Callable[[], Iterator[np.ndarray]], max_bytes: int) -> None:
        self._open_frames = open_frames
        self._max_bytes = max_bytes
        self._kept: list[np.ndarray] = []
        self._bytes = 0
        self._source: Iterator[np.ndarray] | None = None

    @property
    def is_too_large(self) -> bool:
        """Whether the frames exceeded the limit and are not kept."""
        return self._bytes > self._max_bytes

    def __iter__(self) -> Iterator[np.ndarray]:
        if self.is_too_large:
            yield from self._open_frames()
            return
        if self._source is None:
            self._source = self._open_frames()
        yield from self._kept
        try:
            for frame in self._source:
                self._keep(frame)
                yield frame
        except Exception:
            # The source cannot go on; the next iteration opens it again.
            self._source, self._kept, self._bytes = None, [], 0
            raise

    def _keep(self, frame: np.ndarray) -> None:
        if self.is_too_large:
            return
        self._bytes += frame.nbytes
        if self.is_too_large:
            self._kept = []
        else:
            self._kept.append(frame)
