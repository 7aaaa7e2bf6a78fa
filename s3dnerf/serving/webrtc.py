"""Live sessions over WebRTC: the microphone of a browser in, a face that speaks out, with its sound in step."""

from __future__ import annotations

import asyncio
import logging
import secrets
from contextlib import ExitStack, suppress
from fractions import Fraction
from http import HTTPStatus
from typing import Any

import av
import numpy as np
from aiortc import (
    MediaStreamTrack,
    RTCConfiguration,
    RTCDataChannel,
    RTCIceServer,
    RTCPeerConnection,
    RTCSessionDescription,
)
from aiortc.mediastreams import MediaStreamError

from s3dnerf.constants import FPS, SAMPLE_RATE
from s3dnerf.limits import require_choice
from s3dnerf.live.session import LiveFrame
from s3dnerf.media.live_audio import LiveResampler
from s3dnerf.serving.errors import RequestError
from s3dnerf.serving.live import LiveSessions, PacedPortrait
from s3dnerf.serving.options import read_live_options
from s3dnerf.serving.renderer import Renderer
from s3dnerf.serving.uploads import Storage

log = logging.getLogger(__name__)
CONNECT_SECONDS = 30.0
"""How long a client may take to connect after the answer."""
MOST_LATE_SECONDS = 0.2
"""Lateness beyond which the clock of a session is set back, instead of hurrying frames to catch up."""
MOST_QUEUED = 2 * FPS
"""Frames that wait to be sent. A client that takes none loses the next ones."""
COMMANDS = ("finish", "interrupt")


class FrameTrack(MediaStreamTrack):
    """Pictures or sound of live frames, as a track of aiortc."""

    def __init__(self, kind: str) -> None:
        """Make a track of the kind "video" or "audio"."""
        super().__init__()
        self.kind = kind
        self.queue: asyncio.Queue[av.VideoFrame | av.AudioFrame | None] = asyncio.Queue()

    def push(self, number: int, frame: LiveFrame) -> None:
        """Append frame ``number``, which decides the time at which it is shown."""
        if self.queue.qsize() >= MOST_QUEUED:
            return
        if self.kind == "video":
            media: av.VideoFrame | av.AudioFrame = av.VideoFrame.from_ndarray(frame.image, "rgb24")
            media.pts, media.time_base = number, Fraction(1, FPS)
        else:
            samples = np.clip(np.rint(frame.sound * 32767.0), -32768, 32767).astype(np.int16)
            media = av.AudioFrame.from_ndarray(samples[None], "s16", "mono")
            media.sample_rate, media.time_base = SAMPLE_RATE, Fraction(1, SAMPLE_RATE)
            media.pts = number * len(samples)
        self.queue.put_nowait(media)

    async def recv(self) -> av.VideoFrame | av.AudioFrame:
        """Return the next frame, for aiortc."""
        media = None if self.readyState != "live" else await self.queue.get()
        if media is None:
            raise MediaStreamError
        return media

    def stop(self) -> None:
        """End the track."""
        super().stop()
        self.queue.put_nowait(None)


class LivePeer:
    """A browser that is connected."""

    def __init__(self, sessions: LiveSessions, portrait: PacedPortrait, ice_servers: tuple[str, ...]) -> None:
        self.id = secrets.token_urlsafe(16)
        self.sessions, self.portrait = sessions, portrait
        # aiortc would ask a public STUN server otherwise.
        servers = [RTCIceServer(urls=[url]) for url in ice_servers]
        self.connection = RTCPeerConnection(RTCConfiguration(iceServers=servers))
        self.video, self.audio = FrameTrack("video"), FrameTrack("audio")
        self.heard: list[np.ndarray] = []
        """Speech ``float32 [n]`` at 16 kHz since the last frame."""
        self.commands: list[str] = []
        self.ended = asyncio.Event()
        self.listener: asyncio.Task[None] | None = None
        self.connection.add_listener("track", self._take_track)
        self.connection.add_listener("datachannel", self._take_channel)
        self.connection.add_listener("connectionstatechange", self._change_state)

    async def answer(self, sdp: str, kind: str) -> RTCSessionDescription:
        """Return the answer to the offer of the browser."""
        try:
            if "a=fingerprint:" not in sdp:
                raise ValueError("no fingerprint")
            await self.connection.setRemoteDescription(RTCSessionDescription(sdp, kind))
            self.connection.addTrack(self.video)
            self.connection.addTrack(self.audio)
            await self.connection.setLocalDescription(await self.connection.createAnswer())
        except Exception as error:  # aiortc does not check what it reads, and raises errors of many classes
            log.info("an offer is refused: %r", error)
            sentence = "sdp: is no offer of WebRTC with audio and video. Send what createOffer returns."
            raise RequestError(HTTPStatus.UNPROCESSABLE_ENTITY, sentence) from error
        return self.connection.localDescription

    async def play(self) -> None:
        """Send frames at the pace of a clock until the browser leaves, or the session has lasted long enough."""
        loop = asyncio.get_running_loop()
        begin = loop.time()
        start, number, connected = begin, 0, False
        while not self.ended.is_set():
            now = loop.time()
            connected = connected or self.connection.connectionState == "connected"
            if now - begin > (self.sessions.settings.live_seconds if connected else CONNECT_SECONDS):
                return
            due = start + number / FPS
            if now - due > MOST_LATE_SECONDS:
                start += now - due
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self.ended.wait(), max(0.0, due - now))
            if not connected:
                start = loop.time() - number / FPS + 1 / FPS
                continue
            frame = await self.sessions.run(self._tick, *self._take())
            self.video.push(number, frame)
            self.audio.push(number, frame)
            self.sessions.metrics.frames.labels("live").inc()
            number += 1

    async def close(self) -> None:
        """Close the connection."""
        self.ended.set()
        if self.listener is not None:
            self.listener.cancel()
        self.video.stop()
        self.audio.stop()
        try:
            await self.connection.close()
        except Exception as error:  # a connection whose offer was refused may be incomplete
            log.info("a connection is not closed in order: %r", error)

    def _take(self) -> tuple[np.ndarray, list[str]]:
        heard, self.heard = self.heard, []
        commands, self.commands = self.commands, []
        return np.concatenate(heard) if heard else np.zeros(0, np.float32), commands

    def _tick(self, heard: np.ndarray, commands: list[str]) -> LiveFrame:
        if "interrupt" in commands:
            self.portrait.interrupt()
        before = self.portrait.dropped_seconds
        frame = self.portrait.tick(heard, "finish" in commands)
        self.sessions.metrics.dropped.inc(self.portrait.dropped_seconds - before)
        return frame

    def _take_track(self, track: MediaStreamTrack) -> None:
        if track.kind == "audio" and self.listener is None:
            self.listener = asyncio.ensure_future(self._listen(track))

    async def _listen(self, track: MediaStreamTrack) -> None:
        resampler = LiveResampler(SAMPLE_RATE)
        with suppress(MediaStreamError):
            while True:
                frame: Any = await track.recv()
                samples = frame.to_ndarray().reshape(-1, frame.layout.nb_channels).T
                self.heard.append(resampler.feed(samples, frame.sample_rate))

    def _take_channel(self, channel: RTCDataChannel) -> None:
        def take(message: object) -> None:
            if message in COMMANDS:
                self.commands.append(str(message))

        channel.on("message", take)

    def _change_state(self) -> None:
        if self.connection.connectionState in ("failed", "closed"):
            self.ended.set()


class LivePeers:
    """All connections over WebRTC of a server."""

    def __init__(
        self, sessions: LiveSessions, renderer: Renderer, storage: Storage, ice_servers: tuple[str, ...]
    ) -> None:
        self.sessions, self.renderer, self.storage = sessions, renderer, storage
        self.ice_servers = ice_servers
        self.peers: dict[str, tuple[LivePeer, asyncio.Task[None]]] = {}

    async def offer(self, message: dict[str, Any]) -> dict[str, str]:
        """Start a session for the offer of a browser, and return the answer.

        Args:
            message: ``sdp`` and ``type`` of the offer, ``portrait``, the id of an uploaded picture, and ``options``.

        Raises:
            UserError, RequestError: the session is refused.
        """
        require_choice("type", message.get("type"), ("offer",))
        options, sdp = message.get("options", {}), message.get("sdp")
        if not isinstance(options, dict) or not isinstance(sdp, str):
            raise RequestError(HTTPStatus.UNPROCESSABLE_ENTITY, "sdp is text, and options are a JSON object.")
        image = self.storage.find_picture(str(message.get("portrait")))
        checked = read_live_options(options)
        with ExitStack() as stack:
            stack.enter_context(self.sessions.admit())
            session = await asyncio.to_thread(self.renderer.start_session, image, checked)
            peer = LivePeer(self.sessions, PacedPortrait(session), self.ice_servers)
            try:
                answer = await peer.answer(sdp, "offer")
            except BaseException:
                await peer.close()
                raise
            held = stack.pop_all()
        task = asyncio.create_task(self._play(peer, held))
        self.peers[peer.id] = peer, task
        return {"id": peer.id, "sdp": answer.sdp, "type": answer.type}

    async def end(self, id: str) -> None:
        """End a session. Raises RequestError if there is none."""
        if id not in self.peers:
            raise RequestError(HTTPStatus.NOT_FOUND, "There is no live session of this id.")
        peer, task = self.peers[id]
        peer.ended.set()
        await task

    async def close(self) -> None:
        """End all sessions."""
        for id in list(self.peers):
            with suppress(RequestError):
                await self.end(id)

    async def _play(self, peer: LivePeer, held: ExitStack) -> None:
        with held:
            try:
                await peer.play()
            except Exception:
                log.exception("a live session failed")
            finally:
                self.peers.pop(peer.id, None)
                await peer.close()
