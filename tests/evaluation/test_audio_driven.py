"""Videos from the first frame and the audio of a clip: what the renderer is given, scores, files, invalid options."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from itertools import chain, islice, repeat
from pathlib import Path

import numpy as np
import pytest

from s3dnerf import cli
from s3dnerf.constants import SAMPLES_PER_FRAME
from s3dnerf.errors import UserError
from s3dnerf.evaluation.audio_driven import EvaluatedVideos, evaluate_audio_driven, read_scores
from s3dnerf.evaluation.rows import seed_clip
from s3dnerf.media.audio import read_speech
from s3dnerf.media.image import read_image
from s3dnerf.media.video import probe_video, stream_frames
from s3dnerf.models.sync_discriminator import SyncDiscriminator, load_discriminator

ROWS = ("static", "idle", "speech", "speech_next_seed")
FRAMES = 12


class Replay:
    """Plays the real frames for the pose "speech", and repeats the image otherwise, without end."""

    def __init__(self, video: Path) -> None:
        self.video, self.calls = video, []

    def __call__(self, image: Path, audio: Path, **options: object) -> Iterator[np.ndarray]:
        self.calls.append({"image": image, "audio": audio, **options})
        still = repeat(read_image(image))
        return chain(stream_frames(self.video), still) if options["pose"] == "speech" else still


@pytest.fixture(scope="module")
def lip_sync() -> SyncDiscriminator:
    return load_discriminator()


@pytest.fixture(scope="module")
def replayed(astronaut_clips, lip_sync, tmp_path_factory):
    out = tmp_path_factory.mktemp("free")
    pipeline = Replay(astronaut_clips / "astronaut.mp4")
    videos = EvaluatedVideos(astronaut_clips, max_frames=FRAMES)
    return evaluate_audio_driven(videos, out, pipeline, lip_sync, ROWS, 3), out, pipeline.calls


def test_the_renderer_gets_the_first_frame_the_audio_and_the_options_of_the_row(replayed, astronaut_clips):
    _, out, calls = replayed
    first = next(stream_frames(astronaut_clips / "astronaut.mp4"))
    np.testing.assert_array_equal(read_image(out / "sources" / "astronaut.png"), first)
    # Every clip has a seed of its own, so that eyes do not blink alike in all.
    this, following = (seed_clip(seed, "astronaut") for seed in (3, 4))
    assert this != following and this != seed_clip(3, "other")
    assert [(call["pose"], call["method"], call["seed"]) for call in calls] == [
        ("static", "s3dnerf", this),
        ("idle", "s3dnerf", this),
        ("speech", "s3dnerf", this),
        ("speech", "s3dnerf", following),
    ]
    for call in calls:
        assert call["image"] == out / "sources" / "astronaut.png" and call["framing"] == "picture"
        assert call["audio"] == out / "sources" / "astronaut.wav"
    speech = read_speech(astronaut_clips / "astronaut.wav")[: FRAMES * SAMPLES_PER_FRAME]
    np.testing.assert_allclose(read_speech(out / "sources" / "astronaut.wav"), speech, atol=1e-4)


def test_finished_clips_are_not_rendered_again(replayed, astronaut_clips, lip_sync):
    report, out, calls = replayed
    again = Replay(astronaut_clips / "astronaut.mp4")
    videos = EvaluatedVideos(astronaut_clips, max_frames=FRAMES)
    assert evaluate_audio_driven(videos, out, again, lip_sync, ROWS, 3).format_markdown() == report.format_markdown()
    assert calls and not again.calls
    stored = out / "scores" / "astronaut.json"
    tree = json.loads(stored.read_text("utf-8"))
    scores, frames = read_scores(stored, tree["settings"], ("idle",))
    assert list(scores) == ["real", "idle"] and frames == FRAMES
    assert read_scores(stored, {**tree["settings"], "checkpoint": "other"}, ROWS) is None
    assert read_scores(stored, tree["settings"], ("fd2talk",)) is None
    stored.with_name("broken.json").write_text("{}", "utf-8")
    with pytest.raises(UserError, match="broken"):
        read_scores(stored.with_name("broken.json"), {}, ROWS)


def test_real_lips_agree_and_still_lips_do_not(replayed):
    scores = {row: found[0] for row, found in replayed[0].clips.items()}
    assert list(scores) == ["real", *ROWS]
    assert scores["real"]["lip correlation"] == pytest.approx(1.0)
    assert scores["speech"]["lip correlation"] > 0.95 and abs(scores["speech"]["lip gain"] - 1.0) < 0.1
    assert scores["idle"]["lip gain"] < 0.1
    for row in ROWS:
        difference = scores[row]["lip correlation"] - scores["idle"]["lip correlation"]
        assert scores[row]["lip correlation minus that of idle"] == pytest.approx(difference, nan_ok=True)


def test_files_hold_the_rows_and_show_them_side_by_side(replayed):
    report, out, _ = replayed
    for row in ROWS:
        assert sum(1 for _ in stream_frames(out / "rows" / row / "astronaut.mp4")) == FRAMES
    together = probe_video(out / "side_by_side" / "astronaut.mp4")
    assert (together.width, together.height, together.has_audio) == (5 * 256, 256, True)
    left, right = (
        frame[:, place]
        for frame in islice(stream_frames(out / "side_by_side" / "astronaut.mp4"), 5, 6)
        for place in (slice(0, 256), slice(1024, 1280))
    )
    real = next(islice(stream_frames(out / "rows" / "speech" / "astronaut.mp4"), 5, 6)).astype(float)
    assert np.abs(right - real).mean() < np.abs(left - real).mean() / 2
    assert read_image(out / "sheets" / "astronaut.png").shape[0] > 5 * 176
    lines = list(csv.DictReader((out / "audio_driven.csv").read_text("utf-8").splitlines()))
    assert [line["row"] for line in lines] == ["real", *ROWS]
    assert (out / "audio_driven.md").read_text("utf-8") == report.format_markdown() + "\n"


@pytest.mark.parametrize(
    ("rows", "frames", "seed", "word"),
    [(("idel",), None, 0, "idle"), ((), None, 0, "--rows"), (ROWS, 2, 0, "--max-frames"), (ROWS, None, -1, "--seed")],
)
def test_invalid_options_are_refused(rows, frames, seed, word, astronaut_clips, lip_sync, tmp_path):
    videos = EvaluatedVideos(astronaut_clips, max_frames=frames)
    with pytest.raises(UserError, match=word):
        evaluate_audio_driven(videos, tmp_path, Replay(astronaut_clips), lip_sync, rows, seed)
    assert not list(tmp_path.iterdir())


def test_clips_without_sound_are_listed(astronaut_clips, lip_sync, tmp_path):
    from s3dnerf.media.video import VideoWriter

    with VideoWriter(tmp_path / "silent.mp4", (64, 64)) as writer:
        for frame in islice(repeat(np.zeros((64, 64, 3), np.uint8)), 8):
            writer.write(frame)
    with pytest.raises(UserError, match="sound"):
        evaluate_audio_driven(EvaluatedVideos(tmp_path), tmp_path / "out", Replay(tmp_path), lip_sync)


def test_scores_of_frames_cannot_be_asked_for(capsys, tmp_path):
    words = ["--clips", str(tmp_path), "--out", str(tmp_path / "out"), "--audio-driven", "--subset", "a"]
    assert cli.main(["evaluate", *words]) == 2
    assert "--subset" in capsys.readouterr().err
