"""Two real clips through the whole workflow of a user: prepare, train, render, evaluate."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from s3dnerf import cli
from s3dnerf.data.clip import list_clips, load_clip
from s3dnerf.data.motion_statistics import measure_track_loss
from s3dnerf.data.tracks import load_clip_track
from s3dnerf.face.expression_basis import load_shipped_basis
from s3dnerf.face.portrait import find_face
from s3dnerf.media.audio import read_clean_speech
from s3dnerf.media.image import read_image, write_image
from s3dnerf.media.video import probe_video, stream_frames


@pytest.fixture(scope="module")
def checkpoint(real_prepared_clips: Path, tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Path:
    """Settings of configs/smoke.yaml for training on the two clips."""
    run = tmp_path_factory.mktemp("run")
    words = ["--config", "smoke.yaml", "--data.root", str(real_prepared_clips), "--out", str(run)]
    assert cli.main(["train", *words, "--train.precision", "float32"]) == 0
    return run / "checkpoints" / "step_0000012"


def test_prepared_clips_hold_the_real_ones(real_prepared_clips: Path, real_clips_folder: Path) -> None:
    report = json.loads((real_prepared_clips / "report.json").read_text())
    assert sorted(report["prepared"]) == ["grid_uB_lwbsza", "grid_uC_lrwp9a"] and report["failed"] == []
    assert [len(list_clips(real_prepared_clips, split)) for split in ("train", "val")] == [1, 1]
    for folder in list_clips(real_prepared_clips):
        clip = load_clip(folder)
        assert (clip.frames, clip.size, clip.sync) == (75, 64, "ok")
        assert clip.valid.all() and clip.lip_opening.std() > 0.01
        # The lossless 16-bit audio next to the clip, except for frequencies below speech.
        sound = read_clean_speech(real_clips_folder / f"{clip.id}.wav")[: 75 * 640].clip(-1, 1)
        np.testing.assert_allclose(clip.read_speech(), sound, atol=1 / 32768)


def test_coefficients_keep_the_lips_of_a_person_outside_the_basis(real_prepared_clips: Path) -> None:
    (folder,) = list_clips(real_prepared_clips, split="val")
    _, lips, brows = measure_track_loss(load_clip_track(folder), load_shipped_basis())
    assert lips >= 0.99
    assert brows >= 0.98


def test_the_trained_model_renders_a_portrait(checkpoint: Path, real_clips_folder: Path, tmp_path: Path) -> None:
    portrait = next(stream_frames(real_clips_folder / "grid_uB_lwbsza.mp4"))
    write_image(tmp_path / "portrait.png", portrait)
    words = ["--image", str(tmp_path / "portrait.png"), "--audio", str(real_clips_folder / "grid_uC_lrwp9a.wav")]
    out = tmp_path / "talking.mp4"
    assert cli.main(["render", *words, "--checkpoint", str(checkpoint), "--out", str(out), "--pose", "static"]) == 0
    info = probe_video(out)
    assert (info.width, info.frames, info.has_audio) == (64, 75, True)
    # After twelve steps the frames still resemble the source.
    face = find_face(tmp_path / "portrait.png", 64).image
    assert np.abs(next(stream_frames(out)).astype(int) - face).mean() < 15


def test_the_trained_model_is_evaluated(checkpoint: Path, real_clips_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "evaluation"
    words = ["--clips", str(real_clips_folder), "--manifest", str(real_clips_folder / "MANIFEST.csv"), "--split", "val"]
    words += ["--checkpoint", str(checkpoint), "--out", str(out), "--max-frames", "12", "--device", "cpu"]
    assert cli.main(["evaluate", *words]) == 0
    assert (probe_video(out / "grid_uB_lwbsza.mp4").width, probe_video(out / "grid_uB_lwbsza.mp4").frames) == (256, 12)
    assert read_image(out / "contact_sheet.png").std() > 10
    report = json.loads((out / "report.json").read_text())
    table = (out / "table.md").read_text()
    for row in ("ours", "frozen", "ground truth"):
        assert row in table
    assert (out / "table.csv").read_text().count("\n") >= 5
    assert "grid_uB_lwbsza" in json.dumps(report)
    assert "grid_uC" not in json.dumps(report["clips"])
