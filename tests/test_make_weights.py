"""``make weights``: from real clips to weights with a model card, and a second run that repeats nothing."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from itertools import cycle, islice
from pathlib import Path

import pytest
import yaml

from s3dnerf.constants import SAMPLES_PER_FRAME
from s3dnerf.media.audio import read_speech
from s3dnerf.media.video.reader import stream_frames
from s3dnerf.media.video.writer import VideoWriter
from s3dnerf.models.s3dnerf.s3dnerf import S3DNeRF

ROOT = Path(__file__).parents[1]
FRAMES = 25
SYNC = "data:\n  segments: 2\ntrain:\n  steps: 4\n  warmup: 2\n  validate_every: 4\n  save_every: 4\n"


@pytest.fixture
def videos(real_clips_folder: Path, tmp_path: Path) -> Path:
    """Parts of two clips, and a manifest that calls them four people to train on and one to evaluate.

    To estimate offsets, half of the people are left out, and training needs two people in each half.
    """
    folder = tmp_path / "videos"
    folder.mkdir()
    rows = []
    for number, video in enumerate(islice(cycle(sorted(real_clips_folder.glob("*.mp4"))), 5)):
        name, first = f"person_{number}", number // 2 * FRAMES
        frames = list(islice(stream_frames(video), first, first + FRAMES))
        sound = read_speech(video.with_suffix(".wav"))[first * SAMPLES_PER_FRAME :][: FRAMES * SAMPLES_PER_FRAME]
        with VideoWriter(folder / f"{name}.mp4", frames[0].shape[1::-1], audio=sound, crf=10) as writer:
            for frame in frames:
                writer.write(frame)
        rows.append([name, "clip", f"{name}.mp4", name, "val" if number == 4 else "train", "ok", ""])
    with (folder / "MANIFEST.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["id", "kind", "file", "identity", "split", "sync", "notes"], *rows])
    return folder


@pytest.mark.slow
@pytest.mark.data
def test_clips_become_weights_with_a_card(videos: Path, tmp_path: Path) -> None:
    (tmp_path / "sync.yaml").write_text(SYNC)
    words = ["--videos", str(videos), "--manifest", str(videos / "MANIFEST.csv"), "--out", str(tmp_path / "out")]
    words += ["--config", "smoke.yaml", "--sync-config", str(tmp_path / "sync.yaml"), "--max-frames", "6"]
    words += ["--train.steps", "2", "--train.motion_steps", "1", "--train.gradient_accumulation_steps", "2"]
    words += ["--processes", "2"]
    command = [sys.executable, str(ROOT / "tools" / "make_weights.py"), *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    first = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert first.returncode == 0, first.stderr[-2000:]
    assert [line.split()[2] for line in first.stdout.splitlines() if line.startswith("$ s3dnerf")] == [
        *("prepare", "train-sync", "train-sync", "train", "evaluate")
    ]
    weights = tmp_path / "out" / "model"
    assert S3DNeRF.load(weights).config.ray_size == 16
    card = (weights / "README.md").read_text()
    assert "| ours |" in card and "make weights VIDEOS=DIR MANIFEST=CSV ARGS='--processes 2 --train.steps 2" in card
    resolved = yaml.safe_load((weights.parent / "run" / "config.yaml").read_text())
    assert resolved["train"]["gradient_accumulation_steps"] == 1  # two processes, as many frames a step
    steps = sorted(path.name for path in (tmp_path / "out" / "run" / "checkpoints").iterdir())
    rendered = weights.parent / "evaluation" / "person_4.mp4"
    made = rendered.stat().st_mtime_ns
    again = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert again.returncode == 0, again.stderr[-2000:]
    assert "--offsets" not in again.stdout and rendered.stat().st_mtime_ns == made
    assert sorted(path.name for path in (tmp_path / "out" / "run" / "checkpoints").iterdir()) == steps


def test_processes_that_cannot_share_a_step_are_refused(tmp_path: Path) -> None:
    words = ["--videos", str(tmp_path), "--manifest", str(tmp_path / "none.csv"), "--out", str(tmp_path / "out")]
    command = [sys.executable, str(ROOT / "tools" / "make_weights.py"), *words, "--processes", "3"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "3 does not divide the 2 batches" in done.stderr
    assert not (tmp_path / "out").exists()


def test_videos_and_manifest_are_required() -> None:
    command = [sys.executable, str(ROOT / "tools" / "make_weights.py"), "--videos", "nowhere"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "--manifest" in done.stderr and len(done.stderr.splitlines()) == 1
