"""Ablation: variants as settings, mean and spread, ranking against the paper, and reuse of finished runs."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from s3dnerf.errors import UserError
from s3dnerf.evaluation import ablation
from s3dnerf.evaluation.ablation import (
    VARIANTS,
    AblationReport,
    Protocol,
    choose_ranking,
    configure_variants,
    describe_settings,
    evaluate_variant,
    list_variants,
    run_ablation,
    train_variant,
)
from s3dnerf.evaluation.scores import Scores, average_scores, spread_scores
from s3dnerf.training.s3dnerf import train

NAN = float("nan")
BLANK = Scores(25.0, 0.8, 2.0, 1.5, 1.8, 0.4, 0.9, 0.36, 1.0, 12.0, 1.0, 0.3, 0.75)
CORRELATION = choose_ranking("lip_correlation")


def make_report(**correlations: tuple[float, ...]) -> AblationReport:
    scores = {
        name: {seed: replace(BLANK, lip_correlation=value) for seed, value in enumerate(values)}
        for name, values in correlations.items()
    }
    return AblationReport({"steps": 5}, CORRELATION, scores, {"ground_truth": replace(BLANK, lip_correlation=0.99)})


def test_spread_is_the_sample_standard_deviation() -> None:
    found = spread_scores([replace(BLANK, psnr=value, ssim=0.5) for value in (1.0, 2.0, 6.0)])
    # Mean 3, squared distances 4 + 1 + 9, over two degrees of freedom.
    assert found.psnr == pytest.approx(math.sqrt(7.0))
    assert (found.ssim, found.lse_c) == (0.0, None)


def test_spread_ignores_nan_and_needs_two_values() -> None:
    found = spread_scores([replace(BLANK, f_lmd=value, csim=0.5) for value in (1.0, NAN, 3.0)])
    assert found.f_lmd == pytest.approx(math.sqrt(2.0))
    alone = spread_scores([BLANK, replace(BLANK, psnr=NAN)])
    assert math.isnan(alone.psnr)


def test_the_papers_order_holds() -> None:
    report = make_report(whole_face=(0.30, 0.40), full=(0.50, 0.60), without_deformation=(0.0, 0.1))
    assert report.rank() == ["without_deformation", "whole_face", "full"]
    assert report.means["full"].lip_correlation == pytest.approx(0.55)
    assert report.spreads["full"].lip_correlation == pytest.approx(0.1 / math.sqrt(2))
    line = report.describe_order()
    assert "the paper's order holds: without deformation < whole-face deformation < full" in line
    # Steps of 0.3 and 0.2, spreads of 0.071 each.
    assert "2 of 2 steps" in line and "\n" not in line


def test_a_different_order_is_reported_with_its_clear_steps() -> None:
    report = make_report(concatenation=(0.50, 0.60), full=(0.48, 0.58), without_deformation=(NAN, NAN))
    assert report.rank() == ["without_deformation", "full", "concatenation"]
    line = report.describe_order()
    assert "does not hold: here without deformation < full < concatenation" in line
    assert "paper without deformation < concatenation < full" in line
    assert "0 of 2 steps" in line


def test_lower_is_better_for_columns_with_a_down_arrow() -> None:
    report = make_report(full=(0.5, 0.5), whole_face=(0.6, 0.6))
    report.rank_by = choose_ranking("m_lmd")
    report.scores["full"] = {seed: replace(BLANK, m_lmd=1.2) for seed in (0, 1)}
    assert report.rank() == ["whole_face", "full"]


def test_table_has_the_best_first_with_mean_and_spread() -> None:
    report = make_report(whole_face=(0.30, 0.40), full=(0.50, 0.60))
    lines = report.format_table().splitlines()
    assert {line.count("|") for line in lines} == {lines[0].count("|")}
    assert [line.split(" | ")[0] for line in lines[2:]] == [
        *("| full", "| whole-face deformation", "| ground truth, re-encoded")
    ]
    assert " | 0.550 ± 0.071 | " in lines[2] and lines[2].endswith("| 6.51 |")
    # What was not measured has no column; what is unknown is a dash.
    assert "LSE-C" not in lines[0]
    assert " ± – |" in make_report(full=(0.5,)).format_table()


def test_files_hold_every_seed(tmp_path: Path) -> None:
    report = make_report(whole_face=(0.30, 0.40), full=(0.50, NAN))
    report.save(tmp_path)
    rows = list(csv.DictReader((tmp_path / "table.csv").read_text("utf-8").splitlines()))
    found = {(row["variant"], row["seed"]): row["lip_correlation"] for row in rows}
    assert found["whole_face", "1"] == "0.4" and float(found["whole_face", "mean"]) == pytest.approx(0.35)
    assert found["full", "1"] == found["full", "spread"] == "" and found["ground_truth", ""] == "0.99"
    tree = json.loads((tmp_path / "report.json").read_text("utf-8"))
    assert tree["order"] == ["whole_face", "full"]
    assert tree["seeds"]["full"] == {
        "0": tree["seeds"]["full"]["0"],
        "1": {**tree["seeds"]["full"]["0"], "lip_correlation": None},
    }
    assert report.describe_order() in (tmp_path / "table.md").read_text("utf-8")


def test_variants_differ_from_the_method_only_in_their_settings() -> None:
    configs = configure_variants("smoke.yaml", ["--train.steps", "3"])
    assert list(configs) == list(list_variants())
    full = configs["full"]
    assert full.train.steps == 3
    assert configs["concatenation"].model.deformation == replace(full.model.deformation, fusion="concatenation")
    assert configs["whole_face"].model.deformation == replace(full.model.deformation, scope="whole_face")
    assert configs["without_deformation"].model.deformation == replace(full.model.deformation, scope="nothing")
    for config in configs.values():
        same = replace(config, model=full.model, losses=full.losses)
        assert same == full


def test_the_papers_order_is_that_of_its_table() -> None:
    order = sorted(VARIANTS, key=lambda name: VARIANTS[name].paper)
    assert order == ["without_deformation", "whole_face", "without_sync", "concatenation", "full"]


def test_variants_of_unknown_settings_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(VARIANTS, "without_hair", ablation.Variant("without hair", {"losses.hair": "0"}, 1.0))
    monkeypatch.setitem(VARIANTS, "without_lips", ablation.Variant("without lips", {"losses.speech": "0"}, 1.0))
    assert "without_hair" not in list_variants()
    assert configure_variants("smoke.yaml", chosen=["without_lips"])["without_lips"].losses.speech == 0.0


def test_invalid_variants_scores_and_seeds_are_refused(tmp_path: Path, astronaut_clips: Path) -> None:
    with pytest.raises(UserError, match="no variant whole. Choose from: full"):
        configure_variants("smoke.yaml", chosen=["full", "whole"])
    with pytest.raises(UserError, match="is already concatenation"):
        configure_variants("smoke.yaml", ["--model.deformation.fusion", "concatenation"])
    for name in ("sharpness", "lip_gain"):
        with pytest.raises(UserError, match="Choose from: psnr"):
            choose_ranking(name)
    protocol = Protocol(astronaut_clips)
    with pytest.raises(UserError, match="two or more"):
        run_ablation(train, "smoke.yaml", tmp_path, protocol, seeds=[1, 1])
    with pytest.raises(UserError, match="no clip or person nobody"):
        run_ablation(train, "smoke.yaml", tmp_path, replace(protocol, only=("nobody",)))
    with pytest.raises(UserError, match="no such folder"):
        run_ablation(train, "smoke.yaml", tmp_path, Protocol(tmp_path / "none"))
    assert list(tmp_path.iterdir()) == []


def test_the_report_states_the_settings_of_the_runs() -> None:
    told = describe_settings(configure_variants("smoke.yaml"), Protocol(Path("clips"), split="val"))
    assert (told["steps"], told["frames of"], told["split"]) == (12, "64 pixels", "val")


@pytest.fixture(scope="module")
def compared(load_smoke, drawn_clips, astronaut_clips, tmp_path_factory) -> tuple[Path, list[str], Protocol]:
    """A whole ablation of two steps, with one variant and two seeds."""
    out = tmp_path_factory.mktemp("ablation")
    words = ["--data.root", str(drawn_clips), "--train.steps", "2", "--train.motion_steps", "1"]
    protocol = Protocol(astronaut_clips, max_frames=6)
    run_ablation(train, "smoke.yaml", out, protocol, (0, 1), ("without_deformation",), words)
    return out, words, protocol


def test_a_whole_ablation_writes_its_runs_and_tables(compared) -> None:
    out = compared[0]
    tree = json.loads((out / "report.json").read_text("utf-8"))
    (seeds,) = tree["seeds"].values()
    assert list(tree["seeds"]) == ["without_deformation"] and list(seeds) == ["0", "1"]
    assert seeds["0"]["psnr"] != seeds["1"]["psnr"]
    assert tree["reference"]["ground_truth"]["psnr"] > 38
    run = out / "without_deformation" / "seed_1"
    stored = json.loads((run / "checkpoints" / "step_0000002" / "model" / "config.json").read_text("utf-8"))
    assert stored["deformation"]["scope"] == "nothing"
    assert (run / "evaluation" / "contact_sheet.png").is_file()


def test_finished_runs_are_not_repeated(compared) -> None:
    out, words, protocol = compared
    trained: list[Path] = []
    before = json.loads((out / "report.json").read_text("utf-8"))
    report = run_ablation(
        lambda config, folder, resume: trained.append(folder),
        "smoke.yaml",
        out,
        protocol,
        (0, 1),
        ("without_deformation",),
        words,
    )
    assert trained == []
    assert json.loads((out / "report.json").read_text("utf-8")) == before
    mean = average_scores(report.scores["without_deformation"].values())
    np.testing.assert_equal(mean.as_dict(), report.means["without_deformation"].as_dict())


def test_runs_with_other_settings_are_not_mixed(compared) -> None:
    out, words, protocol = compared
    more = configure_variants("smoke.yaml", [*words, "--train.learning_rate", "1"])["without_deformation"]
    with pytest.raises(UserError, match="other settings"):
        evaluate_variant(train, more, out / "without_deformation" / "seed_0", protocol)


def test_an_interrupted_training_is_not_evaluated(compared, tmp_path: Path) -> None:
    out, words, _ = compared
    checkpoint = out / "without_deformation" / "seed_0" / "checkpoints" / "step_0000002"
    longer = configure_variants("smoke.yaml", [*words, "--train.steps", "3"])["without_deformation"]
    with pytest.raises(KeyboardInterrupt):
        train_variant(lambda config, folder, resume: checkpoint, longer, tmp_path)
