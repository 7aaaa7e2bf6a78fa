"""Closed lips: matches and chance level counted by hand, and the opening in pauses."""

import numpy as np
import pytest

from s3dnerf.metrics import find_closures, measure_closure_chance, measure_closure_f1, measure_silent_opening

FRAMES = 40


def close_at(*frames: int) -> np.ndarray:
    opening = np.ones(FRAMES)
    opening[list(frames)] = 0.0
    return opening


def test_lips_are_closed_in_the_lowest_quarter_of_their_own_range() -> None:
    # The 5th and 95th percentile of 0, 1, ..., 100 are 5 and 95; a quarter of the way up is 27.5.
    assert np.flatnonzero(find_closures(np.arange(101.0))).tolist() == list(range(28))
    assert np.flatnonzero(find_closures(3.0 + 0.1 * np.arange(101.0))).tolist() == list(range(28))
    assert not find_closures(np.full(10, 0.3)).any() and not find_closures(np.full(10, np.nan)).any()


def test_f1_counts_matches_within_two_frames() -> None:
    target = close_at(10, 11, 20, 21, 30, 31)
    generated = 2.0 + 0.5 * close_at(12, 13, 24, 25, 30, 31, 36)
    # Of seven generated frames 12, 13, 30 and 31 match; of six target frames 10, 11, 30 and 31.
    assert measure_closure_f1(target, generated) == pytest.approx(2 * (4 / 7) * (4 / 6) / (4 / 7 + 4 / 6))
    assert measure_closure_f1(target, target) == 1.0
    assert measure_closure_f1(close_at(5, 6, 7), close_at(25, 26, 27)) == 0.0


def test_chance_is_the_mean_over_shifts() -> None:
    opening = close_at(10, 11, 12, 30, 31, 32)
    # Shifts from 12 to 28. About 20, where one closure meets the other: five of F1 1, two of 2/3 and two of 1/3.
    assert measure_closure_chance(opening, opening) == pytest.approx((5 + 2 * 2 / 3 + 2 / 3) / 17)
    assert np.isnan(measure_closure_chance(opening[:23], opening[:23]))


def test_lips_that_never_move_have_no_closures() -> None:
    moving, still, unseen = close_at(10, 11, 12), np.full(FRAMES, 0.3), np.full(FRAMES, np.nan)
    for measure in (measure_closure_f1, measure_closure_chance):
        assert measure(moving, still) == 0.0
        assert np.isnan(measure(still, moving)) and np.isnan(measure(moving, unseen))


def test_frames_without_a_face_do_not_count() -> None:
    target, generated = close_at(10, 11, 12, 30, 31, 32), close_at(10, 11, 12, 20, 21, 22)
    # 3 of 6 match on both sides; without the frames around 20 all three that are left.
    assert measure_closure_f1(target, generated) == pytest.approx(0.5)
    generated[18:25] = np.nan
    assert measure_closure_f1(target, generated) == pytest.approx(2 * 1.0 * 0.5 / 1.5)


def test_silent_lips_are_measured_in_the_range_of_the_target() -> None:
    target, generated = 2.0 + 4.0 * close_at(10, 11, 12), np.full(FRAMES, 6.0)
    is_pause = np.zeros(FRAMES, bool)
    is_pause[[3, 4, 5]] = True
    generated[3:6] = [2.4, 3.2, np.nan]
    # Means 2.8 and 6.0 in a range from 2 to 6.
    assert measure_silent_opening(target, generated, is_pause) == pytest.approx(0.2)
    assert measure_silent_opening(target, target, is_pause) == pytest.approx(1.0)
    assert np.isnan(measure_silent_opening(target, generated, np.zeros(FRAMES, bool)))
    assert np.isnan(measure_silent_opening(np.ones(FRAMES), generated, is_pause))
    with pytest.raises(ValueError, match="expected arrays"):
        measure_silent_opening(target, generated, is_pause[1:])
