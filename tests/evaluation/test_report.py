"""The report of an evaluation: means, gains, percentages, files, and an earlier report beside it."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from s3dnerf.errors import UserError
from s3dnerf.evaluation.report import EvaluationReport, load_report
from s3dnerf.evaluation.scores import Scores

NAN = float("nan")
BLANK = Scores(25.0, 0.8, 2.0, 1.5, 1.8, 0.4, 0.9, 0.36, 1.0, 12.0, 1.0, 0.3, 0.75)
PEOPLE = {"a1": "ann", "a2": "ann", "b1": "bob"}


def make_report(*gains: float, **settings: object) -> EvaluationReport:
    ours = {clip: replace(BLANK, lip_gain_plain=gain) for clip, gain in zip(PEOPLE, gains, strict=False)}
    return EvaluationReport(settings, {"ours": ours}, people=PEOPLE)


def read_table(text: str) -> dict[str, dict[str, str]]:
    """Text of the cells of a Markdown table by row and heading."""
    header, _, *lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    return {line[0]: dict(zip(header[1:], line[1:], strict=True)) for line in lines}


def test_gains_are_those_of_people_and_of_each_clip() -> None:
    report = make_report(2.0, 8.0, 1.0)
    report.clips["ground_truth"] = {"a1": BLANK}
    # Mean logarithms log 4 (Ann) and 0 (Bob): their mean is log 2, their deviation log 4 / sqrt(2) = 0.98.
    assert report.gains["ours"].mean == pytest.approx(2.0)
    assert report.gains["ours"].spread == pytest.approx(np.log(4) / np.sqrt(2))
    assert np.isnan(report.gains["ground_truth"].spread)
    lines = report.format_gains().splitlines()[-2:]
    assert lines[0] == "- ours: 2.00, spread 0.98; by clip: a1 2.00, a2 8.00, b1 1.00."
    assert lines[1] == "- ground truth, re-encoded: –, spread –."


def test_percentages_of_real_are_of_the_clips_of_both_rows() -> None:
    report = make_report(1.0, 1.0, 1.0)
    ours = zip(PEOPLE, (0.1, 0.2, 0.9), (0.3, 0.3, 0.3), (0.5, 1.5, 9.0), strict=True)
    report.clips["ours"] = {
        clip: replace(BLANK, sync_confidence=sync, cpbd=cpbd, jitter=jitter) for clip, sync, cpbd, jitter in ours
    }
    real = replace(BLANK, sync_confidence=0.2, cpbd=0.4, jitter=1.0)
    report.clips["ground_truth"] = {clip: real for clip in ("a1", "a2")}
    means = report.means["ours"]
    assert (means.sync_of_real, means.cpbd_of_real, means.jitter_of_real) == (
        pytest.approx(75.0),
        pytest.approx(75.0),
        pytest.approx(100.0),
    )
    cells = read_table(report.format_table())
    assert cells["ours"]["sync conf. (% of real)"] == "75"
    assert cells["ground truth, re-encoded"]["jitter (% of real)"] == "100"
    del report.clips["ground_truth"]
    assert np.isnan(report.means["ours"].sync_of_real) and "% of real" not in report.format_table()


def test_fid_is_that_of_the_row_unknown_until_the_end_and_missing_without_weights() -> None:
    report = make_report(1.0)
    assert np.isnan(report.means["ours"].fid)
    report.fid = {"ours": 31.5}
    assert read_table(report.format_table())["ours"]["FID ↓"] == "31.5"
    report = replace(report, fid={}, missing={"fid": "inception.pth not in the weights folder"})
    assert report.means["ours"].fid is None


def test_missing_scores_are_listed_with_reasons() -> None:
    missing = {"lse_c": "syncnet_v2.model not in the weights folder", "lpips": "a and b not in the weights folder"}
    report = EvaluationReport({}, {"ours": {"a": BLANK}}, missing=missing)
    assert report.format_missing().splitlines() == [
        "not measured: LPIPS ↓: a and b not in the weights folder.",
        "not measured: LSE-C ↑: syncnet_v2.model not in the weights folder.",
    ]
    assert EvaluationReport({}).format_missing() == ""


def test_a_subset_has_means_and_gains_of_its_own() -> None:
    report = make_report(2.0, 8.0, 1.0)
    report.subset = ("a1", "a2")
    assert report.format_summary().count("| ours |") == 2
    assert "Of these people alone: ann." in report.format_summary()
    assert "by clip: a1 2.00, a2 8.00." in report.format_summary()
    assert list(report.restrict(["b1"]).clips["ours"]) == ["b1"]


def test_saved_files_are_complete_and_load_again(tmp_path: Path) -> None:
    report = make_report(2.0, 8.0, 1.0, split="train", max_frames=30)
    report.clips["ours"]["b1"] = replace(BLANK, lip_gain_plain=1.0, lip_correlation=NAN)
    report.skipped, report.missing, report.subset = {"c": "no face"}, {"lpips": "why"}, ("a1",)
    report.fid = {"ours": 3.0}
    report.save(tmp_path)
    tree = json.loads((tmp_path / "report.json").read_text("utf-8"))
    assert tree["gains"]["ours"] == {"geometric_mean": pytest.approx(2.0), "spread": pytest.approx(0.9803, abs=1e-4)}
    assert tree["clips"]["ours"]["b1"]["lip_correlation"] is None
    assert tree["people"] == PEOPLE and tree["skipped"] == {"c": "no face"} and tree["missing"] == {"lpips": "why"}
    assert tree["subset"]["clips"] == ["a1"] and tree["subset"]["gains"]["ours"]["spread"] is None
    assert set(tree["meanings"]) == set(BLANK.as_dict())
    rows = list(csv.DictReader((tmp_path / "table.csv").read_text("utf-8").splitlines()))
    assert [row["clip"] for row in rows] == ["a1", "a2", "b1", "mean"] and rows[1]["lip_gain_plain"] == "8.0"
    loaded = load_report(tmp_path)
    assert loaded.format_table() == report.format_table() and loaded.format_gains() == report.format_gains()
    assert (loaded.people, loaded.settings["max_frames"]) == (PEOPLE, 30)


def test_an_earlier_report_stands_beside_this_one(tmp_path: Path) -> None:
    make_report(0.5, 0.5, max_frames=250, seed=0).save(tmp_path)
    report = make_report(2.0, 8.0, 1.0, max_frames=30, seed=0)
    assert report.compare() == [] and "95%" not in report.format_summary()
    report.earlier = load_report(tmp_path)
    text = report.format_summary()
    assert "on 2 clips of 1 people; other settings then and now: max_frames 250 and 30; 1 clips were not in it." in text
    assert "| lip gain, plain, geometric mean → 1 | 0.50 | 4.00 | +3.50 | – … – |" in text
    report.save(tmp_path / "new")
    tree = json.loads((tmp_path / "new" / "report.json").read_text("utf-8"))
    assert tree["comparison"]["lip gain, plain → 1"] == {"earlier": 0.5, "this": 5.0, "interval": [None, None]}
    other = EvaluationReport({}, {"ours": {"z": BLANK}}, earlier=report)
    assert "No clip of" in other.format_summary()


def test_reports_of_older_versions_are_read(tmp_path: Path) -> None:
    make_report(0.5, 0.5).save(tmp_path)
    tree = json.loads((tmp_path / "report.json").read_text("utf-8"))
    del tree["people"], tree["gains"]
    for numbers in (*tree["clips"]["ours"].values(), *tree["means"].values()):
        for name in [name for name in numbers if "closure" in name or "of_real" in name]:
            del numbers[name]
    (tmp_path / "report.json").write_text(json.dumps(tree), "utf-8")
    assert load_report(tmp_path).clips["ours"]["a1"].lip_gain_plain == 0.5


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "cannot be read"),
        ("{", "is not the report"),
        ("[]", "is not the report"),
        ('{"settings": {}, "clips": {"ours": {"a": {"psnr": 1}}}, "means": {}, "missing": {}}', "is not the report"),
        ('{"settings": {}, "clips": {"ground_truth": {}}, "means": {}, "missing": {}}', "has no scores of the row"),
    ],
)
def test_broken_reports_are_refused(tmp_path: Path, text: str | None, reason: str) -> None:
    if text is not None:
        (tmp_path / "report.json").write_text(text, "utf-8")
    with pytest.raises(UserError, match=reason):
        load_report(tmp_path)
