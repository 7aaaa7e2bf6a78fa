"""The server as a process: the command, a video over a real connection, and its end by SIGTERM."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from s3dnerf import cli
from tests.serving.conftest import CachedPipeline, encode_wav, wait_for


@pytest.fixture
def served(tiny_pipeline: CachedPipeline, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], str, Path]]:
    """Run the command with a tiny model; return its process, its address, and its folder for temporary files."""
    tiny_pipeline.model.save_pretrained(tmp_path / "model")
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    words = ["serve", "--port", "0", "--device", "cpu", "--checkpoint", str(tmp_path / "model"), "--stop-seconds", "1"]
    environment = {**os.environ, "TMPDIR": str(temporary), "OMP_NUM_THREADS": "1"}
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "s3dnerf", *words], env=environment, stdout=subprocess.PIPE, stderr=log, text=True
        )
    try:
        line = process.stdout.readline()
        assert line.startswith("s3dnerf: http://127.0.0.1:"), line
        yield process, line.split()[1], temporary
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@contextmanager
def begin_upload(address: str, server: psutil.Process) -> Iterator[None]:
    """Send the first 3 MB of a larger form and wait until the server holds them in a file. Vanish after the block."""
    host, port = address.removeprefix("http://").split(":")
    head = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
    before = server.num_fds()
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(
            b"POST /v1/render HTTP/1.1\r\nHost: a\r\nContent-Type: multipart/form-data; boundary=x\r\n"
            b"Content-Length: 9000000\r\n\r\n" + head + bytes(3_000_000)
        )
        wait_for(lambda: server.num_fds() > before + 1)
        yield


def test_a_process_renders_and_ends_in_an_orderly_way(
    served: tuple[subprocess.Popen[str], str, Path], picture: bytes, wav: bytes, sound: np.ndarray
) -> None:
    process, address, temporary = served
    with httpx.Client(base_url=address, timeout=120) as client:
        files = {"image": picture, "audio": wav}
        job = client.post("/v1/render", files=files, data={"pose": "static"}).json()
        wait_for(lambda: client.get(f"/v1/render/{job['id']}").json()["status"] == "done", 120)
        assert client.get(f"/v1/render/{job['id']}/result").content[4:8] == b"ftyp"
        portrait = client.post("/v1/portraits", files={"image": picture}).json()["id"]
        assert any(temporary.iterdir())
        files = sorted(temporary.rglob("*"))
        server = psutil.Process(process.pid)
        before = server.num_fds()
        with begin_upload(address, server):
            pass
        wait_for(lambda: server.num_fds() == before)
        assert sorted(temporary.rglob("*")) == files
        assert client.get("/healthz").json()["jobs_waiting"] == 0
        with connect(f"{address.replace('http', 'ws')}/v1/live") as session:
            session.send(f'{{"portrait": "{portrait}"}}')
            assert '"ready"' in session.recv()
            files = {"image": picture, "audio": encode_wav(np.tile(sound, 200))}
            long = client.post("/v1/render", files=files, data={"pose": "static"}).json()
            assert long["status"] in ("waiting", "running")
            begin = time.monotonic()
            process.send_signal(signal.SIGTERM)
            with pytest.raises(ConnectionClosed):
                session.recv(timeout=30)
    # The job is cancelled after a second.
    assert process.wait(timeout=60) == 0
    assert time.monotonic() - begin < 60
    assert "s3dnerf: stopped" in process.stdout.read()
    assert [path for path in temporary.iterdir() if path.name.startswith("s3dnerf-serve-")] == []


def test_a_request_that_the_end_cuts_off_leaves_no_traceback(
    served: tuple[subprocess.Popen[str], str, Path], tmp_path: Path
) -> None:
    process, address, _ = served
    with begin_upload(address, psutil.Process(process.pid)):
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0
    log = (tmp_path / "log").read_text()
    assert "Traceback" not in log and "Error" not in log, log


def test_wrong_settings_are_refused_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["serve", "--waiting-jobs", "0"]) == 2
    assert "--waiting-jobs 0" in capsys.readouterr().err
    assert cli.main(["serve", "--port", "70000"]) == 2
    assert "--port 70000" in capsys.readouterr().err


def test_the_help_teaches_and_lists_all_limits(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["serve", "--help"])
    text = capsys.readouterr().out
    assert all(word in text for word in ("curl", "--live-sessions", "--upload-megabytes", "--stop-seconds"))
