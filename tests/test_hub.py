"""Models by hub id: loaded from the cache, or refused within seconds if the hub does not answer."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from s3dnerf import hub
from s3dnerf.errors import UserError

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FIND = """
import sys, time
from s3dnerf import hub
from s3dnerf.errors import UserError
import huggingface_hub
hub.TIMEOUT = float(sys.argv[2])
begin = time.perf_counter()
try:
    print(hub.find_model(sys.argv[1]))
except UserError as error:
    print(error)
print(time.perf_counter() - begin)
"""
NOWHERE = "http://127.0.0.1:9"
"""A proxy that refuses connections."""


def find(source: str, home: Path, proxy: str, patience: float = 4.0) -> tuple[str, float]:
    """Look for a model in a separate process that may use the network; returns its output and the seconds."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    kept = {name: value for name, value in kept.items() if not name.lower().endswith("_proxy")}
    environment = {**kept, "HF_HOME": str(home), "HTTPS_PROXY": proxy}
    words = [sys.executable, "-c", FIND, source, str(patience)]
    done = subprocess.run(words, capture_output=True, text=True, check=True, env=environment)
    assert done.stderr == ""
    line, seconds = done.stdout.splitlines()
    return line, float(seconds)


@pytest.fixture
def serve() -> Iterator[object]:
    """Starts proxies that answer every request with some bytes, or never answer."""
    servers = []

    def start(answer: bytes | None) -> str:
        server = socket.create_server(("127.0.0.1", 0))
        servers.append(server)
        threading.Thread(target=run, args=(server, answer), daemon=True).start()
        return f"http://127.0.0.1:{server.getsockname()[1]}"

    def run(server: socket.socket, answer: bytes | None) -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            servers.append(connection)
            if answer is not None and connection.recv(65536):
                connection.sendall(answer)
                connection.close()

    yield start
    for server in servers:
        server.close()


def test_a_hub_that_cannot_be_reached_is_one_line_within_seconds(tmp_path: Path) -> None:
    line, seconds = find("someone/model", tmp_path, NOWHERE)
    assert line.startswith("someone/model: holds no model") and "cannot be reached" in line
    assert "config.json" in line
    assert seconds < 10


def test_a_model_in_the_cache_is_found_without_a_connection(tmp_path: Path) -> None:
    repository = tmp_path / "hub" / "models--someone--model"
    folder = repository / "snapshots" / COMMIT
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").touch()
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    line, seconds = find("someone/model", tmp_path, NOWHERE)
    assert Path(line) == folder
    assert seconds < 10


@pytest.mark.parametrize(
    "answer",
    [b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n", b"HTTP/1.1 407 Who\r\n\r\n", b"\x00", None],
    ids=["unavailable", "forbidden", "garbage", "silence"],
)
def test_a_proxy_that_fails_is_one_line_within_seconds(answer: bytes | None, serve: object, tmp_path: Path) -> None:
    line, seconds = find("someone/model", tmp_path, serve(answer), patience=1.0)
    assert line.startswith("someone/model: holds no model")
    assert seconds < 10


def test_a_proxy_without_a_port_number_counts_as_no_connection(tmp_path: Path) -> None:
    line, _ = find("someone/model", tmp_path, "http://127.0.0.1:many")
    assert "cannot be reached" in line


@pytest.mark.parametrize(
    ("variables", "server"),
    [
        ({}, ("hub.example", 443)),
        ({"HTTPS_PROXY": "http://proxy.example:3128"}, ("proxy.example", 3128)),
        ({"https_proxy": "proxy.example:3128"}, ("proxy.example", 3128)),
        ({"ALL_PROXY": "socks5://proxy.example"}, ("proxy.example", 1080)),
        ({"HTTPS_PROXY": "http://proxy.example", "NO_PROXY": "hub.example"}, ("hub.example", 443)),
        ({"HTTP_PROXY": "http://proxy.example"}, ("hub.example", 443)),
    ],
)
def test_the_proxy_is_preferred_to_the_endpoint(
    variables: dict[str, str], server: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        for spelling in (name, name.lower()):
            monkeypatch.delenv(spelling, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert hub.find_server("https://hub.example") == server


@pytest.mark.parametrize("source", ["missing", "a/b/c", "../up", "user/mo del", "", Path("user/model")])
def test_names_that_are_not_hub_ids_are_not_requested(source: str | Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*given: object) -> None:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr(hub, "fetch_model", fail)
    with pytest.raises(UserError, match="holds no model"):
        hub.find_model(source)


def test_folders_are_used_directly(tmp_path: Path) -> None:
    assert hub.find_model(str(tmp_path)) == tmp_path
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(UserError, match=r"model\.safetensors: is a file"):
        hub.find_model(tmp_path / "model.safetensors")
