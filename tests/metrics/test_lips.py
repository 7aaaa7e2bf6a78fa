import numpy as np
import pytest

from s3dnerf.metrics import (
    MOUTH_POINTS,
    align_openings,
    measure_f_lmd,
    measure_m_lmd,
    measure_opening_correlation,
    measure_opening_gain,
    measure_opening_slope,
)


@pytest.fixture
def face() -> np.ndarray:
    return np.random.default_rng(1).uniform(40, 200, (4, 478, 3))


@pytest.fixture
def opening() -> np.ndarray:
    return np.sin(np.arange(60) / 3.0) + 1.2


def test_a_shift_moves_the_face_but_not_the_mouth_shape(face):
    moved = face + np.array([3.0, -4.0, 9.0])
    np.testing.assert_allclose(measure_f_lmd(face, moved), 5.0)
    np.testing.assert_allclose(measure_m_lmd(face, moved), 0.0, atol=1e-9)


def test_distances_are_those_of_hand_moved_points(face):
    moved = face.copy()
    moved[:, MOUTH_POINTS[0], 0] += 8.0
    np.testing.assert_allclose(measure_f_lmd(face, moved), 8.0 / 468)
    # After the mean (8 / 40) is taken off, one point is 7.8 away and the other 39 are 0.2 away.
    np.testing.assert_allclose(measure_m_lmd(face, moved), (7.8 + 39 * 0.2) / 40)


def test_irises_do_not_count(face):
    moved = face.copy()
    moved[:, 468:] += 50.0
    np.testing.assert_array_equal(measure_f_lmd(face, moved), 0.0)
    np.testing.assert_array_equal(measure_f_lmd(face[:, :468], moved[:, :468]), 0.0)


def test_a_frame_without_a_face_is_unknown_alone(face):
    lost = face.copy()
    lost[2] = np.nan
    assert np.isnan(measure_f_lmd(face, lost)).tolist() == [False, False, True, False]


def test_mouth_points_are_forty_different_ones():
    assert len(set(MOUTH_POINTS)) == len(MOUTH_POINTS) == 40


def test_scaled_and_shifted_openings_correlate_fully(opening):
    assert measure_opening_correlation(opening, 0.5 * opening + 3) == pytest.approx(1.0)
    assert measure_opening_correlation(opening, -2.0 * opening) == pytest.approx(-1.0)
    assert measure_opening_gain(opening, 0.5 * opening + 3) == pytest.approx(0.5)
    assert measure_opening_slope(opening, 0.5 * opening + 3) == pytest.approx(0.5)
    assert measure_opening_slope(opening, -2.0 * opening) == pytest.approx(-2.0)


def test_slope_is_that_of_the_fitted_line(opening):
    generated = 0.6 * opening + np.random.default_rng(2).normal(0, 0.5, len(opening))
    slope = np.polyfit(opening, generated, 1)[0]
    assert measure_opening_slope(opening, generated) == pytest.approx(slope)
    assert measure_opening_gain(opening, generated) > slope


def test_still_lips_have_no_gain_and_no_correlation(opening):
    still = np.full_like(opening, 0.3)
    assert measure_opening_correlation(opening, still) == 0.0
    assert measure_opening_gain(opening, still) == pytest.approx(0.0, abs=1e-12)
    trembling = still + 0.01 * opening
    assert measure_opening_correlation(opening, trembling) == 0.0
    assert measure_opening_gain(opening, trembling) == pytest.approx(0.01)


def test_scores_of_a_still_or_missing_target_are_nan(opening):
    still, unseen = np.full_like(opening, 0.3), np.full_like(opening, np.nan)
    for target in (still, unseen):
        assert np.isnan(measure_opening_correlation(target, opening))
        assert np.isnan(measure_opening_gain(target, opening))
        assert np.isnan(measure_opening_slope(target, opening))


def test_missing_frames_are_ignored(opening):
    generated = 0.5 * opening
    generated[10:20] = np.nan
    assert measure_opening_correlation(opening, generated) == pytest.approx(1.0)
    known = np.isfinite(generated)
    assert measure_opening_gain(opening[known], generated[known]) == measure_opening_gain(opening, generated)


def test_unequal_lengths_are_refused(face, opening):
    with pytest.raises(ValueError, match="4 and 3 frames"):
        measure_f_lmd(face, face[:3])
    with pytest.raises(ValueError, match="expected landmarks"):
        measure_m_lmd(face[:, :68], face[:, :68])
    with pytest.raises(ValueError, match="two openings"):
        measure_opening_correlation(opening, opening[1:])


def test_late_lips_are_paired_with_the_target_they_belong_to(opening):
    target, generated = align_openings(np.arange(5), np.arange(5), 2)
    assert (target.tolist(), generated.tolist()) == ([0, 1, 2], [2, 3, 4])
    target, generated = align_openings(np.arange(5), np.arange(5), -2)
    assert (target.tolist(), generated.tolist()) == ([2, 3, 4], [0, 1, 2])
    assert [len(part) for part in align_openings(np.arange(5), np.arange(5), 9)] == [0, 0]
    late = np.roll(opening, 3)
    assert measure_opening_correlation(opening, late) < 0.7
    assert measure_opening_correlation(*align_openings(opening, late, 3)) == pytest.approx(1.0)
