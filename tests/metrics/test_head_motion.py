"""Metrics of head motion on signals whose values are known."""

from __future__ import annotations

import numpy as np
import pytest

from s3dnerf.metrics.head_motion import (
    compute_speed,
    cut_pose_windows,
    measure_acceleration,
    measure_beat_alignment,
    measure_blinks,
    measure_drift,
    measure_join_ratio,
    measure_level_speed_correlation,
    measure_own_share,
    measure_pose_frechet,
    measure_range,
    measure_seed_diversity,
    measure_spectrum_shares,
    measure_speed,
)

FPS = 25


def make_sine(frequency: float, degrees: float, seconds: int = 60, axis: int = 1) -> np.ndarray:
    """Return the rotation vectors of a head that turns back and forth about one axis."""
    rotation = np.zeros((seconds * FPS, 3))
    rotation[:, axis] = np.radians(degrees) * np.sin(2 * np.pi * frequency * np.arange(len(rotation)) / FPS)
    return rotation


def test_speed_and_range_of_a_sine_head() -> None:
    sine = make_sine(0.4, 5.0)
    assert measure_speed(sine) == pytest.approx(4 * 5.0 * 0.4, rel=0.01)
    spread = np.degrees(measure_range(sine))
    assert spread[1] == pytest.approx(2 * 5.0 * np.sin(0.45 * np.pi), rel=0.01)
    assert spread[0] == spread[2] == 0


def test_spectrum_of_sine_heads() -> None:
    both = make_sine(0.2, 3.0) + make_sine(1.0, 4.0) + make_sine(3.0, 2.0, axis=0)
    np.testing.assert_allclose(measure_spectrum_shares(both), np.array([9, 16, 4]) / 29, rtol=0.01)
    assert np.isnan(measure_spectrum_shares(np.zeros((50, 3)))).all()


def test_acceleration_of_a_sine_head_and_of_noise() -> None:
    sine = make_sine(0.4, 5.0)
    # The mean of |sin| is 2 / pi.
    assert measure_acceleration(sine) == pytest.approx(5.0 * (2 * np.pi * 0.4) ** 2 * 2 / np.pi, rel=0.01)
    noise = np.zeros_like(sine)
    noise[:, 1] = np.radians(0.1) * np.random.default_rng(0).normal(size=len(sine))
    # Noise of a fiftieth of the amplitude: second differences of white noise have six times its variance.
    expected = 0.1 * np.sqrt(6.0) * np.sqrt(2 / np.pi) * FPS**2
    assert measure_acceleration(noise) == pytest.approx(expected, rel=0.05)
    assert measure_acceleration(sine + noise) > 4 * measure_acceleration(sine)


def test_speed_is_nan_for_one_frame_and_acceleration_for_two() -> None:
    assert np.isnan(measure_speed(np.zeros((1, 3)))) and np.isnan(measure_acceleration(np.zeros((2, 3))))


def test_blinks_of_a_made_series() -> None:
    openness = np.ones(60 * FPS)
    starts = np.arange(50, 1500, 100)
    for start in starts:
        openness[start : start + 3] = 0.2
    found = measure_blinks(openness)
    assert found.per_minute == pytest.approx(len(starts))
    assert found.closed_seconds == pytest.approx(3 / FPS)
    assert found.pause_variation == pytest.approx(0.0)
    assert np.isnan(measure_blinks(np.ones(100)).closed_seconds)


def test_head_ahead_of_the_voice_correlates_with_the_level() -> None:
    rng = np.random.default_rng(0)
    level = rng.random(1000)
    speed = np.roll(level, -6)
    wrong = rng.random(1000)
    turns = np.zeros((1001, 3))
    turns[1:, 0] = np.cumsum(speed * np.where(np.arange(1000) % 2, 0.01, -0.01))
    assert measure_level_speed_correlation(level, turns) > 0.99
    assert abs(measure_level_speed_correlation(wrong, turns)) < 0.1


def test_own_share_counts_ties_half() -> None:
    assert measure_own_share(np.array(1.0), np.array([0.0, 1.0, 2.0, 0.5])) == pytest.approx(0.625)
    assert measure_own_share(np.zeros(3), np.zeros(3)) == 0.5
    assert np.isnan(measure_own_share(np.zeros(0), np.zeros(0)))


def test_frechet_is_zero_for_equal_sets_and_known_for_shifted_ones() -> None:
    rng = np.random.default_rng(0)
    real = [rng.normal(size=(200, 8)), rng.normal(size=(50, 8)) + 1]
    assert measure_pose_frechet(real, real, components=8) == pytest.approx(0.0, abs=1e-9)
    shift = rng.normal(size=8)
    rows = np.concatenate(real)
    weights = np.concatenate([np.full(200, 1 / 400), np.full(50, 1 / 100)])
    centered = rows - weights @ rows
    covariance = centered.T @ (weights[:, None] * centered)
    moved = measure_pose_frechet(real, [one + shift for one in real], components=8)
    assert moved == pytest.approx(shift @ np.linalg.solve(covariance, shift), rel=1e-6)


def test_frechet_weighs_people_equally() -> None:
    rng = np.random.default_rng(1)
    one, other = rng.normal(size=(40, 6)), rng.normal(size=(40, 6)) * 2
    repeated = np.concatenate([other] * 5)
    assert measure_pose_frechet([one, other], [one, repeated], components=6) == pytest.approx(0.0, abs=1e-8)


def test_windows_ignore_the_mean_pose() -> None:
    pose = np.random.default_rng(0).normal(size=(120, 6))
    windows = cut_pose_windows(pose)
    assert windows.shape == (3, 99 * 6)
    np.testing.assert_allclose(cut_pose_windows(pose + 3), windows, atol=1e-9)
    assert cut_pose_windows(pose[:49]).shape == (0, 99 * 6)


def test_seed_diversity_is_the_deviation_over_seeds() -> None:
    sine = make_sine(0.5, 3.0)
    assert measure_seed_diversity(np.stack([sine, sine])) == pytest.approx(0.0)
    shifts = np.radians(2.0) * np.array([-1.0, 1.0])[:, None, None]
    assert measure_seed_diversity(sine + shifts) == pytest.approx(2.0 * np.sqrt(2))


def test_jumps_at_joins_raise_the_ratio() -> None:
    rng = np.random.default_rng(0)
    rotation = rng.normal(size=(1000, 3)) * 0.001
    joins = np.arange(100, 1000, 100)
    assert measure_join_ratio(rotation, joins) == pytest.approx(1.0, abs=0.3)
    jumpy = rotation + 0.05 * (np.arange(1000) // 100)[:, None]
    assert measure_join_ratio(jumpy, joins) > 10
    assert np.isnan(measure_join_ratio(rotation, np.zeros(0)))


def test_drift_compares_the_last_minute_with_the_first() -> None:
    rotation = np.zeros((600 * FPS, 3))
    rotation[:, 2] = np.radians(5.0) * np.linspace(0, 1, len(rotation))
    assert measure_drift(rotation) == pytest.approx(4.5, rel=0.01)
    assert np.isnan(measure_drift(rotation[:1000]))


def test_beat_alignment_rewards_noise() -> None:
    """The known defect: heads of noise score higher than one that moves smoothly, and do so for any speech."""
    rng = np.random.default_rng(0)
    level = np.zeros(1500)
    for beat in range(20, 1500, 30):
        level[beat : beat + 8] = 1.0 - np.arange(8) / 8
    white = rng.normal(size=(1500, 3)) * 0.02
    slow = measure_beat_alignment(level, make_sine(0.4, 5.0))
    for noise in (white, white.cumsum(axis=0)):
        score = measure_beat_alignment(level, noise)
        assert score > slow + 0.2
        assert measure_beat_alignment(rng.permutation(level), noise) == pytest.approx(score, abs=0.15)


def test_speed_counts_rotations_about_any_axis() -> None:
    rotation = np.radians([[0, 0, 0], [1, 0, 0], [1, 0, 0]])
    np.testing.assert_allclose(compute_speed(rotation), [25.0, 0.0], atol=1e-9)
