"""Means over people and their intervals."""

from __future__ import annotations

import numpy as np
import pytest

from s3dnerf.evaluation.estimates import NAN, estimate_closeness, estimate_mean, format_estimate, format_estimates

PEOPLE = ["a", "a", "b", "c"]


def test_people_weigh_the_same_and_unknown_values_do_not_count() -> None:
    mean, low, high = estimate_mean([1.0, 3.0, 5.0, NAN], PEOPLE)
    assert (mean, low, high) == (3.5, 2.0, 5.0)
    assert estimate_mean([NAN, np.inf, 4.0, NAN], PEOPLE)[0] == 4.0
    assert np.isnan(estimate_mean([NAN] * 4, PEOPLE)).all()
    assert np.isnan(estimate_mean([1.0, 2.0], ["a", "a"])[1])


def test_closeness_is_of_means_and_not_a_mean() -> None:
    # Two people, 1 and 3 against 2 and 2: their means are equal.
    assert estimate_closeness([1.0, 3.0], [2.0, 2.0], ["a", "b"])[0] == 1.0
    mean, low, high = estimate_closeness([1.0, 1.0, 3.0, NAN], [2.0, 2.0, 4.0, 9.0], PEOPLE)
    assert mean == pytest.approx(1 - 1 / 3)
    assert low == pytest.approx(0.5) and high == pytest.approx(0.75)
    assert np.isnan(estimate_closeness([NAN], [1.0], ["a"])).all()


def test_numbers_are_formatted_in_three_digits() -> None:
    assert format_estimate(25.512, 24.0, 26.04) == "25.5 (24.0 … 26.0)"
    assert format_estimate(-2e-16, NAN, NAN) == "0.00"
    assert format_estimate(NAN, NAN, NAN) == "-"
    table = format_estimates({"ours": {"x": (1.0, NAN, NAN)}, "theirs": {"y": (2.0, 1.0, 3.0)}})
    assert table.splitlines()[2:] == ["| x | 1.00 | - |", "| y | - | 2.00 (1.00 … 3.00) |"]
