"""Two evaluations side by side: means, differences and intervals known in advance."""

from dataclasses import replace

import numpy as np
import pytest

from s3dnerf.evaluation.comparison import ComparedScore, compare_scores, find_common_clips, format_comparison
from s3dnerf.evaluation.scores import Scores

NAN = float("nan")
BLANK = Scores(25.0, 0.8, 2.0, 1.5, 1.8, 0.4, 0.9, 0.36, 1.0, 12.0, 1.0, 0.3, 0.75)
PEOPLE = {"a1": "ann", "a2": "ann", "b1": "bob", "c1": "cid"}


def make_row(name: str, *values: float) -> dict[str, Scores]:
    return {clip: replace(BLANK, **{name: value}) for clip, value in zip(PEOPLE, values, strict=False)}


def compare(earlier: dict, later: dict) -> dict[str, ComparedScore]:
    return {score.heading: score for score in compare_scores(earlier, later, PEOPLE)}


def test_differences_are_paired_and_people_keep_their_clips_together() -> None:
    earlier, later = {"ours": make_row("psnr", 25, 20, 30)}, {"ours": make_row("psnr", 26, 21, 33)}
    score = compare(earlier, later)["PSNR (dB) ↑"]
    # The difference of people is 1 for Ann (both clips) and 3 for Bob, whatever their levels.
    assert (score.earlier, score.later) == (25.0, pytest.approx(80 / 3))
    assert score.interval == (pytest.approx(1.0), pytest.approx(3.0))
    assert score.format_cells() == ["PSNR (dB) ↑", "25.00", "26.67", "+1.67", "+1.00 … +3.00"]
    assert format_comparison([score]).splitlines()[2] == "| PSNR (dB) ↑ | 25.00 | 26.67 | +1.67 | +1.00 … +3.00 |"


def test_equal_evaluations_do_not_differ() -> None:
    row = {"ours": make_row("psnr", 25, 20, 30)}
    for score in compare(row, row).values():
        assert score.earlier == score.later or np.isnan([score.earlier, score.later]).all()
        assert score.interval == (0.0, 0.0) or np.isnan(score.interval).all()


def test_only_clips_known_to_both_count() -> None:
    earlier, later = {"ours": make_row("psnr", 25, NAN, 30)}, {"ours": make_row("psnr", 26, 90, 33, 99)}
    assert find_common_clips(earlier, later) == ["a1", "a2", "b1"]
    score = compare(earlier, later)["PSNR (dB) ↑"]
    assert (score.earlier, score.later) == (27.5, 29.5)


def test_scores_that_an_older_evaluation_lacks_are_left_out() -> None:
    found = compare({"ours": make_row("psnr", 1, 2, 3)}, {"ours": make_row("closure_f1", 0.5, 0.5, 0.5)})
    assert "PSNR (dB) ↑" in found
    assert not [heading for heading in found if "closures" in heading or "% of real" in heading]
    assert compare_scores({"ours": {}}, {"ours": make_row("psnr", 1, 2)}, PEOPLE) == []


def test_percentages_of_the_real_value_are_ratios_of_means() -> None:
    real = make_row("cpbd", 0.2, 0.6, 0.4)
    earlier = {"ours": make_row("cpbd", 0.1, 0.3, 0.2), "ground_truth": real}
    later = {"ours": make_row("cpbd", 0.2, 0.3, 0.4), "ground_truth": real}
    score = compare(earlier, later)["CPBD (% of real)"]
    assert (score.earlier, score.later) == (pytest.approx(50.0), pytest.approx(75.0))
    # Ann alone: 0.5 of 0.8 instead of 0.4; Bob alone: all instead of half.
    assert score.interval == (pytest.approx(12.5), pytest.approx(50.0))


def test_gains_are_compared_over_people() -> None:
    earlier = {"ours": make_row("lip_gain_plain", 0.5, 0.5, 2.0)}
    later = {"ours": make_row("lip_gain_plain", 1.0, 1.0, 1.0)}
    found = compare(earlier, later)
    mean, spread = (found[f"lip gain, plain, {name}"] for name in ("geometric mean → 1", "spread ↓"))
    assert (mean.earlier, mean.later) == (pytest.approx(1.0), pytest.approx(1.0))
    # Ann alone: from 0.5 to 1; Bob alone: from 2 to 1.
    assert mean.interval == (pytest.approx(-1.0), pytest.approx(0.5))
    assert (spread.earlier, spread.later) == (pytest.approx(np.sqrt(2) * np.log(2)), 0.0)


def test_one_person_has_no_interval() -> None:
    row = {"ours": make_row("psnr", 25, 26)}
    assert compare(row, row)["PSNR (dB) ↑"].format_cells()[-1] == "– … –"
