"""What hostile and clumsy clients send: bombs, strips, silence, endless queues, silent connections, forged pages."""

from __future__ import annotations

import asyncio
import io
import struct
import zlib
from collections.abc import Awaitable, Callable
from contextlib import suppress

import numpy as np
import pytest
import soundfile
import uvicorn
from fastapi.datastructures import Headers
from fastapi.testclient import TestClient
from PIL import Image
from starlette.websockets import WebSocketDisconnect
from uvicorn.server import ServerState

from s3dnerf.serving import run
from s3dnerf.serving.guards import is_foreign
from s3dnerf.serving.run import PunctualProtocol
from s3dnerf.serving.websocket import MAX_WAITING, Command, Inbox
from tests.serving.conftest import list_files

HUGE = 10**400
DEEP = "[" * 100_000


def make_png(width: int, height: int, extra: bytes = b"") -> bytes:
    """Return the beginning of a PNG that states a size; ``extra`` is the compressed text of a zTXt chunk."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    text = chunk(b"zTXt", b"Comment\0\0" + extra) if extra else b""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + text + chunk(b"IDAT", zlib.compress(b"\0" * 16)) + chunk(b"IEND", b"")


def save(kind: str, size: tuple[int, int] = (64, 64)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, "gray").save(file, kind)
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "status", "word"),
    [
        (make_png(20_000, 20_000), 415, "too large"),
        (make_png(2**31 - 1, 2**31 - 1), 415, "too large"),
        (make_png(8, 8, zlib.compress(bytes(2**27))), 415, "broken"),
        (make_png(400_000, 2), 415, "strip"),
        (save("ICO"), 415, "PNG"),
        (save("EPS"), 415, "PNG"),
    ],
    ids=["bomb", "largest", "text bomb", "strip", "icon", "program"],
)
def test_pictures_that_are_attacks_are_refused(client: TestClient, content: bytes, status: int, word: str) -> None:
    answer = client.post("/v1/portraits", files={"image": content})
    assert answer.status_code == status and word in answer.json()["error"]
    assert list_files(client) == []


def test_loud_and_endless_sound_is_refused(client: TestClient, picture: bytes) -> None:
    loud = io.BytesIO()
    soundfile.write(loud, np.full(16000, 1e30, np.float32), 16000, "FLOAT", format="WAV")
    silent = io.BytesIO()
    soundfile.write(silent, np.zeros((16000 * 60, 2), np.float32), 16000, format="FLAC")
    for content, status, word in ((loud, 415, "loud"), (silent, 413, "4 s")):
        files = {"image": picture, "audio": content.getvalue()}
        answer = client.post("/v1/render", files=files)
        assert answer.status_code == status and word in answer.json()["error"]
    assert list_files(client) == []


def test_too_many_pictures_are_refused_at_once(client: TestClient, picture: bytes, wav: bytes) -> None:
    answer = client.post("/v1/render", files=[*[("image", picture)] * 9, ("audio", wav)])
    assert answer.status_code == 422 and "8 pictures" in answer.json()["error"]
    assert list_files(client) == []


@pytest.mark.parametrize(
    "options",
    [{"self": 1}, {"lip_scale": HUGE}, {"blink": HUGE}, {"turn": [HUGE, 0]}, {"seed": HUGE}, {"fps": HUGE}],
    ids=lambda options: next(iter(options)),
)
def test_odd_options_get_one_sentence(client: TestClient, picture: bytes, options: dict[str, object]) -> None:
    id = client.post("/v1/portraits", files={"image": picture}).json()["id"]
    with client.websocket_connect("/v1/live") as socket:
        socket.send_json({"portrait": id, "options": options})
        answer = socket.receive_json()
        assert answer["type"] == "error" and next(iter(options)) in answer["error"]
        with pytest.raises(WebSocketDisconnect) as closed:
            socket.receive_json()
        assert closed.value.code == 1008


def test_odd_fields_get_one_sentence(client: TestClient, picture: bytes) -> None:
    answer = client.post("/v1/stills", files={"image": picture}, data={"self": "1"})
    assert answer.status_code == 422 and answer.json()["error"].startswith("self: ")


def test_deep_json_is_refused(client: TestClient) -> None:
    answer = client.post("/v1/live/offer", content=DEEP, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422 and "JSON" in answer.json()["error"]
    with client.websocket_connect("/v1/live") as socket:
        socket.send_text(DEEP)
        assert "JSON" in socket.receive_json()["error"]


def test_invented_methods_are_counted_together(client: TestClient) -> None:
    for number in range(5):
        assert client.request(f"INVENTED{number}", "/healthz").status_code == 405
    metrics = client.get("/metrics").text
    assert "INVENTED" not in metrics and 'method="other"' in metrics


@pytest.mark.parametrize(
    ("origin", "host", "foreign"),
    [
        (None, "evil.example", False),
        ("http://127.0.0.1:8000", "127.0.0.1:8000", False),
        ("http://localhost:8000", "localhost:8000", False),
        ("http://[::1]:8000", "[::1]:8000", False),
        ("http://192.168.0.7", "192.168.0.7", False),
        ("https://Faces.example.org", "Faces.example.org", False),
        ("http://evil.example", "127.0.0.1:8000", True),
        ("http://evil.example", "evil.example", True),
        ("http://[", "127.0.0.1", True),
        ("null", "127.0.0.1", True),
    ],
)
def test_pages_are_ours_at_addresses_and_known_names(origin: str | None, host: str, foreign: bool) -> None:
    headers = Headers({"host": host} if origin is None else {"host": host, "origin": origin})
    assert is_foreign(headers, ["faces.example.org"]) == foreign


def test_small_messages_wait_without_growing_cost() -> None:
    async def fill() -> Inbox:
        inbox = Inbox(16000)
        put = asyncio.create_task(put_all(inbox))
        await asyncio.sleep(0.05)
        assert not put.done() and len(inbox.items) == MAX_WAITING == inbox.samples
        taken = await inbox.get()
        assert isinstance(taken, np.ndarray) and len(taken) == MAX_WAITING
        await put
        assert inbox.samples == 44
        await inbox.put(Command("interrupt"))
        assert inbox.samples == 0 and list(inbox.items) == [Command("interrupt")]
        return inbox

    async def put_all(inbox: Inbox) -> None:
        for _ in range(300):
            await inbox.put(np.zeros(1, np.int16))

    asyncio.run(fill())


def test_speech_and_listening_are_taken_in_short_steps() -> None:
    async def take() -> list[object]:
        inbox = Inbox(1000)
        await inbox.put(np.arange(450, dtype=np.int16))
        await inbox.put(Command("listen", 12))
        await inbox.put(Command("finish"))
        taken = [await inbox.get() for _ in range(7)]
        await inbox.close()
        assert await inbox.get() is None
        return taken

    first, second, third, *commands = asyncio.run(take())
    assert [len(part) for part in (first, second, third)] == [200, 200, 50]
    np.testing.assert_array_equal(np.concatenate([first, second, third]), np.arange(450))
    assert commands == [Command("listen", 5), Command("listen", 5), Command("listen", 2), Command("finish")]


Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def connect(monkeypatch: pytest.MonkeyPatch, talk: Talk, seconds: float = 0.3) -> None:
    """Serve a small application with the protocol of the server, and talk to it."""

    async def answer(scope: dict, receive: Callable, send: Callable) -> None:
        while (await receive()).get("more_body"):
            pass
        await asyncio.sleep(2 * seconds)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})

    async def serve() -> None:
        config = uvicorn.Config(answer, lifespan="off", log_level="error")
        config.load()
        state = ServerState()
        server = await asyncio.get_running_loop().create_server(
            lambda: PunctualProtocol(config, state, {}), "127.0.0.1", 0
        )
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        try:
            await asyncio.wait_for(talk(reader, writer), 20)
        finally:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()
            server.close()

    monkeypatch.setattr(run, "HEADER_SECONDS", seconds)
    asyncio.run(serve())


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\nHost: x\r\n"], ids=["nothing", "half a header"])
def test_connections_without_a_request_are_closed(monkeypatch: pytest.MonkeyPatch, sent: bytes) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(sent)
        assert await reader.read() == b""

    connect(monkeypatch, talk)


def test_slow_answers_and_bodies_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(2):
            writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nab")
            await asyncio.sleep(0.6)
            writer.write(b"cd")
            assert (await reader.readuntil(b"\r\n\r\nok")).startswith(b"HTTP/1.1 200")
        # The beginning of a third request, and nothing more.
        writer.write(b"GET / HT")
        assert await reader.read() == b""

    connect(monkeypatch, talk)
