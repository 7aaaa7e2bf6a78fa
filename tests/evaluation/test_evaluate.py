import hashlib
import json
import shutil
from collections.abc import Iterator
from itertools import islice, repeat
from pathlib import Path

import numpy as np
import pytest

from s3dnerf.errors import UserError
from s3dnerf.evaluation import ROWS, evaluate_clips
from s3dnerf.evaluation.finished_clips import hash_checkpoint
from s3dnerf.evaluation.report import load_report
from s3dnerf.evaluation.rows import seed_clip
from s3dnerf.limits import MAX_SEED
from s3dnerf.media.image import read_image
from s3dnerf.media.video import VideoWriter, probe_video, stream_frames


class Replay:
    """Plays the real frames, or the first one if the pose is frozen, and writes down its calls."""

    def __init__(self) -> None:
        self.calls: list[dict] = []

    def reenact(self, video: Path, audio: Path | None, max_frames=None, **options) -> Iterator[np.ndarray]:
        self.calls.append({"video": video, "audio": audio, "max_frames": max_frames, **options})
        frames = stream_frames(video)
        if options.get("freeze_pose"):
            frames = repeat(next(frames), len(options["landmarks"]))
        return islice(frames, max_frames)


class Stop(Replay):
    def reenact(self, video: Path, audio: Path | None, **options) -> Iterator[np.ndarray]:
        return islice(stream_frames(video), 7)


@pytest.fixture(scope="module")
def replayed(astronaut_clips, tmp_path_factory):
    pipeline, out = Replay(), tmp_path_factory.mktemp("out")
    return evaluate_clips(astronaut_clips, out, rows=ROWS, seed=3, pipeline=pipeline), out, pipeline


def test_real_frames_score_as_ground_truth_does(replayed):
    means = replayed[0].means
    assert list(means) == list(ROWS)
    np.testing.assert_equal(means["ours"].as_dict(), means["ground_truth"].as_dict())
    assert means["ours"].psnr > 38
    assert means["ours"].ssim > 0.95
    assert means["ours"].f_lmd < 0.6
    assert means["ours"].lip_correlation > 0.98
    assert means["ours"].lip_gain == pytest.approx(1.0, abs=0.08)
    assert means["ours"].closure_f1 == 1.0 and means["ours"].sound_offset == 0.0
    assert means["ours"].lip_correlation_at_offset == means["ours"].lip_correlation
    assert (means["ours"].cpbd_of_real, means["ours"].jitter_of_real) == (100.0, 100.0)


def test_a_repeated_portrait_scores_as_the_unmoved_row_does(replayed):
    means = replayed[0].means
    np.testing.assert_equal(means["frozen_pose"].as_dict(), means["unmoved_portrait"].as_dict())
    assert means["unmoved_portrait"].psnr < 30
    assert means["unmoved_portrait"].f_lmd > 2.5
    assert means["unmoved_portrait"].m_lmd > means["ours"].m_lmd + 0.5
    assert means["unmoved_portrait"].lip_slope == pytest.approx(0.0, abs=0.1)


def test_pipeline_gets_the_clip_its_audio_and_its_landmarks(replayed, astronaut_clips):
    calls = replayed[2].calls
    options = (
        *("method", "renderer", "refine", "freeze_mouth", "freeze_pose", "images", "source", "shows_detail"),
        *("tracked_motion", "tracked_source"),
    )
    assert [tuple(call[name] for name in options if name in call) for call in calls] == [
        (),
        ("fd2talk",),
        ("fd2talk", "diffusion"),
        ("diffusion",),
        (True,),
        (True,),
        (2,),
        ("closed_eyes",),
        ("closed_mouth",),
        ("open_mouth",),
        ("turned",),
        (2, "open_mouth"),
        (False,),
        (True,),
        (True, True),
    ]
    for call in calls:
        assert call["video"] == astronaut_clips / "astronaut.mp4"
        assert call["audio"] == astronaut_clips / "astronaut.wav"
        assert call["seed"] == seed_clip(3, "astronaut")
        assert call["landmarks"].shape == (16, 478, 3)
        assert np.isfinite(call["landmarks"]).all()


def test_every_clip_has_a_seed_of_its_own():
    seeds = {seed_clip(seed, clip) for seed in (0, 1, MAX_SEED) for clip in ("anna", "ben", "ben_1")}
    assert len(seeds) == 9 and min(seeds) >= 0 and max(seeds) <= MAX_SEED
    assert seed_clip(1, "anna") == seed_clip(0, "anna") + 1


def test_videos_have_the_length_and_size_of_the_clip(replayed):
    out = replayed[1]
    for path in (out / "astronaut.mp4", out / "rows" / "frozen_mouth" / "astronaut.mp4"):
        info = probe_video(path)
        assert (info.width, info.height, info.frames, info.has_audio) == (256, 256, 16, True)


def test_report_files_are_complete(replayed):
    report, out, _ = replayed
    tree = json.loads((out / "report.json").read_text("utf-8"))
    assert tree["clips"]["ours"]["astronaut"]["psnr"] == report.means["ours"].psnr
    assert tree["skipped"] == {}
    assert set(tree["missing"]) == {"lpips", "lpips_vgg", "csim", "fid", "lse_c", "lse_d"}
    assert len((out / "table.csv").read_text("utf-8").splitlines()) == 1 + 2 * len(ROWS)
    assert "unmoved portrait" in (out / "table.md").read_text("utf-8")
    assert report.format_summary() in (out / "table.md").read_text("utf-8")
    assert tree["people"] == {"astronaut": "astronaut"}
    assert load_report(out).format_table() == report.format_table()
    assert read_image(out / "contact_sheet.png").shape[0] < read_image(out / "sheets" / "astronaut.png").shape[0]


def test_a_real_clip_is_reenacted_cut_and_compared_with_itself(real_clips, tmp_path):
    options = {"max_frames": 12, "pipeline": Replay(), "only": ["real"], "subset": ["real"]}
    report = evaluate_clips(real_clips, tmp_path, rows=("ours", "unmoved_portrait"), **options)
    again = evaluate_clips(real_clips, tmp_path / "again", rows=("ours",), compare=tmp_path, **options)
    assert {score.later - score.earlier for score in again.compare() if np.isfinite(score.later)} == {0.0}
    assert "on 1 clips of 1 people." in (tmp_path / "again" / "table.md").read_text("utf-8")
    assert probe_video(tmp_path / "real.mp4").frames == 12
    assert report.means["ours"].psnr > report.means["unmoved_portrait"].psnr + 3
    assert report.means["ours"].f_lmd < 0.5


def test_rows_without_a_model_need_none(astronaut_clips, tmp_path):
    report = evaluate_clips(astronaut_clips, tmp_path, max_frames=5, rows=("unmoved_portrait",))
    assert list(report.means) == ["unmoved_portrait"]
    assert not (tmp_path / "astronaut.mp4").exists()


def test_a_pipeline_that_stops_early_is_an_error_and_leaves_no_video(astronaut_clips, tmp_path):
    with pytest.raises(ValueError, match="7 frames .* which has 16"):
        evaluate_clips(astronaut_clips, tmp_path, rows=("ours",), pipeline=Stop())
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_evaluation_goes_on_where_it_stopped(astronaut_clips: Path, tmp_path: Path) -> None:
    clips, out = tmp_path / "clips", tmp_path / "out"
    clips.mkdir()
    for name in ("first", "second"):
        for kind in ("mp4", "wav"):
            shutil.copy(astronaut_clips / f"astronaut.{kind}", clips / f"{name}.{kind}")
    options = {"rows": ("ours", "ground_truth"), "max_frames": 8}

    class Interrupted(Replay):
        def reenact(self, video: Path, audio: Path | None, **options) -> Iterator[np.ndarray]:
            if video.stem == "second":
                raise KeyboardInterrupt
            return super().reenact(video, audio, **options)

    with pytest.raises(KeyboardInterrupt):
        evaluate_clips(clips, out, pipeline=Interrupted(), **options)
    pipelines = [Replay() for _ in range(5)]
    report = evaluate_clips(clips, out, pipeline=pipelines[0], resume=True, **options)
    assert [call["video"].stem for call in pipelines[0].calls] == ["second"]
    whole = evaluate_clips(clips, tmp_path / "whole", pipeline=pipelines[1], **options)
    assert list(report.clips["ours"]) == ["first", "second"] == list(whole.clips["ours"])
    for name in ("table.md", "table.csv", "report.json", "contact_sheet.png"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    # Other settings, and a call that does not resume, evaluate all clips again; another clip is evaluated itself.
    evaluate_clips(clips, out, pipeline=pipelines[2], resume=True, **{**options, "seed": 1})
    evaluate_clips(clips, out, pipeline=pipelines[3], **{**options, "seed": 1})
    (clips / "first.wav").write_bytes((clips / "first.wav").read_bytes()[:-640])
    evaluate_clips(clips, out, pipeline=pipelines[4], resume=True, **{**options, "seed": 1})
    assert [len(pipeline.calls) for pipeline in pipelines[2:]] == [2, 2, 1]


def test_other_weights_at_the_same_place_have_another_hash(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for content in ("one", "two"):
        (model / "model.safetensors").write_text(content)
        (model / "config.json").write_text("{}")
        hashes = [hash_checkpoint(folder) for folder in (model, tmp_path)]
        assert hashes[0] == hashes[1] and set(hashes[0]) == {"model.safetensors", "config.json"}
        assert hashes[0]["model.safetensors"] == hashlib.sha256(content.encode()).hexdigest()
    assert hash_checkpoint("somebody/model") == {} and "model.safetensors" in hash_checkpoint(None)


def test_unusable_clips_are_listed_and_do_not_stop_the_rest(astronaut_clips, tmp_path):
    clips = tmp_path / "clips"
    clips.mkdir()
    (clips / "broken.mp4").write_bytes(b"not a video")
    for suffix in (".mp4", ".wav"):
        (clips / f"person{suffix}").write_bytes((astronaut_clips / f"astronaut{suffix}").read_bytes())
    with VideoWriter(clips / "faceless.mp4", (64, 64), audio=np.zeros(640 * 6, np.float32)) as writer:
        for _ in range(6):
            writer.write(np.full((64, 64, 3), 90, np.uint8))
    with VideoWriter(clips / "silent.mp4", (64, 64)) as writer:
        writer.write(np.zeros((64, 64, 3), np.uint8))
    report = evaluate_clips(clips, tmp_path / "out", max_frames=5, rows=("ground_truth",))
    assert list(report.clips["ground_truth"]) == ["person"]
    assert sorted(report.skipped) == ["broken", "faceless", "silent"]
    assert "no face" in report.skipped["faceless"]
    assert "no sound" in report.skipped["silent"]
    assert "faceless" in (tmp_path / "out" / "table.md").read_text("utf-8")


def test_invalid_settings_are_refused(astronaut_clips, tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        evaluate_clips(tmp_path / "missing", tmp_path)
    with pytest.raises(UserError, match="no mp4"):
        evaluate_clips(tmp_path, tmp_path / "out")
    with pytest.raises(UserError, match="overwritten"):
        evaluate_clips(astronaut_clips, astronaut_clips)
    with pytest.raises(UserError, match="Choose from: ours"):
        evaluate_clips(astronaut_clips, tmp_path, rows=("theirs",))
    with pytest.raises(UserError, match="max_frames 1: is too small"):
        evaluate_clips(astronaut_clips, tmp_path, max_frames=1)
    with pytest.raises(UserError, match=r"report\.json: cannot be read"):
        evaluate_clips(astronaut_clips, tmp_path / "out", compare=tmp_path)
    with pytest.raises(UserError, match="subset: no clip or person nobody"):
        evaluate_clips(astronaut_clips, tmp_path / "out", subset=["nobody"])
    (tmp_path / "list.csv").write_text("name\n", "utf-8")
    with pytest.raises(UserError, match="no column file"):
        evaluate_clips(astronaut_clips, tmp_path, manifest=tmp_path / "list.csv")
