"""Live sessions over WebSocket: frames and sound, commands, refusals, and clients that vanish."""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Callable

import av
import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image
from starlette.testclient import WebSocketDenialResponse
from starlette.websockets import WebSocketDisconnect

from tests.serving.conftest import CachedPipeline, list_files, wait_for

RATE = 16000


def upload(client: TestClient, picture: bytes) -> str:
    return client.post("/v1/portraits", files={"image": picture}).json()["id"]


def to_pcm(sound: np.ndarray) -> bytes:
    return np.rint(32767 * sound).astype("<i2").tobytes()


def receive_frames(socket: object, until: str = "finished") -> tuple[list[bytes], dict]:
    """Return the binary messages before a JSON message of a type, and that one."""
    frames = []
    while True:
        message = socket.receive()
        if message.get("bytes") is not None:
            frames.append(message["bytes"])
        else:
            content = json.loads(message["text"])
            assert content["type"] == until, content
            return frames, content


def test_frames_come_numbered_with_their_sound(
    client: TestClient, picture: bytes, sound: np.ndarray, tiny_pipeline: CachedPipeline
) -> None:
    id = upload(client, picture)
    with client.websocket_connect("/v1/live") as socket:
        socket.send_json({"portrait": id, "rate": RATE, "options": {"pose": "static", "turn": [5, 0]}})
        ready = socket.receive_json()
        side = tiny_pipeline.model.config.image_size
        assert (ready["type"], ready["size"], ready["fps"]) == ("ready", [side, side], 25)
        for first in range(0, len(sound), 1000):
            socket.send_bytes(to_pcm(sound[first : first + 1000]))
        socket.send_json({"type": "finish"})
        frames, last = receive_frames(socket)
        assert last["frames"] == len(frames) == 30
        heads = [struct.unpack("<II", frame[:8]) for frame in frames]
        assert heads == [(number, 1280) for number in range(30)]
        heard = np.frombuffer(b"".join(frame[8:1288] for frame in frames), "<i2") / 32767
        assert np.abs(heard - sound).max() < 1e-3
        assert all(Image.open(io.BytesIO(frame[1288:])).size == (side, side) for frame in frames)
        socket.send_json({"type": "listen", "frames": 2})
        socket.send_json({"type": "interrupt"})
        socket.send_json({"type": "finish"})
        frames, last = receive_frames(socket)
        assert last["frames"] == 30 + len(frames) and len(frames) >= 2
    wait_for(lambda: client.get("/healthz").json()["live_sessions"] == 0)


def test_fragments_are_a_playable_stream(client: TestClient, picture: bytes, sound: np.ndarray) -> None:
    id = upload(client, picture)
    with client.websocket_connect("/v1/live") as socket:
        socket.send_json({"portrait": id, "rate": RATE, "format": "mp4"})
        socket.receive_json()
        socket.send_bytes(to_pcm(sound))
        socket.send_json({"type": "finish"})
        pieces, last = receive_frames(socket)
    assert last["frames"] == 30
    with av.open(io.BytesIO(b"".join(pieces))) as container:
        assert (container.streams.video[0].codec.name, container.streams.audio[0].codec.name) == ("h264", "aac")
        shown = [float(frame.pts * frame.time_base) for frame in container.decode(video=0)]
    assert len(shown) == 30 and np.diff(shown)[1:] == pytest.approx(0.04)


WRONG = {
    "an unknown picture": ({"portrait": "nothing"}, "picture"),
    "a wrong rate": ({"rate": 3}, "rate"),
    "a wrong format": ({"format": "gif"}, "format"),
    "a wrong option": ({"options": {"turn": [99, 0]}}, "turn"),
    "an option that is no object": ({"options": 3}, "options"),
    "a file of the server": ({"options": {"pose": "/etc/passwd"}}, "pose"),
    "what needs a whole recording": ({"options": {"method": "fd2talk"}}, "method"),
    "transparency": ({"options": {"background": "transparent"}}, "background"),
}


def test_wrong_greetings_get_one_sentence(client: TestClient, picture: bytes) -> None:
    id = upload(client, picture)
    for name, (changes, word) in WRONG.items():
        with client.websocket_connect("/v1/live") as socket:
            socket.send_json({"portrait": id, **changes})
            answer = socket.receive_json()
            assert answer["type"] == "error" and word in answer["error"], name
            with pytest.raises(WebSocketDisconnect) as closed:
                socket.receive_json()
            assert closed.value.code == 1008


def test_wrong_messages_end_a_session(client: TestClient, picture: bytes) -> None:
    id = upload(client, picture)
    sends: list[Callable] = [
        lambda socket: socket.send_bytes(b"abc"),
        lambda socket: socket.send_text("no JSON"),
        lambda socket: socket.send_json({"type": "dance"}),
        lambda socket: socket.send_json({"type": "listen", "frames": 10**9}),
    ]
    for send in sends:
        with client.websocket_connect("/v1/live") as socket:
            socket.send_json({"portrait": id})
            socket.receive_json()
            send(socket)
            assert socket.receive_json()["type"] == "error"
    wait_for(lambda: client.get("/healthz").json()["live_sessions"] == 0)


def test_one_session_too_many_gets_503_and_a_client_that_vanishes_makes_room(
    client: TestClient, picture: bytes, sound: np.ndarray
) -> None:
    id = upload(client, picture)
    with client.websocket_connect("/v1/live") as socket:
        socket.send_json({"portrait": id})
        socket.receive_json()
        with pytest.raises(WebSocketDenialResponse) as refused, client.websocket_connect("/v1/live"):
            pass
        assert refused.value.status_code == 503
        assert "1 live sessions" in refused.value.json()["error"]
        socket.send_bytes(to_pcm(sound))
    wait_for(lambda: client.get("/healthz").json()["live_sessions"] == 0)
    with client.websocket_connect("/v1/live") as socket:
        socket.send_json({"portrait": id})
        assert socket.receive_json()["type"] == "ready"
    client.delete(f"/v1/portraits/{id}")
    assert list_files(client) == []
    assert "s3dnerf_live_sessions_refused_total 1.0" in client.get("/metrics").text


def test_a_client_that_says_nothing_is_sent_away(start: Callable[..., TestClient]) -> None:
    client = start(idle_seconds=1)
    with client.websocket_connect("/v1/live") as socket:
        assert "nothing for 1 s" in socket.receive_json()["error"]


def test_other_sites_may_not_open_a_session(client: TestClient) -> None:
    with (
        pytest.raises((WebSocketDisconnect, WebSocketDenialResponse)),
        client.websocket_connect("/v1/live", headers={"Origin": "http://evil.example"}),
    ):
        pass
