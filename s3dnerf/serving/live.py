"""Live sessions of a server: how many there may be, the thread that renders them, and a portrait paced by a clock."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from http import HTTPStatus
from typing import ParamSpec, TypeVar

import numpy as np

from s3dnerf.constants import FPS, SAMPLE_RATE, SAMPLES_PER_FRAME
from s3dnerf.live.session import LiveFrame, TalkingHeadSession
from s3dnerf.serving.errors import RequestError
from s3dnerf.serving.metrics import Metrics
from s3dnerf.serving.settings import ServerSettings

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")
AHEAD_SECONDS = 0.12
"""Speech beyond the lookahead with which a paced portrait begins to speak, against uneven arrival."""
STARVED_FRAMES = 10
"""Frames without new speech after which a paced portrait takes the utterance as finished."""
MAX_LAG_SECONDS = 2.0
"""How far a paced portrait may fall behind before it drops the speech that waits."""


class LiveSessions:
    """The live sessions of a server. One thread renders them in turns, so that none of them waits for long."""

    def __init__(self, settings: ServerSettings, metrics: Metrics) -> None:
        self.settings, self.metrics = settings, metrics
        self.open = 0
        self.stopping = False
        self.executor = ThreadPoolExecutor(1, "live")

    @contextmanager
    def admit(self) -> Iterator[None]:
        """Count a session inside the block.

        Raises:
            RequestError: there are as many as the server allows, or it is stopping.
        """
        if self.stopping:
            raise RequestError(HTTPStatus.SERVICE_UNAVAILABLE, "The server is stopping. Try again later.")
        if self.open >= self.settings.live_sessions:
            self.metrics.refused.inc()
            sentence = f"The server holds {self.settings.live_sessions} live sessions, and all are in use."
            raise RequestError(HTTPStatus.SERVICE_UNAVAILABLE, f"{sentence} Try again later.")
        self.open += 1
        try:
            yield
        finally:
            self.open -= 1

    async def run(
        self, function: Callable[Parameters, Result], *args: Parameters.args, **options: Parameters.kwargs
    ) -> Result:
        """Call a function in the thread that renders live sessions."""
        begin = time.perf_counter()
        result = await asyncio.get_running_loop().run_in_executor(self.executor, lambda: function(*args, **options))
        self.metrics.step_seconds.observe(time.perf_counter() - begin)
        return result

    def stop(self) -> None:
        """Admit no further session."""
        self.stopping = True

    def close(self) -> None:
        """End the thread after the frames that it renders now."""
        self.executor.shutdown(wait=True, cancel_futures=True)


class PacedPortrait:
    """A live session that gives one frame for each tick of a clock, whether there is speech or not.

    Speech waits until the session can render without a break, and meanwhile the portrait listens. When speech stops
    coming, the utterance is finished. When rendering is too slow, the speech that waits is dropped.
    """

    def __init__(self, session: TalkingHeadSession) -> None:
        self.session = session
        self.waiting = np.zeros(0, np.float32)
        """Speech ``float32 [n]`` at 16 kHz before the utterance begins."""
        self.frames: deque[LiveFrame] = deque()
        self.speaks = False
        self.starved = 0
        self.dropped_seconds = 0.0
        self.last: LiveFrame | None = None

    def tick(self, speech: np.ndarray, finish: bool = False) -> LiveFrame:
        """Take the speech that has come, and return the next frame.

        Args:
            speech: ``float32 [n]``, 16 kHz; may be empty.
            finish: whether it ends the utterance.
        """
        self.starved = 0 if len(speech) else self.starved + 1
        self._feed(speech, finish or self.starved > STARVED_FRAMES)
        if not self.frames:
            self.frames.extend(self.session.frames_with_sound())
        if self.frames:
            self.last = self.frames.popleft()
            return self.last
        if self.speaks and self.session.pending_seconds and self.last is not None:
            # The speech for the next frame has not come yet.
            return replace(self.last, sound=np.zeros(SAMPLES_PER_FRAME, np.float32))
        self.speaks = False
        self.session.listen(1)
        self.last = next(self.session.frames_with_sound())
        return self.last

    def interrupt(self) -> None:
        """Drop all speech that was not shown, and close the mouth."""
        self.session.interrupt()
        self.frames.clear()
        self.waiting, self.speaks = self.waiting[:0], False

    def _feed(self, speech: np.ndarray, finish: bool) -> None:
        self.waiting = np.concatenate([self.waiting, speech])
        ahead = self.session.lookahead_seconds + AHEAD_SECONDS
        if self.speaks or finish or len(self.waiting) >= ahead * SAMPLE_RATE:
            if len(self.waiting):
                self.speaks = True
                self.session.feed(self.waiting)
                self.waiting = self.waiting[:0]
            if finish and self.speaks:
                self.session.finish()
        lag = self.session.pending_seconds + len(self.frames) / FPS - ahead
        if lag > MAX_LAG_SECONDS:
            self.dropped_seconds += lag + ahead
            self.interrupt()
