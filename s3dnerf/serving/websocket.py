"""Live sessions over WebSocket: speech in as PCM, frames out as JPEG or fragmented MP4.

The client first sends a JSON object: ``portrait`` (the id of an uploaded picture), ``rate`` (samples per second of its
speech), ``format`` ("jpeg" or "mp4") and ``options``. The server answers ``{"type": "ready", ...}``. Then binary
messages of the client are speech, 16-bit little-endian samples of one channel, and its JSON messages are
``{"type": "finish"}``, ``{"type": "interrupt"}`` and ``{"type": "listen", "frames": n}``. A binary message of the
server is a frame (see :data:`HEADER`), or the next bytes of an MP4 stream. A stream ends with ``finish``; what comes
after it is another one.
"""

from __future__ import annotations

import asyncio
import json
import struct
from collections import deque
from collections.abc import Awaitable
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, TypeVar

import numpy as np
from fastapi import WebSocket, WebSocketDisconnect

from s3dnerf.constants import FPS
from s3dnerf.errors import ArgumentError, UserError
from s3dnerf.limits import IntRange, require_choice
from s3dnerf.live.session import LiveFrame, TalkingHeadSession
from s3dnerf.media.memory import RATES
from s3dnerf.serving.errors import RequestError, describe_error
from s3dnerf.serving.fragments import Mp4Fragments
from s3dnerf.serving.live import LiveSessions
from s3dnerf.serving.options import read_live_options
from s3dnerf.serving.renderer import Renderer, encode_picture
from s3dnerf.serving.uploads import Storage

Result = TypeVar("Result")
HEADER = struct.Struct("<II")
"""Before a JPEG frame: its number from 0, and the bytes of its sound, which follow as 16-bit samples at 16 kHz."""
FORMATS = ("jpeg", "mp4")
MAX_MESSAGE = 2**20
"""Bytes of the largest message."""
STEP_SECONDS = 0.2
"""Most speech that is rendered before it is another session's turn."""
MAX_WAITING_SECONDS = 2.0
"""Speech that is read ahead; further messages stay in the network, so that the client has to wait."""
MAX_WAITING = 256
"""Messages that are read ahead."""
SEND_SECONDS = 30.0
"""How long the client may take to accept a message."""
POLICY_VIOLATION, INTERNAL_ERROR = 1008, 1011
LISTENING = IntRange(1, 250)
"""Frames of a message `listen`."""
COMMANDS = ("finish", "interrupt", "listen")


@dataclass(frozen=True)
class Command:
    """A JSON message of the client."""

    name: str
    frames: int = 1


class Inbox:
    """What a client has sent and the session has not taken yet, a bounded amount."""

    def __init__(self, rate: int) -> None:
        self.rate = rate
        self.items: deque[np.ndarray | Command] = deque()
        self.samples = 0
        """Samples of speech that wait."""
        self.changed = asyncio.Condition()
        self.closed = False

    @property
    def has_room(self) -> bool:
        """Whether another item may be added."""
        return self.samples < MAX_WAITING_SECONDS * self.rate and len(self.items) < MAX_WAITING

    async def put(self, item: np.ndarray | Command) -> None:
        """Add an item, after there is room for it. An interruption drops what waits."""
        async with self.changed:
            if isinstance(item, Command) and item.name == "interrupt":
                self.items.clear()
                self.samples = 0
            await self.changed.wait_for(lambda: self.has_room)
            self.items.append(item)
            self.samples += count_samples(item)
            self.changed.notify_all()

    async def close(self) -> None:
        """Let :meth:`get` return None at once."""
        async with self.changed:
            self.closed = True
            self.changed.notify_all()

    async def get(self) -> np.ndarray | Command | None:
        """Return a command, or the speech that waits; None after the client left.

        Speech and listening are at most ``STEP_SECONDS`` long; the rest waits.
        """
        async with self.changed:
            await self.changed.wait_for(lambda: self.items or self.closed)
            if self.closed:
                return None
            first = self.items.popleft()
            item = self._take_listening(first) if isinstance(first, Command) else self._take_speech(first)
            self.samples -= count_samples(item)
            self.changed.notify_all()
            return item

    def _take_listening(self, command: Command) -> Command:
        most = round(STEP_SECONDS * FPS)
        if command.name != "listen" or command.frames <= most:
            return command
        self.items.appendleft(Command(command.name, command.frames - most))
        return Command(command.name, most)

    def _take_speech(self, first: np.ndarray) -> np.ndarray:
        most, parts, samples = max(1, int(STEP_SECONDS * self.rate)), [first], len(first)
        while self.items and samples < most and isinstance(item := self.items[0], np.ndarray):
            self.items.popleft()
            parts.append(item)
            samples += len(item)
        joined = np.concatenate(parts)
        if len(joined) > most:
            self.items.appendleft(joined[most:])
        return joined[:most]


def count_samples(item: np.ndarray | Command) -> int:
    """Return the samples of speech of an item."""
    return len(item) if isinstance(item, np.ndarray) else 0


class LiveSocket:
    """One client of ``/v1/live``."""

    def __init__(self, socket: WebSocket, sessions: LiveSessions, renderer: Renderer, storage: Storage) -> None:
        self.socket, self.sessions, self.renderer, self.storage = socket, sessions, renderer, storage
        self.settings = sessions.settings
        self.number = 0
        self.fragments: Mp4Fragments | None = None

    async def serve(self) -> None:
        """Serve the client to the end. The caller has accepted the connection."""
        code, reason = INTERNAL_ERROR, ""
        try:
            seconds = self.settings.live_seconds
            await limit_time(self._serve(), seconds, f"Sessions end after {seconds} s.")
            return
        except WebSocketDisconnect:
            return
        except (UserError, RequestError) as error:
            code, reason = POLICY_VIOLATION, describe_error(error)[1]
        except Exception as error:
            reason = describe_error(error)[1]
        with suppress(WebSocketDisconnect, RuntimeError, asyncio.TimeoutError):
            await self._send_json({"type": "error", "error": reason})
            await self.socket.close(code)

    async def _serve(self) -> None:
        hello = await self._receive_hello()
        rate = IntRange(*RATES).require("rate", hello.get("rate", 16000))
        require_choice("format", hello.get("format", "jpeg"), FORMATS)
        options, portrait = hello.get("options", {}), hello.get("portrait", "")
        if not isinstance(options, dict) or not isinstance(portrait, str):
            raise ArgumentError("options", None, "are no JSON object, or portrait is no text", "See the documentation.")
        image = self.storage.find_picture(portrait)
        session = await asyncio.to_thread(self.renderer.start_session, image, read_live_options(options))
        size = session.portrait.framing.size
        if hello.get("format") == "mp4":
            self.fragments = Mp4Fragments(size)
        ready = {"type": "ready", "size": list(size), "fps": FPS, "lookahead_seconds": session.lookahead_seconds}
        await self._send_json(ready)
        inbox = Inbox(rate)
        reader = asyncio.create_task(self._read(inbox))
        try:
            while (item := await inbox.get()) is not None:
                for data in await self.sessions.run(self._step, session, item, rate):
                    await self._send(data)
                if isinstance(item, Command) and item.name == "finish":
                    await self._send_json({"type": "finished", "frames": self.number})
        finally:
            reader.cancel()
            with suppress(asyncio.CancelledError, WebSocketDisconnect):
                await reader

    async def _receive_hello(self) -> dict[str, Any]:
        message = await self._receive()
        hello = _parse(message.get("text"))
        if hello is None:
            raise ArgumentError("message", None, "is no JSON object", "Say first which portrait is to speak.")
        return hello

    async def _receive(self) -> dict[str, Any]:
        seconds = self.settings.idle_seconds
        message = await limit_time(self.socket.receive(), seconds, f"The client sent nothing for {seconds} s.")
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code", 1005))
        return dict(message)

    async def _read(self, inbox: Inbox) -> None:
        try:
            while True:
                message = await self._receive()
                data = message.get("bytes")
                if data is not None:
                    if len(data) % 2:
                        raise ArgumentError("speech", None, "has an odd number of bytes", "Send whole 16-bit samples.")
                    await inbox.put(np.frombuffer(data, "<i2"))
                else:
                    await inbox.put(_read_command(message.get("text")))
        finally:
            await inbox.close()

    def _step(self, session: TalkingHeadSession, item: np.ndarray | Command, rate: int) -> list[bytes]:
        """Give the session what the client sent, and return what is sent back."""
        if isinstance(item, np.ndarray):
            session.feed(item, rate)
        elif item.name == "finish":
            session.finish()
            pieces = [self._encode(frame) for frame in session.frames_with_sound()]
            if self.fragments is not None and self.fragments.frames:
                pieces.append(self.fragments.finish())
                self.fragments = Mp4Fragments(self.fragments.size)
            return [piece for piece in pieces if piece]
        elif item.name == "interrupt":
            session.interrupt()
        else:
            session.listen(item.frames)
        return [data for frame in session.frames_with_sound() if (data := self._encode(frame))]

    def _encode(self, frame: LiveFrame) -> bytes:
        self.number += 1
        self.sessions.metrics.frames.labels("live").inc()
        if self.fragments is not None:
            return self.fragments.write(frame)
        sound = np.clip(np.rint(frame.sound * 32767.0), -32768, 32767).astype("<i2").tobytes()
        return HEADER.pack(self.number - 1, len(sound)) + sound + encode_picture(frame.image)

    async def _send(self, data: bytes) -> None:
        await asyncio.wait_for(self.socket.send_bytes(data), SEND_SECONDS)

    async def _send_json(self, message: dict[str, Any]) -> None:
        await asyncio.wait_for(self.socket.send_text(json.dumps(message)), SEND_SECONDS)


async def limit_time(work: Awaitable[Result], seconds: float, sentence: str) -> Result:
    """Return what is awaited. Raises RequestError with a sentence if that takes longer than some seconds."""
    try:
        return await asyncio.wait_for(work, seconds)
    except asyncio.TimeoutError as error:
        raise RequestError(HTTPStatus.REQUEST_TIMEOUT, f"{sentence} Start another session.") from error


def _parse(text: str | None) -> dict[str, Any] | None:
    try:
        message = json.loads(text or "")
    except (ValueError, RecursionError):
        return None
    return message if isinstance(message, dict) else None


def _read_command(text: str | None) -> Command:
    message = _parse(text)
    if message is None:
        raise ArgumentError("message", None, "is no JSON object", f"Send {', '.join(COMMANDS)} or speech.")
    name = message.get("type")
    require_choice("type", name, COMMANDS)
    return Command(str(name), LISTENING.require("frames", message.get("frames", 1)))
