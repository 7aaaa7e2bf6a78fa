"""From the command to the first frame, and the pace of the following ones, in processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from s3dnerf.errors import UserError
from s3dnerf.evaluation.benchmark.report import Table
from s3dnerf.media.image import read_image, write_image

PICTURE_SIZE = (4000, 6000)
"""Height and width of the whole picture: 24 megapixels."""
HEAD_SHARE = 0.4
"""Height of the source image in it, relative to the picture's."""
PROGRAM = """
import sys, time
begin, image, audio, out, checkpoint, device, framing, size, frames = sys.argv[1:]
since = lambda: time.time() - float(begin)
import torch
torch_imported = since()
import s3dnerf
s3dnerf.TalkingHeadPipeline
imported = since()
from itertools import islice
import json
from s3dnerf.media.video import ThreadedVideoWriter
from s3dnerf.ops.backend import keep_freed_memory
from s3dnerf.memory import measure_peak_memory
keep_freed_memory()
pipeline = s3dnerf.TalkingHeadPipeline.from_pretrained(checkpoint or None, device)
video = pipeline(image, audio, framing=framing, size=int(size) or None)
times = []
with ThreadedVideoWriter(video.open_file(out)) as writer:
    for frame in islice(video, int(frames)):
        times.append(since())
        writer.write(frame)
written = since()
print(json.dumps([torch_imported, imported, times, written, measure_peak_memory()]))
"""


def measure_startup(image: Path, audio: Path, checkpoint: str | None, frames: int, device: str) -> Table:
    """Render into an mp4 in new processes: the crop, larger crops and a whole picture of 24 megapixels.

    A first process, which is not timed, compiles the modules of a checkout, as those of an installed package are, and
    reads all files once.

    Args:
        image: a source image.
        audio: speech.
        checkpoint: as in ``TalkingHeadPipeline.from_pretrained``.
        frames: maximum number of frames.
        device: "cpu" or "cuda".

    Raises:
        UserError: a process fails.
    """
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        whole, out = Path(folder) / "picture.jpg", Path(folder) / "video.mp4"
        write_image(whole, _enlarge(read_image(image)))
        _render(image, audio, out, checkpoint or "", device, "crop", 0, 1)
        for framing, size in (("crop", 0), ("crop", 512), ("crop", 1024), ("picture", 0)):
            source = image if framing == "crop" and not size else whole
            with_torch, imported, times, written, memory = _render(
                source, audio, out, checkpoint or "", device, framing, size, frames
            )
            # Frames come in batches, so the pace is that of the file.
            steps = 1e3 * np.diff([*times, written])
            mean = float(steps.mean())
            rows.append(
                {
                    "framing": f"{framing} {size}" if size else framing,
                    "import torch s": with_torch,
                    "cold start s": imported,
                    "first frame s": times[0],
                    "mean ms a frame": mean,
                    "p99 ms": float(np.percentile(steps, 99)),
                    "peak memory MB": float(memory),
                    "times the crop": mean / rows[0]["mean ms a frame"] if rows else 1.0,
                }
            )
    return Table(f"Start and pace in a new process, {frames} frames, {device}; the picture has 24 megapixels", rows)


def _render(*words: Any) -> Any:
    """Run the program and return what it prints."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, "-c", PROGRAM, *map(str, (time.time(), *words))]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise UserError("benchmark", f"rendering fails ({done.stderr.strip()[-300:]})", "See this message.")
    return json.loads(done.stdout.splitlines()[-1])


def _enlarge(image: np.ndarray) -> np.ndarray:
    """Return a picture of 24 megapixels that shows a source image in its middle."""
    height, width = PICTURE_SIZE
    side = round(HEAD_SHARE * height)
    picture = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    picture = cv2.GaussianBlur(picture, (0, 0), 60)
    scaled = cv2.resize(image, (side * image.shape[1] // image.shape[0], side), interpolation=cv2.INTER_CUBIC)
    left = (width - scaled.shape[1]) // 2
    picture[height // 4 : height // 4 + side, left : left + scaled.shape[1]] = scaled
    return picture
