"""The model card: its figures come from the files of the run and of the evaluation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from s3dnerf.errors import UserError
from s3dnerf.evaluation.model_card import CARD, CardSources, count_parameters, describe_stages, write_model_card
from s3dnerf.evaluation.report import EvaluationReport
from s3dnerf.evaluation.scores import Scores
from s3dnerf.models.s3dnerf.s3dnerf import S3DNeRF
from s3dnerf.training.config import S3DNeRFConfig
from s3dnerf.training.s3dnerf import train

SETTINGS = {"clips": "/somewhere/clips", "split": "val", "max_frames": 250, "fit_steps": 0}
SCORES = Scores(27.31, 0.8, 2.0, 1.5, 1.8, 0.4, 0.9, 0.36, 1.0, 12.0, 1.0, 0.3, 0.75, lip_gain_plain=0.5)


@pytest.fixture(scope="module")
def sources(
    load_smoke: Callable[..., S3DNeRFConfig], drawn_clips: Path, tmp_path_factory: pytest.TempPathFactory
) -> CardSources:
    folder = tmp_path_factory.mktemp("card")
    words = ("--data.root", str(drawn_clips), "--train.steps", "2", "--train.motion_steps", "1")
    words += ("--train.mouth_steps", "0", "--data.held_out_people", "1")
    checkpoint = train(load_smoke(*words), folder / "run")
    evaluation = folder / "evaluation"
    EvaluationReport(SETTINGS, {"ours": {"a": SCORES, "b": replace(SCORES, lip_gain_plain=2.0)}}).save(evaluation)
    return CardSources("smoke", "configs/smoke.yaml", folder / "run", checkpoint, evaluation, "make weights")


def test_the_card_tells_data_stages_time_settings_and_table(sources: CardSources) -> None:
    folder = sources.checkpoint / "model"
    write_model_card(folder, sources)
    card = (folder / CARD).read_text()
    assert "| ours | 27.31 |" in card
    assert "- ours: 1.00, spread 0.98; by clip: a 0.50, b 2.00." in card
    # Of the three clips of two people, one person is held out.
    assert " clips of 1 people, " in card and "; 1 other people" in card
    assert "1 steps of motion alone, 1 with images of 64 x 64 pixels" in card
    assert "CPU threads" in card and " hours on " in card
    assert "motion_scale " in card and "64 x 64 frames" in card
    assert "--split val --max-frames 250" in card and "/somewhere" not in card
    assert "$" not in card.replace("```", "")


def test_the_figures_of_other_weights_stand_beside(sources: CardSources, tmp_path: Path) -> None:
    EvaluationReport(SETTINGS, {"ours": {"a": replace(SCORES, psnr=26.0)}}).save(tmp_path / "shipped")
    folder = sources.checkpoint / "model"
    write_model_card(folder, replace(sources, compared=tmp_path / "shipped"))
    card = (folder / CARD).read_text()
    assert "Compared with `shipped` on 1 clips" in card and str(tmp_path) not in card
    assert "| PSNR (dB) ↑ | 26.00 | 27.31 | +1.31 | – … – |" in card


def test_parameters_are_counted(sources: CardSources) -> None:
    model = S3DNeRF.load(sources.checkpoint / "model")
    expected = sum(value.numel() for value in model.state_dict().values())
    assert count_parameters(sources.checkpoint / "model" / "model.safetensors") == expected


def test_coarse_steps_are_told_apart() -> None:
    assert describe_stages({"steps": 9, "motion_steps": 2, "coarse_steps": 4}, 256) == (
        "2 steps of motion alone, 4 with images of 128 x 128 pixels, 3 with images of 256 x 256 pixels"
    )


def test_without_an_evaluation_no_card_is_written(sources: CardSources, tmp_path: Path) -> None:
    folder = sources.checkpoint / "model"
    (folder / CARD).unlink(missing_ok=True)
    broken = CardSources("smoke", "configs/smoke.yaml", sources.run, sources.checkpoint, tmp_path, "make weights")
    with pytest.raises(UserError, match=r"report\.json: cannot be read"):
        write_model_card(folder, broken)
    assert not (folder / CARD).exists()
