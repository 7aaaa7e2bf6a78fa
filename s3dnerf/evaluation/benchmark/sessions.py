"""How many live sessions a machine holds: clients of a server that speak at their own pace, more and more of them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from s3dnerf.constants import FPS, SAMPLE_RATE, SAMPLES_PER_FRAME
from s3dnerf.errors import UserError
from s3dnerf.evaluation.benchmark.rendering import default_inputs
from s3dnerf.evaluation.benchmark.report import Table
from s3dnerf.media.audio import read_speech

MAX_LAG_SECONDS = 0.5
"""A machine holds sessions while 99 % of their frames come no later than this after what they have to hear ahead."""


def measure_sessions(
    most: int,
    image: Path | None = None,
    audio: Path | None = None,
    checkpoint: str | None = None,
    seconds: int = 10,
    device: str = "auto",
) -> Table:
    """Open 1, 2, 3, ... live sessions of a server over WebSocket until the machine does not hold them.

    Args:
        most: most sessions.
        image: a source image; None for the portrait of scikit-image.
        audio: speech, which is repeated; None for the shipped sentence.
        checkpoint: as in ``TalkingHeadPipeline.from_pretrained``.
        seconds: length of each session.
        device: "auto", "cpu" or "cuda".

    Returns:
        A row for each number of sessions. The latency of a frame is the time from the end of its sound to its arrival;
        "cores a session" is the time of processor cores per second of speech, which other programs hardly change.

    Raises:
        UserError: the server does not start, or the picture has no face.
    """
    rows = []
    with default_inputs(image, audio) as (image, audio), run_server(most, checkpoint, device) as address:
        speech = read_speech(audio)
        portrait = upload(address, image)
        for count in range(1, most + 1):
            with ThreadPoolExecutor(count) as pool:
                # Speakers begin at different moments.
                parts = [np.roll(speech, -2 * SAMPLE_RATE * number) for number in range(count)]
                before = read_processor_time(address)
                runs = list(pool.map(lambda part: speak(address, portrait, part, seconds), parts))
                busy = read_processor_time(address) - before
            ahead = runs[0][0]
            latencies = np.concatenate([latency for _, latency in runs])
            missing = sum(seconds * FPS - len(latency) for _, latency in runs)
            late = float(np.quantile(latencies, 0.99))
            holds = not missing and late < ahead + MAX_LAG_SECONDS
            rows.append(
                {
                    "sessions": count,
                    "heard ahead, s": ahead,
                    "latency median, s": float(np.median(latencies)),
                    "p99, s": late,
                    "cores a session": busy / (count * seconds),
                    "frames missing": missing,
                    "held": "yes" if holds else "no",
                }
            )
            if not holds:
                break
    return Table(f"Live sessions at once over WebSocket, {seconds} s each", rows)


@contextmanager
def run_server(sessions: int, checkpoint: str | None, device: str) -> Iterator[str]:
    """Run a server inside the block, in a process of its own; yield its address."""
    words = ["serve", "--port", "0", "--device", device, "--live-sessions", str(sessions)]
    words += ["--checkpoint", checkpoint] if checkpoint else []
    process = subprocess.Popen([sys.executable, "-m", "s3dnerf", *words], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None, "a pipe"
    try:
        found = re.search(r"http://\S+", process.stdout.readline())
        if found is None:
            raise UserError("s3dnerf serve", "does not start", "Its message tells why.")
        yield found[0]
    finally:
        process.terminate()
        process.wait()


def upload(address: str, image: Path) -> str:
    """Upload a picture and return its id. Raises UserError if it is refused."""
    import httpx

    answer = httpx.post(f"{address}/v1/portraits", files={"image": image.read_bytes()}, timeout=300)
    if answer.status_code != 201:
        raise UserError(image, f"is refused ({answer.json()['error']})", "Use another picture.")
    return str(answer.json()["id"])


def read_processor_time(address: str) -> float:
    """Return the seconds of processor cores that a server has used; NaN where it does not tell, outside of Linux."""
    import httpx

    found = re.search(r"^process_cpu_seconds_total (\S+)", httpx.get(f"{address}/metrics", timeout=60).text, re.M)
    return float(found[1]) if found else float("nan")


def speak(address: str, portrait: str, speech: np.ndarray, seconds: int) -> tuple[float, np.ndarray]:
    """Feed speech at its own pace.

    Returns:
        The seconds that frames have to hear ahead, and the latency of each frame in seconds.
    """
    from websockets.sync.client import connect

    samples = np.resize(np.rint(32767 * speech).astype("<i2"), seconds * SAMPLE_RATE)
    latencies: list[float] = []
    options = {"compression": None, "max_size": None, "ping_interval": None}
    with connect(f"ws{address.removeprefix('http')}/v1/live", **options) as socket:
        socket.send(json.dumps({"portrait": portrait, "rate": SAMPLE_RATE}))
        ready = json.loads(socket.recv())
        if ready["type"] != "ready":
            raise UserError("s3dnerf serve", f"refuses a session ({ready['error']})", "Use other options.")
        start = time.perf_counter()

        def feed() -> None:
            for number, block in enumerate(samples.reshape(-1, SAMPLES_PER_FRAME)):
                time.sleep(max(0.0, start + (number + 1) / FPS - time.perf_counter()))
                socket.send(block.tobytes())
            socket.send(json.dumps({"type": "finish"}))

        feeder = threading.Thread(target=feed)
        feeder.start()
        while isinstance(socket.recv(timeout=60), bytes):
            latencies.append(time.perf_counter() - start - (len(latencies) + 1) / FPS)
        feeder.join()
    return float(ready["lookahead_seconds"]), np.array(latencies)
