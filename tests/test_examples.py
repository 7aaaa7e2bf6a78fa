"""The scripts in examples/ on real inputs: a public-domain photograph and the shipped speech."""

from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from skimage.data import astronaut

import s3dnerf
from s3dnerf.evaluation.measures import MEASURES
from s3dnerf.evaluation.score import RealClips
from s3dnerf.media.audio import SAMPLES_PER_FRAME, read_speech, write_wav
from s3dnerf.media.image import read_image, write_image
from s3dnerf.media.video import VideoWriter, probe_video

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
FRAMES = 12
TWO_CLIPS, TWO_CLIPS_FRAMES = ("grid_uB_lwbsza", "mead_W015_level_1_neutral_030"), 36
"""Two clips of `val`, and how much of them the page on the benchmark shows."""
UNSTEADY = ("closures F1", "F1 by chance", "lip slope", "level-speed r")
"""Counts and correlations over few frames, which differ where a processor of another kind tracks in other last bits."""


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


@pytest.fixture
def two_people(inputs: Path) -> Path:
    """A folder with two clips of half a second of one face, with different sound and different motion."""
    folder = inputs / "people"
    for seed, name in enumerate(("ann", "ben")):
        rng = np.random.default_rng(seed)
        envelope = np.repeat(rng.uniform(0.05, 1.0, 8), SAMPLES_PER_FRAME)
        sound = (0.1 * envelope * rng.normal(size=len(envelope))).astype(np.float32)
        with VideoWriter(folder / f"{name}.mp4", (256, 256), audio=sound, crf=10) as writer:
            for frame in range(8):
                left = 106 + round((3 + seed) * np.sin(frame))
                writer.write(np.ascontiguousarray(astronaut()[:256, left : left + 256]))
    return folder


@pytest.mark.slow
def test_benchmark_your_method(two_people: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example = load("benchmark_your_method")
    report = example.benchmark(RealClips(two_people), Path("outputs"), workers=1)
    warp, wrong = report.scores["landmark_warp"], report.scores["wrong_sound"]
    for clip in ("ann", "ben"):
        # The right video with a wrong sound is seen by the sound alone, the warped portrait by its pictures.
        assert warp[clip]["sound_match"] > 0.95 > 0.7 > wrong[clip]["sound_match"]
        assert wrong[clip]["psnr"] > warp[clip]["psnr"] + 3 and wrong[clip]["f_lmd"] < warp[clip]["f_lmd"]
    # The head follows the poses: the face lies within two pixels of the real one.
    assert max(warp[clip]["f_lmd"] for clip in warp) < 2.0
    example.main("people", "outputs", workers=1)
    assert "minus landmark_warp" in capsys.readouterr().out


@pytest.mark.slow
def test_the_table_of_two_real_clips_is_the_one_in_the_docs(inputs: Path, shared_data: Path) -> None:
    """What the page on the benchmark shows of two clips is what the example measures."""
    page = (EXAMPLES.parent / "docs" / "benchmark.md").read_text("utf-8")
    rows = page.partition("<!-- two clips -->")[2].partition("<!-- end -->")[0].strip().splitlines()
    real = RealClips(shared_data / "clips", only=TWO_CLIPS)
    report = load("benchmark_your_method").benchmark(real, Path("outputs"), TWO_CLIPS_FRAMES, workers=1)
    headings = {measure.heading: measure.name for measure in MEASURES}
    methods = [cell.strip() for cell in rows[0].strip("|").split("|")][1:]
    assert methods == ["real", "wrong_sound", "landmark_warp"] and len(rows) > 20
    for row in rows[2:]:
        heading, *cells = (cell.strip() for cell in row.strip("|").split("|"))
        for method, cell in zip(methods, cells, strict=True):
            mean = report.estimate(method).get(headings[heading], (np.nan,))[0]
            if cell == "-":
                assert not np.isfinite(mean)
            else:
                shown, slack = float(cell.split(" ")[0]), 0.1 if heading.startswith(UNSTEADY) else 0.02
                assert mean == pytest.approx(shown, rel=0.05, abs=slack), (heading, method)
    # Wrong sound loses where lips are compared with the sound of the video, in both clips, and nowhere else.
    wrong, warp = report.scores["wrong_sound"], report.scores["landmark_warp"]
    for clip in TWO_CLIPS:
        real_scores = report.scores["real"][clip]
        assert wrong[clip]["sync_confidence"] < 0.8 * real_scores["sync_confidence"]
        assert wrong[clip]["sync_in_step"] < real_scores["sync_in_step"] - 0.1
        assert wrong[clip]["lip_correlation"] > 0.95 > warp[clip]["lip_correlation"]
        assert wrong[clip]["sound_match"] < 0.7


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
