"""Statistics over people, with the clips of a person taken together."""

import math
from functools import partial

import numpy as np
import pytest

from s3dnerf.metrics import (
    bootstrap_interval,
    draw_people,
    measure_geometric_mean,
    measure_log_spread,
    measure_ratio_of_means,
    measure_weighted_mean,
)

NAN = float("nan")
PEOPLE = ["ann", "ann", "bob"]


def test_gains_by_hand() -> None:
    # Mean logarithms: log 4 for Ann and 0 for Bob.
    values = np.array([2.0, 8.0, 1.0])
    assert measure_geometric_mean(values, PEOPLE) == pytest.approx(2.0)
    assert measure_log_spread(values, PEOPLE) == pytest.approx(math.log(4) / math.sqrt(2))


def test_weights_count_people_repeatedly() -> None:
    values, weights = np.array([2.0, 8.0, 1.0]), np.array([[1.0, 1.0, 1.0], [2.0, 2.0, 1.0], [0.0, 0.0, 2.0]])
    # Ann twice: logarithms (log 4, log 4, 0) with mean 2/3 log 4 and variance (2 / 9 + 4 / 9) / 2 of log² 4.
    expected = math.log(4) * np.sqrt([1 / 2, 1 / 3, 0])
    np.testing.assert_allclose(measure_log_spread(values, PEOPLE, weights), expected, atol=1e-12)
    np.testing.assert_allclose(measure_geometric_mean(values, PEOPLE, weights), [2.0, 4 ** (2 / 3), 1.0])


def test_unknown_and_zero_gains_are_ignored() -> None:
    assert measure_geometric_mean(np.array([4.0, NAN, 0.0]), PEOPLE) == pytest.approx(4.0)
    assert np.isnan(measure_log_spread(np.array([4.0, NAN, 0.0]), PEOPLE))
    assert np.isnan(measure_geometric_mean(np.array([NAN, NAN, NAN]), PEOPLE))
    assert np.isnan(measure_log_spread(np.zeros(0), []))


def test_means_and_ratios_by_hand() -> None:
    values, weights = np.array([1.0, 3.0, NAN]), np.array([[1.0, 1.0, 1.0], [2.0, 2.0, 0.0], [0.0, 0.0, 2.0]])
    np.testing.assert_array_equal(measure_weighted_mean(values, weights), [2.0, 2.0, NAN])
    assert measure_weighted_mean(np.array([1.0, 3.0, 5.0]), np.array([1.0, 1.0, 2.0])) == 3.5
    assert measure_ratio_of_means(values, np.array([2.0, 6.0, 100.0])) == 0.5
    assert np.isnan(measure_ratio_of_means(values, np.array([NAN, NAN, 1.0])))


def test_samples_hold_as_many_people_each_with_all_clips() -> None:
    drawn = draw_people(["b", "a", "b", "c"], samples=500)
    assert drawn.shape == (500, 4)
    np.testing.assert_array_equal(drawn[:, 0], drawn[:, 2])
    np.testing.assert_array_equal(drawn[:, [0, 1, 3]].sum(axis=1), 3.0)
    np.testing.assert_allclose(drawn.mean(axis=0), 1.0, atol=0.12)
    np.testing.assert_array_equal(draw_people(["b", "a", "b", "c"], samples=500), drawn)


def test_the_interval_of_two_people_spans_both() -> None:
    # Both people are the first one in a quarter of the samples, and the second one in another quarter.
    low, high = bootstrap_interval(partial(measure_weighted_mean, np.array([1.0, 3.0])), ["ann", "bob"])
    assert (low, high) == (1.0, 3.0)
    assert np.isnan(bootstrap_interval(partial(measure_weighted_mean, np.array([1.0, 3.0])), ["ann", "ann"])).all()


def test_the_interval_of_many_people_is_that_of_the_standard_error() -> None:
    values = np.random.default_rng(1).normal(5.0, 2.0, 200)
    low, high = bootstrap_interval(partial(measure_weighted_mean, values), [str(one) for one in range(200)])
    half = 1.96 * values.std(ddof=1) / math.sqrt(200)
    assert (low, high) == (pytest.approx(values.mean() - half, abs=0.05), pytest.approx(values.mean() + half, abs=0.05))
