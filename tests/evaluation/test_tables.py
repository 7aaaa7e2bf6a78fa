import csv
import json
from dataclasses import replace

import numpy as np
import pytest

from s3dnerf.evaluation.report import EvaluationReport
from s3dnerf.evaluation.scores import Scores, average_scores
from s3dnerf.evaluation.tables import (
    COLUMNS,
    format_csv,
    format_json,
    format_markdown,
    format_markdown_table,
    format_score,
)

NAN = float("nan")
FIRST = Scores(25.0, 0.8, 2.0, 1.5, 1.8, 0.4, 0.9, 0.36, 1.0, 12.0, 1.0, 0.3, 0.75, lpips=0.2, csim=0.8)
SECOND = Scores(27.0, 0.9, 1.0, 1.0, 1.2, NAN, NAN, NAN, 0.5, 18.0, 0.5, 0.5, NAN, lpips=0.4, csim=NAN)
NAMES = [column.name for column in COLUMNS]


def read_cells(line: str) -> dict[str, str]:
    """Score to the text of its cell in a line of the table of means."""
    return dict(zip(NAMES, line.strip("| ").split(" | ")[1:], strict=True))


def test_mean_ignores_nan():
    mean = average_scores([FIRST, SECOND])
    assert (mean.psnr, mean.f_lmd, mean.lip_correlation, mean.found) == (26.0, 1.5, 0.4, 0.75)
    assert (mean.csim, mean.lpips) == (0.8, pytest.approx(0.3))
    assert (mean.lse_c, mean.fid) == (None, None)
    assert average_scores([SECOND]).lip_gain != average_scores([SECOND]).lip_gain


def test_spread_of_the_gain_by_hand():
    clips = {str(gain): replace(FIRST, lip_gain_plain=gain) for gain in (0.5, 2.0, NAN)}
    report = EvaluationReport({}, {"ours": clips, "ground_truth": {"a": FIRST}})
    # Logarithms of plus and minus log 2 have a standard deviation of log 2 times the square root of two.
    assert "ours 0.98" in report.format_gain_spread()
    assert "ground truth" not in report.format_gain_spread()


def test_there_is_one_column_for_each_score():
    assert sorted(column.name for column in COLUMNS) == sorted(FIRST.as_dict())


@pytest.mark.parametrize(
    ("value", "decimals", "text"),
    [
        (25.126, 2, "25.13"),
        (-0.0004, 2, "0.00"),
        (-0.4, 2, "-0.40"),
        (NAN, 2, "–"),
        (float("inf"), 1, "∞"),
        (None, 2, "no weights"),
    ],
)
def test_numbers_are_formatted_for_tables(value, decimals, text):
    assert format_score(value, decimals) == text


def test_markdown_table_has_equal_columns_and_titles():
    lines = format_markdown_table({"ours": FIRST, "ground_truth": SECOND}, "row").splitlines()
    assert len(lines) == 4
    assert {line.count("|") for line in lines} == {len(COLUMNS) + 2}
    assert lines[2].startswith("| ours | 25.00 | 0.800 | 0.200 | no weights | ")
    first, second = read_cells(lines[2]), read_cells(lines[3])
    assert [first[name] for name in ("f_lmd", "m_lmd", "lip_slope", "cpbd", "mouth_detail")] == [
        *("2.00", "1.50", "0.36", "0.300", "0.75")
    ]
    assert lines[3].startswith("| ground truth, re-encoded | 27.00 |")
    assert (second["lip_gain"], second["mouth_detail"], second["lse_d"]) == ("–", "–", "no weights")


def test_tables_of_clips_have_no_row_scores():
    header = format_markdown_table({"a": FIRST}, "clip", of_clips=True).splitlines()[0]
    assert "FID" not in header
    assert "FID" in format_markdown_table({"ours": FIRST}).splitlines()[0]


def test_missing_scores_are_listed_with_reasons():
    missing = {"lse_c": "syncnet_v2.model not in the weights folder", "lpips": "a and b not in the weights folder"}
    report = EvaluationReport({}, {"ours": {"a": SECOND}}, missing=missing)
    assert report.format_missing().splitlines() == [
        "not measured: LPIPS ↓: a and b not in the weights folder.",
        "not measured: LSE-C ↑: syncnet_v2.model not in the weights folder.",
    ]
    assert EvaluationReport({}).format_missing() == ""


def test_fid_is_that_of_the_row_unknown_until_the_end_and_missing_without_weights():
    clips = {"ours": {"a": FIRST}, "ground_truth": {"a": SECOND}}
    report = EvaluationReport({}, clips)
    assert np.isnan(report.means["ours"].fid)
    report.fid = {"ours": 31.5, "ground_truth": 2.0}
    assert [mean.fid for mean in report.means.values()] == [31.5, 2.0]
    assert read_cells(report.format_table().splitlines()[2])["fid"] == "31.5"
    report = EvaluationReport({}, clips, missing={"fid": "inception.pth not in the weights folder"})
    assert read_cells(report.format_table().splitlines()[2])["fid"] == "no weights"


def test_markdown_report_has_a_table_for_each_row():
    text = format_markdown({"ours": FIRST}, {"ours": {"clip_1": FIRST}}, ["A note."])
    assert "A note." in text
    assert "## ours" in text
    assert "| clip_1 | 25.00 |" in text


def test_csv_reads_back_in_full_precision():
    text = format_csv({"ours": FIRST}, {"ours": {"a": FIRST, "b, with comma": SECOND}})
    rows = list(csv.DictReader(text.splitlines()))
    assert [row["clip"] for row in rows] == ["a", "b, with comma", "mean"]
    assert float(rows[0]["ssim"]) == 0.8
    assert rows[1]["lip_gain"] == rows[1]["lse_c"] == ""


def test_json_is_strict_and_complete():
    tree = json.loads(
        format_json({"ours": SECOND}, {"ours": {"a": SECOND}}, {"seed": 0}, {"b": "no face"}, {"fid": "why"})
    )
    assert tree["means"]["ours"]["psnr"] == 27.0
    assert tree["clips"]["ours"]["a"]["lip_gain"] is None
    assert tree["clips"]["ours"]["a"]["fid"] is None
    assert tree["skipped"] == {"b": "no face"}
    assert tree["missing"] == {"fid": "why"}
    assert set(tree["meanings"]) == set(FIRST.as_dict())
