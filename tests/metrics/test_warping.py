"""Soft-DTW: a slow reference, paths counted by hand, and the divergence of lip openings."""

import numpy as np
import pytest

from s3dnerf.metrics import measure_lip_warping, measure_soft_dtw


def warp_slowly(first: np.ndarray, second: np.ndarray, softness: float, band: int | None) -> float:
    """Sum over all paths by recursion; exp(-result / softness) is the sum of exp(-cost / softness) over paths."""
    totals = np.full((len(first) + 1, len(second) + 1), np.inf)
    totals[0, 0] = 0.0
    for i in range(1, len(first) + 1):
        for j in range(1, len(second) + 1):
            if band is None or abs(i - j) <= band:
                around = np.array([totals[i - 1, j - 1], totals[i - 1, j], totals[i, j - 1]])
                around = around[np.isfinite(around)]
                least = around.min()
                soft = least if softness == 0 else least - softness * np.log(np.exp((least - around) / softness).sum())
                totals[i, j] = np.square(first[i - 1] - second[j - 1]).sum() + soft
    return float(totals[-1, -1])


@pytest.mark.parametrize("band", [None, 2, 0])
@pytest.mark.parametrize("softness", [0.0, 0.1, 2.0])
def test_soft_dtw_equals_a_slow_reference(softness: float, band: int | None) -> None:
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(9, 2)), rng.normal(size=(9, 2))
    assert measure_soft_dtw(first, second, softness, band) == pytest.approx(warp_slowly(first, second, softness, band))
    assert measure_soft_dtw(second, first, softness, band) == pytest.approx(
        measure_soft_dtw(first, second, softness, band)
    )


@pytest.mark.parametrize("lengths", [(3, 8), (8, 3), (1, 4), (5, 5)])
def test_series_may_have_different_lengths(lengths: tuple[int, int]) -> None:
    rng = np.random.default_rng(1)
    first, second = (rng.normal(size=length) for length in lengths)
    expected = warp_slowly(first[:, None], second[:, None], 0.5, max(1, abs(lengths[0] - lengths[1])))
    assert measure_soft_dtw(first, second, 0.5, band=1) == pytest.approx(expected)


def test_three_paths_of_no_cost_lower_the_soft_minimum() -> None:
    # Through a grid of 2 x 2 lead the diagonal and the two ways around it.
    assert measure_soft_dtw(np.zeros(2), np.zeros(2), 1.0) == pytest.approx(-np.log(3))
    assert measure_soft_dtw(np.zeros(2), np.zeros(2), 1.0, band=0) == 0.0
    assert measure_soft_dtw(np.array([0.0, 1.0, 1.0, 5.0]), np.array([0.0, 0.0, 1.0, 5.0]), 0.0) == 0.0


def test_impossible_series_are_refused() -> None:
    for first, second in [
        (np.zeros(0), np.ones(2)),
        (np.ones((2, 3)), np.ones((2, 2))),
        (np.array([np.nan]), np.ones(1)),
    ]:
        with pytest.raises(ValueError, match="expected"):
            measure_soft_dtw(first, second)
    with pytest.raises(ValueError, match="negative"):
        measure_soft_dtw(np.ones(2), np.ones(2), softness=-1.0)


@pytest.fixture
def opening() -> np.ndarray:
    """Lip openings like those of speech, of four seconds."""
    frames = np.arange(100)
    return 0.3 + 0.1 * np.sin(frames / 2.1) + 0.05 * np.sin(frames / 5.3 + 1.0)


def test_equal_openings_are_no_distance_apart(opening: np.ndarray) -> None:
    assert measure_lip_warping(opening, opening) == pytest.approx(0.0, abs=1e-12)
    assert measure_lip_warping(7.0 * opening - 3.0, 7.0 * opening - 3.0) == pytest.approx(0.0, abs=1e-12)


def test_late_lips_are_nearer_than_other_lips(opening: np.ndarray) -> None:
    late, other = np.roll(opening, 3), 0.3 + 0.11 * np.sin(np.arange(100) / 3.7 + 2.0)
    wrong = measure_lip_warping(opening, other)
    assert 0 < measure_lip_warping(opening, late) < 0.25 * wrong
    # Without warping late lips are about as far away as others.
    assert measure_lip_warping(opening, late, band=0) > 0.5 * measure_lip_warping(opening, other, band=0)


def test_the_size_of_motion_counts(opening: np.ndarray) -> None:
    small = 0.3 + 0.3 * (opening - 0.3)
    assert measure_lip_warping(opening, small) > 10 * measure_lip_warping(opening, 0.3 + 0.95 * (opening - 0.3))
    # A frozen mouth is one standard deviation away in every frame.
    assert measure_lip_warping(opening, np.full(100, opening.mean()), band=0) == pytest.approx(1.0)


def test_unknown_frames_are_left_out(opening: np.ndarray) -> None:
    seen = np.delete(opening, [10, 50])
    other = np.roll(seen, 2)
    gaps = [np.insert(series, [10, 49], np.nan) for series in (seen, other)]
    assert measure_lip_warping(*gaps) == pytest.approx(measure_lip_warping(seen, other))
    assert np.isnan(measure_lip_warping(opening, np.full(100, np.nan)))
    assert np.isnan(measure_lip_warping(np.full(100, 0.3), opening))
