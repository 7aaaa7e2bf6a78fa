"""The scripts in examples/ on real inputs: a public-domain photograph and the shipped speech."""

from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from skimage.data import astronaut

import s3dnerf
from s3dnerf.media.audio import SAMPLES_PER_FRAME, read_speech, write_wav
from s3dnerf.media.image import read_image, write_image
from s3dnerf.media.video import VideoWriter, probe_video

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
FRAMES = 12


@pytest.fixture
def inputs(one_thread: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the working directory, a folder with portrait.png and half a second of speech.wav."""
    monkeypatch.chdir(tmp_path)
    speech = read_speech(Path(s3dnerf.__file__).parent / "assets" / "speech.wav")
    write_image("portrait.png", astronaut())
    write_wav("speech.wav", speech[: FRAMES * SAMPLES_PER_FRAME])
    return tmp_path


def load(name: str) -> SimpleNamespace:
    """Return the functions of an example."""
    return SimpleNamespace(**runpy.run_path(str(EXAMPLES / f"{name}.py")))


def test_every_example_is_tested_and_mentioned_in_the_quick_start() -> None:
    tests = Path(__file__).read_text("utf-8")
    page = (EXAMPLES.parent / "docs" / "quick-start.md").read_text("utf-8")
    names = [path.stem for path in EXAMPLES.glob("*.py")]
    assert names
    assert all(f'load("{name}")' in tests and f"examples/{name}.py" in page for name in names)


@pytest.mark.slow
def test_render_video(inputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load("render_video").main("portrait.png", "speech.wav", "talking.mp4")
    info = probe_video("talking.mp4")
    assert (info.width, info.height, info.frames, info.has_audio) == (256, 256, FRAMES, True)
    assert f"{FRAMES} frames" in capsys.readouterr().out


@pytest.mark.slow
def test_stream_frames_of_two_utterances_in_a_row(inputs: Path) -> None:
    frames = list(load("stream_frames").stream("portrait.png", "speech.wav", "speech.wav"))
    assert len(frames) == 2 * FRAMES
    steps = np.abs(np.diff(np.stack(frames).astype(np.int16), axis=0)).mean(axis=(1, 2, 3))
    assert 0 < steps[FRAMES - 1] <= 2 * steps.max(initial=0, where=np.arange(len(steps)) != FRAMES - 1)


@pytest.mark.slow
def test_stream_frames_reports_times(inputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load("stream_frames").main("portrait.png", "speech.wav")
    assert f"{FRAMES} frames in" in capsys.readouterr().out


@pytest.mark.slow
def test_turn_head(inputs: Path) -> None:
    load("turn_head").main("portrait.png", "speech.wav", "sides.png", frame=2)
    left, middle, right = np.split(read_image("sides.png").astype(int), 3, axis=1)
    assert left.shape == (256, 256, 3)
    assert all(np.abs(view - middle).mean() > 2 for view in (left, right))


def test_score_clips(inputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = astronaut()[:128, 160:288]
    noise = np.random.default_rng(0).integers(-9, 10, image.shape)
    for name, frame in (("target.mp4", image), ("generated.mp4", np.clip(image + noise, 0, 255).astype(np.uint8))):
        with VideoWriter(name, (128, 128)) as writer:
            for _ in range(3):
                writer.write(frame)
    example = load("score_clips")
    same, noisy = example.score("target.mp4", "target.mp4"), example.score("target.mp4", "generated.mp4")
    assert same["psnr"] == np.inf and same["ssim"] == pytest.approx(1.0)
    assert 20 < noisy["psnr"] < 45 and noisy["ssim"] < 0.99
    example.main("target.mp4", "generated.mp4")
    assert "psnr" in capsys.readouterr().out
