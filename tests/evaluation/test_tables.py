import csv
import json

import pytest

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
FIRST = Scores(25.0, 0.8, 2.0, 1.5, 1.8, 0.4, 0.9, 0.36, 1.0, 12.0, 1.0)
SECOND = Scores(27.0, 0.9, 1.0, 1.0, 1.2, NAN, NAN, NAN, 0.5, 18.0, 0.5)


def test_mean_leaves_unknown_numbers_out():
    mean = average_scores([FIRST, SECOND])
    assert (mean.psnr, mean.f_lmd, mean.lip_correlation, mean.found) == (26.0, 1.5, 0.4, 0.75)
    assert average_scores([SECOND]).lip_gain != average_scores([SECOND]).lip_gain


def test_there_is_one_column_for_each_score():
    assert sorted(column.name for column in COLUMNS) == sorted(FIRST.as_dict())


@pytest.mark.parametrize(
    ("value", "decimals", "text"),
    [(25.126, 2, "25.13"), (-0.0004, 2, "0.00"), (-0.4, 2, "-0.40"), (NAN, 2, "–"), (float("inf"), 1, "∞")],
)
def test_numbers_are_written_for_people(value, decimals, text):
    assert format_score(value, decimals) == text


def test_markdown_table_has_equal_columns_and_titles():
    lines = format_markdown_table({"ours": FIRST, "ground_truth": SECOND}, "row").splitlines()
    assert len(lines) == 4
    assert {line.count("|") for line in lines} == {len(COLUMNS) + 2}
    assert lines[2].startswith("| ours | 25.00 | 0.800 | 2.00 | 1.50 | 0.400 | 0.90 | 0.36 |")
    assert lines[3].startswith("| ground truth, re-encoded | 27.00 |")
    assert "| – | – | – |" in lines[3]


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
    assert rows[1]["lip_gain"] == ""


def test_json_is_strict_and_complete():
    tree = json.loads(format_json({"ours": SECOND}, {"ours": {"a": SECOND}}, {"seed": 0}, {"b": "no face"}))
    assert tree["means"]["ours"]["psnr"] == 27.0
    assert tree["clips"]["ours"]["a"]["lip_gain"] is None
    assert tree["skipped"] == {"b": "no face"}
    assert set(tree["meanings"]) == set(FIRST.as_dict())
