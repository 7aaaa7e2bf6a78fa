"""Ablation of motion diffusion: variants, table, reuse of finished runs; fit of the sampling settings again."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from s3dnerf.config import load_config, to_dict
from s3dnerf.errors import UserError
from s3dnerf.models.fd2talk.motion_diffusion import SHIPPED, load_motion_diffusion
from s3dnerf.training import motion_ablation
from s3dnerf.training.motion import MotionConfig
from s3dnerf.training.motion_ablation import VARIANTS, run_motion_ablation
from s3dnerf.training.motion_sampling import refit_sampling

WORDS = (
    *("--model.frames", "20", "--model.known_frames", "4", "--data.min_frames", "20", "--data.versions", "1"),
    *("--model.expression.width", "16", "--model.expression.blocks", "1", "--model.expression.heads", "2"),
    *("--model.pose.width", "16", "--model.pose.blocks", "1", "--model.pose.heads", "2"),
    *("--train.steps", "2", "--train.warmup", "1", "--train.batch_size", "2", "--train.expert_steps", "1"),
    *("--train.precision", "float32", "--data.held_out_people", "1", "--model.sampling.steps", "1"),
)


@pytest.fixture(scope="module")
def ablated(drawn_clips: Path, one_thread: None, tmp_path_factory: pytest.TempPathFactory):
    out = tmp_path_factory.mktemp("ablation")
    words = ["--data.root", str(drawn_clips), *WORDS]
    return run_motion_ablation("fd2talk_motion.yaml", words, out), out, words


def test_each_variant_is_trained_with_its_settings_and_measured(ablated) -> None:
    report, out, words = ablated
    assert list(report.scores) == list(VARIANTS)
    base = load_config(MotionConfig, "fd2talk_motion.yaml", words)
    for name, found in report.scores.items():
        assert found["expression with speech, loss"] > 0.0
        used = load_config(MotionConfig, out / name.replace(" ", "_") / "config.yaml", [])
        assert (name == "full") == (to_dict(used) == to_dict(base))
    still = load_motion_diffusion(next((out / "expression_alone" / "checkpoints").glob("*/model")))
    assert not hasattr(still, "pose")
    assert report.scores["expression alone"]["head speed / real"] < 0.05


def test_without_the_lip_expert_nothing_is_guided_by_it(ablated) -> None:
    report, out, _ = ablated
    models = [next((out / name / "checkpoints").glob("*_0000002/model")) for name in ("without_lip_expert", "full")]
    without, full = (load_motion_diffusion(model).config.sampling for model in models)
    assert without.expert_guidance == 0.0
    found = report.scores["without lip expert"]
    assert found["lip opening r"] == found["without guidance"]
    changed = report.scores["full"]
    assert (changed["lip opening r"] != changed["without guidance"]) == (full.expert_guidance > 0)


def test_a_finished_run_is_measured_as_it_was_when_it_ended(ablated) -> None:
    report, out, words = ablated
    scores = out / "full" / "scores.json"
    content = scores.read_text("utf-8")
    scores.unlink()
    again = run_motion_ablation("fd2talk_motion.yaml", words, out)
    assert again.scores["full"] == pytest.approx(report.scores["full"], rel=1e-4)
    scores.write_text(content, "utf-8")


def test_finished_variants_are_not_trained_again(ablated, monkeypatch: pytest.MonkeyPatch) -> None:
    report, out, words = ablated
    monkeypatch.setattr(motion_ablation, "MotionTrainer", None)
    again = run_motion_ablation("fd2talk_motion.yaml", words, out)
    assert again.scores == report.scores
    lines = (out / "ablation.md").read_text("utf-8").splitlines()
    assert lines[0].startswith("| variant | ") and len(lines) == 2 + len(VARIANTS) + 1 + 2
    assert json.loads((out / "ablation.json").read_text("utf-8"))["scores"] == report.scores
    with pytest.raises(UserError, match="other settings"):
        run_motion_ablation("fd2talk_motion.yaml", [*words, "--seed", "3"], out)


def test_a_variant_is_not_ablated(ablated, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="one transformer"):
        run_motion_ablation("fd2talk_motion.yaml", [*ablated[2], "--model.layout", "one"], tmp_path)


def test_a_model_without_pose_rests(small_model_config: MotionConfig) -> None:
    from s3dnerf.models.fd2talk.motion_diffusion import MotionDiffusion
    from s3dnerf.models.fd2talk.motion_generator import SpeechMotion

    torch.manual_seed(0)
    model = MotionDiffusion(small_model_config.model).eval()
    sound = 0.07 * np.random.default_rng(0).standard_normal(640 * 30).astype(np.float32)
    motion = SpeechMotion(model).generate(sound, 30)
    assert np.abs(motion.pose).max() < 1e-5 and np.abs(motion.gaze).max() < 1e-5
    np.testing.assert_allclose(motion.eyes, 1.0, atol=1e-5)


@pytest.fixture(scope="module")
def small_model_config(ablated) -> MotionConfig:
    return load_config(MotionConfig, "fd2talk_motion.yaml", [*ablated[2], "--model.layout", "expression"])


def test_a_trained_model_is_fitted_again(ablated, tmp_path: Path) -> None:
    _, out, words = ablated
    config = load_config(MotionConfig, "fd2talk_motion.yaml", words)
    trained = next((out / "full" / "checkpoints").glob("*/model"))
    model = load_motion_diffusion(trained)
    fitted = refit_sampling(config.data, trained, tmp_path / "fitted")
    stored = load_motion_diffusion(tmp_path / "fitted")
    assert stored.config == fitted.config
    sampling, before = stored.config.sampling, model.config.sampling
    assert sampling.steps == before.steps and sampling.guidance == before.guidance and sampling.expert_guidance == 0.0
    for name, value in model.state_dict().items():
        assert torch.equal(stored.state_dict()[name], value)
    nobody = load_config(MotionConfig, "fd2talk_motion.yaml", [*words, "--data.min_frames", "9999"])
    with pytest.raises(UserError, match="no clips"):
        refit_sampling(nobody.data, SHIPPED, tmp_path / "none")
