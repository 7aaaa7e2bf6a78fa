"""Live sessions over WebRTC, with aiortc in place of the browser; and the portrait that is paced by a clock."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from fractions import Fraction

import aioice
import av
import httpx
import numpy as np
import pytest
from aiortc import MediaStreamTrack, RTCConfiguration, RTCPeerConnection, RTCSessionDescription
from aiortc.mediastreams import MediaStreamError

from s3dnerf.constants import SAMPLES_PER_FRAME
from s3dnerf.render_options import RenderOptions
from s3dnerf.serving.application import make_application
from s3dnerf.serving.live import MAX_LAG_SECONDS, STARVED_FRAMES, PacedPortrait
from s3dnerf.serving.server import Server
from s3dnerf.serving.settings import ServerSettings
from tests.serving.conftest import CachedPipeline

NOTHING = np.zeros(0, np.float32)


@pytest.fixture
def paced(tiny_pipeline: CachedPipeline, picture: bytes) -> PacedPortrait:
    options = RenderOptions(pose="static")
    return PacedPortrait(tiny_pipeline.stream(tiny_pipeline.encode_portrait(picture, options), options))


def test_a_paced_portrait_gives_a_frame_for_each_tick_and_all_of_the_speech(
    paced: PacedPortrait, sound: np.ndarray
) -> None:
    blocks = list(sound.reshape(-1, SAMPLES_PER_FRAME))
    ticks = [NOTHING] * 5 + blocks + [NOTHING] * (STARVED_FRAMES + 40)
    frames = [paced.tick(block) for block in ticks]
    heard = np.concatenate([frame.sound for frame in frames])
    spoken = np.flatnonzero(heard)
    first = spoken[0] // SAMPLES_PER_FRAME
    # It listens until it can speak without a break, which is after its lookahead.
    assert 5 + paced.session.lookahead_seconds * 25 <= first <= 5 + paced.session.lookahead_seconds * 25 + 5
    got = heard[first * SAMPLES_PER_FRAME :]
    kept = got.reshape(-1, SAMPLES_PER_FRAME)
    kept = kept[np.any(kept != 0, axis=1)].ravel()[: len(sound)]
    expected = sound.reshape(-1, SAMPLES_PER_FRAME)
    expected = expected[np.any(expected != 0, axis=1)].ravel()
    assert np.abs(kept[: len(expected)] - expected).max() < 1e-6
    assert not paced.speaks and paced.dropped_seconds == 0


def test_a_paced_portrait_that_is_late_drops_speech(paced: PacedPortrait, sound: np.ndarray) -> None:
    for _ in range(int((MAX_LAG_SECONDS + 4) * 16000 / len(sound)) + 1):
        paced.tick(sound)
    assert paced.dropped_seconds > MAX_LAG_SECONDS
    assert paced.session.pending_seconds < MAX_LAG_SECONDS + 2


class Microphone(MediaStreamTrack):
    """A tone at 48 kHz, in blocks of 20 ms."""

    kind = "audio"

    def __init__(self) -> None:
        super().__init__()
        self.blocks = 0

    async def recv(self) -> av.AudioFrame:
        await asyncio.sleep(0.02)
        time = (self.blocks * 960 + np.arange(960)) / 48000
        frame = av.AudioFrame.from_ndarray((8000 * np.sin(1400 * time)).astype(np.int16)[None], "s16", "mono")
        frame.sample_rate, frame.pts, frame.time_base = 48000, self.blocks * 960, Fraction(1, 48000)
        self.blocks += 1
        return frame


class Browser:
    """A client of a live session, and what it has got."""

    def __init__(self) -> None:
        self.connection = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        self.seen: dict[str, list] = {"video": [], "audio": []}
        self.tasks: list[asyncio.Future] = []
        self.connection.on("track", lambda track: self.tasks.append(asyncio.ensure_future(self.take(track))))

    async def take(self, track: MediaStreamTrack) -> None:
        with suppress(MediaStreamError):
            while True:
                self.seen[track.kind].append(await track.recv())

    async def make_offer(self, client: httpx.AsyncClient, picture: bytes) -> dict[str, str]:
        portrait = (await client.post("/v1/portraits", files={"image": picture})).json()["id"]
        self.connection.addTrack(Microphone())
        self.connection.addTransceiver("video", direction="recvonly")
        await self.connection.setLocalDescription(await self.connection.createOffer())
        return {"sdp": self.connection.localDescription.sdp, "type": "offer", "portrait": portrait}

    async def start(self, answer: httpx.Response, frames: int) -> None:
        """Connect, and take so many frames."""
        assert answer.status_code == 201, answer.text
        await self.connection.setRemoteDescription(RTCSessionDescription(answer.json()["sdp"], "answer"))
        await wait_for(lambda: len(self.seen["video"]) >= frames and len(self.seen["audio"]) >= 2 * frames)

    def vanish(self) -> None:
        """Close the sockets without a word, as a process does that is killed."""
        for transceiver in self.connection.getTransceivers():
            for protocol in transceiver.receiver.transport.transport._connection._protocols:
                protocol.transport.abort()

    async def close(self) -> None:
        for task in self.tasks:
            task.cancel()
        await self.connection.close()


async def wait_for(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    for _ in range(int(seconds / 0.05)):
        if condition():
            return
        await asyncio.sleep(0.05)
    pytest.fail("what was waited for has not happened")


def serve(tiny_pipeline: CachedPipeline, use: Callable[[Server, httpx.AsyncClient], Awaitable[None]]) -> None:
    """Run a server, and a client of it."""

    async def run() -> None:
        app = make_application(tiny_pipeline, ServerSettings(stop_seconds=1))
        async with app.router.lifespan_context(app):
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
                await use(app.state.server, client)

    asyncio.run(run())


def test_a_face_and_its_sound_come_in_step(tiny_pipeline: CachedPipeline, picture: bytes) -> None:
    seen: dict[str, list] = {}

    async def talk(server: Server, client: httpx.AsyncClient) -> None:
        browser = Browser()
        offer = await browser.make_offer(client, picture)
        answer = await client.post("/v1/live/offer", json=offer)
        full = await client.post("/v1/live/offer", json=offer)
        assert full.status_code == 503 and "live sessions" in full.json()["error"]
        wrong = await client.post("/v1/live/offer", json={**offer, "sdp": "no"})
        assert wrong.status_code in (422, 503)
        await browser.start(answer, frames=20)
        assert (await client.get("/healthz")).json()["live_sessions"] == 1
        await browser.close()
        await wait_for(lambda: server.sessions.open == 0)
        seen.update(browser.seen)

    serve(tiny_pipeline, talk)
    side = tiny_pipeline.model.config.image_size
    assert (seen["video"][0].width, seen["video"][0].height) == (side, side)
    spans = {kind: float((media[-1].pts - media[0].pts) * media[0].time_base) for kind, media in seen.items()}
    assert spans["video"] == pytest.approx(spans["audio"], abs=0.5)


def test_a_client_that_vanishes_leaves_nothing_behind(
    tiny_pipeline: CachedPipeline, picture: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server notices it when its questions are not answered, by default within half a minute."""
    monkeypatch.setattr(aioice.ice, "CONSENT_INTERVAL", 0.2)

    async def vanish(server: Server, client: httpx.AsyncClient) -> None:
        first, second = Browser(), Browser()
        await first.start(await client.post("/v1/live/offer", json=await first.make_offer(client, picture)), frames=3)
        (peer,) = [peer for peer, _ in server.peers.peers.values()]
        first.vanish()
        await wait_for(lambda: server.sessions.open == 0)
        await wait_for(lambda: peer.connection.connectionState == "closed" and not server.peers.peers)
        assert peer.video.readyState == peer.audio.readyState == "ended" and peer.listener.done()
        # Its place is free for the next one.
        offer = await second.make_offer(client, picture)
        await second.start(await client.post("/v1/live/offer", json=offer), frames=3)
        await second.close()
        await wait_for(lambda: server.sessions.open == 0)
        await first.close()

    serve(tiny_pipeline, vanish)


def test_broken_offers_get_one_sentence(tiny_pipeline: CachedPipeline, picture: bytes) -> None:
    async def offer(server: Server, client: httpx.AsyncClient) -> None:
        browser = Browser()
        good = await browser.make_offer(client, picture)
        lines = good["sdp"].splitlines(keepends=True)
        dropped = ("a=mid:0", "m=audio", "a=fingerprint", "a=setup", "a=ice-ufrag", "m=")
        broken = ["".join(line for line in lines if not line.startswith(start)) for start in dropped]
        broken += [good["sdp"].replace(f"{name}:", f"{name}: \r\nx") for name in ("a=group", "a=rtcp", "a=fingerprint")]
        broken += [good["sdp"][: len(good["sdp"]) // 2], "v=0\r\na=fingerprint:x\r\n"]
        refused = 0
        for sdp in broken:
            answer = await client.post("/v1/live/offer", json={**good, "sdp": sdp})
            if answer.status_code == 201:  # what was changed is optional
                await client.delete(f"/v1/live/{answer.json()['id']}")
            else:
                assert answer.status_code == 422 and answer.json()["error"].startswith("sdp: "), sdp
                refused += 1
            await wait_for(lambda: server.sessions.open == 0)
        assert refused >= 6
        await browser.close()

    serve(tiny_pipeline, offer)
