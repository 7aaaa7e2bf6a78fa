"""Live sessions over WebRTC, with aiortc in place of the browser; and the portrait that is paced by a clock."""

from __future__ import annotations

import asyncio
from fractions import Fraction

import av
import httpx
import numpy as np
import pytest
from aiortc import MediaStreamTrack, RTCConfiguration, RTCPeerConnection, RTCSessionDescription

from s3dnerf.constants import SAMPLES_PER_FRAME
from s3dnerf.render_options import RenderOptions
from s3dnerf.serving.application import make_application
from s3dnerf.serving.live import MAX_LAG_SECONDS, STARVED_FRAMES, PacedPortrait
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


async def talk(client: httpx.AsyncClient, picture: bytes) -> dict[str, list]:
    """Connect, take a second of picture and sound, and leave; return the times of what came."""
    portrait = (await client.post("/v1/portraits", files={"image": picture})).json()["id"]
    connection = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    seen: dict[str, list] = {"video": [], "audio": []}
    tasks = []

    async def take(track: MediaStreamTrack) -> None:
        while True:
            seen[track.kind].append(await track.recv())

    connection.on("track", lambda track: tasks.append(asyncio.ensure_future(take(track))))
    connection.addTrack(Microphone())
    connection.addTransceiver("video", direction="recvonly")
    await connection.setLocalDescription(await connection.createOffer())
    offer = {"sdp": connection.localDescription.sdp, "type": "offer", "portrait": portrait}
    answer = await client.post("/v1/live/offer", json=offer)
    assert answer.status_code == 201, answer.text
    full = await client.post("/v1/live/offer", json=offer)
    assert full.status_code == 503 and "live sessions" in full.json()["error"]
    wrong = await client.post("/v1/live/offer", json={**offer, "sdp": "no"})
    assert wrong.status_code in (422, 503)
    await connection.setRemoteDescription(RTCSessionDescription(answer.json()["sdp"], "answer"))
    for _ in range(600):
        if len(seen["video"]) >= 20 and len(seen["audio"]) >= 40:
            break
        await asyncio.sleep(0.05)
    health = (await client.get("/healthz")).json()
    assert health["live_sessions"] == 1
    for task in tasks:
        task.cancel()
    await connection.close()
    for _ in range(600):
        if (await client.get("/healthz")).json()["live_sessions"] == 0:
            break
        await asyncio.sleep(0.05)
    else:
        pytest.fail("the session of a client that left is still open")
    return seen


def test_a_face_and_its_sound_come_in_step(tiny_pipeline: CachedPipeline, picture: bytes) -> None:
    async def run() -> dict[str, list]:
        app = make_application(tiny_pipeline, ServerSettings(stop_seconds=1))
        async with app.router.lifespan_context(app):
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
                return await talk(client, picture)

    seen = asyncio.run(run())
    assert len(seen["video"]) >= 20 and len(seen["audio"]) >= 40
    side = tiny_pipeline.model.config.image_size
    assert (seen["video"][0].width, seen["video"][0].height) == (side, side)
    spans = {kind: float((media[-1].pts - media[0].pts) * media[0].time_base) for kind, media in seen.items()}
    assert spans["video"] == pytest.approx(spans["audio"], abs=0.5)
