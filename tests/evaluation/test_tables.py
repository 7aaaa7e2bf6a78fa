import csv
from dataclasses import replace

import numpy as np
import pytest

from s3dnerf.evaluation.scores import Scores, average_scores
from s3dnerf.evaluation.tables import (
    COLUMNS,
    choose_columns,
    format_csv,
    format_markdown,
    format_markdown_table,
    format_score,
    jsonable_scores,
    restore_scores,
)

NAN = float("nan")
FIRST = Scores(25.0, 0.8, 2.0, 1.5, 1.8, 0.4, 0.9, 0.36, 1.0, 12.0, 1.0, 0.3, 0.75, lpips=0.2, csim=0.8)
SECOND = Scores(27.0, 0.9, 1.0, 1.0, 1.2, NAN, NAN, NAN, 0.5, 18.0, 0.5, 0.5, NAN, lpips=0.4, csim=NAN)
NAMES = [column.name for column in COLUMNS]


def read_cells(line: str) -> dict[str, str]:
    """Score to the text of its cell in a line of a table of all scores."""
    return dict(zip(NAMES, line.strip("| ").split(" | ")[1:], strict=True))


def test_mean_ignores_nan():
    mean = average_scores([FIRST, SECOND])
    assert (mean.psnr, mean.f_lmd, mean.lip_correlation, mean.found) == (26.0, 1.5, 0.4, 0.75)
    assert (mean.csim, mean.lpips) == (0.8, pytest.approx(0.3))
    assert (mean.lse_c, mean.fid) == (None, None)
    assert average_scores([SECOND]).lip_gain != average_scores([SECOND]).lip_gain


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
        (None, 2, "not measured"),
    ],
)
def test_numbers_are_formatted_for_tables(value, decimals, text):
    assert format_score(value, decimals) == text


def test_markdown_table_has_equal_columns_and_titles():
    lines = format_markdown_table({"ours": FIRST, "ground_truth": SECOND}, "row").splitlines()
    assert len(lines) == 4
    assert {line.count("|") for line in lines} == {len(COLUMNS) + 2}
    assert lines[2].startswith("| ours | 25.00 | 0.800 | 0.200 | not measured | ")
    first, second = read_cells(lines[2]), read_cells(lines[3])
    assert [first[name] for name in ("f_lmd", "m_lmd", "lip_slope", "cpbd", "mouth_detail")] == [
        *("2.00", "1.50", "0.36", "0.300", "0.75")
    ]
    assert lines[3].startswith("| ground truth, re-encoded | 27.00 |")
    assert (second["lip_gain"], second["mouth_detail"], second["lse_d"]) == ("–", "–", "not measured")


def test_the_table_of_means_has_what_a_row_has_without_details():
    chosen = [column.name for column in choose_columns([FIRST, replace(SECOND, closure_f1=0.7, lse_c=NAN)])]
    assert {"psnr", "lip_correlation", "csim", "closure_f1"} <= set(chosen)
    assert not {"lse_c", "lse_d", "fid", "jitter", "found", "sync_of_real"} & set(chosen)


def test_markdown_report_has_a_table_for_each_row():
    text = format_markdown({"ours": FIRST}, {"ours": {"clip_1": FIRST}}, ["A note."])
    assert "A note." in text
    assert "FID" not in text.split("## ours")[1] and "FID" in text.split("## ours")[0]
    assert "## ours" in text
    assert "| clip_1 | 25.00 |" in text


def test_csv_reads_back_in_full_precision():
    text = format_csv({"ours": FIRST}, {"ours": {"a": FIRST, "b, with comma": SECOND}})
    rows = list(csv.DictReader(text.splitlines()))
    assert [row["clip"] for row in rows] == ["a", "b, with comma", "mean"]
    assert float(rows[0]["ssim"]) == 0.8
    assert rows[1]["lip_gain"] == rows[1]["lse_c"] == ""


def test_scores_are_restored_from_json():
    restored = restore_scores(jsonable_scores(replace(FIRST, lip_gain=NAN, psnr=float("inf"), csim=NAN)))
    assert np.isnan([restored.lip_gain, restored.psnr]).all()
    assert (restored.ssim, restored.lpips, restored.csim, restored.fid) == (0.8, 0.2, None, None)
    old = {name: value for name, value in jsonable_scores(FIRST).items() if "closure" not in name}
    assert restore_scores(old) == FIRST
    with pytest.raises(TypeError):
        restore_scores({**old, "unheard_of": 1.0})
    with pytest.raises(TypeError):
        restore_scores({"psnr": 1.0})
