"""Factors of brows and fast head motion."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from s3dnerf.face.expression_basis import load_shipped_basis
from s3dnerf.face.points import measure_brow_height, measure_lip_height
from s3dnerf.models.fd2talk.calibration import LOW_PASS_REACH, FastMotionFilter, low_pass_motion, scale_brows


def test_brows_are_scaled_and_lips_are_not() -> None:
    expression = np.random.default_rng(0).normal(size=(30, 24)).astype(np.float32)
    basis = load_shipped_basis()
    plain, scaled = (
        np.tensordot(values, basis.components, axes=1) for values in (expression, scale_brows(expression, 1.7))
    )
    np.testing.assert_allclose(measure_brow_height(scaled), 1.7 * measure_brow_height(plain), rtol=1e-4)
    np.testing.assert_allclose(measure_lip_height(scaled), measure_lip_height(plain), atol=1e-5)
    np.testing.assert_allclose(scale_brows(expression, 1.0), expression, atol=1e-7)


@pytest.mark.parametrize(("hertz", "gain"), [(0.5, 1.0), (1.5, 0.976), (4.0, 0.5), (6.0, 0.05), (10.0, 0.0)])
def test_the_low_pass_halves_four_hertz_without_lag(hertz: float, gain: float) -> None:
    wave = torch.sin(2 * np.pi * hertz * torch.arange(200, dtype=torch.float64) / 25)[:, None]
    inner = slice(LOW_PASS_REACH, -LOW_PASS_REACH)
    torch.testing.assert_close(low_pass_motion(wave)[inner], gain * wave[inner], atol=0.005, rtol=0)


@pytest.mark.parametrize("frames", [1, LOW_PASS_REACH, LOW_PASS_REACH + 1, 60])
def test_the_low_pass_leaves_steady_motion_to_its_ends(frames: int) -> None:
    steady = torch.arange(frames, dtype=torch.float32)[:, None] * torch.tensor([0.5, 0.0, -2.0]) + 3.0
    torch.testing.assert_close(low_pass_motion(steady), steady, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("hertz", "gain"), [(0.3, 1.0), (4.0, 1.6), (8.0, 1.6)])
def test_only_fast_motion_is_scaled(hertz: float, gain: float) -> None:
    wave = np.sin(2 * np.pi * hertz * np.arange(500) / 25)[:, None]
    filtered = FastMotionFilter(1.6).apply(wave)[250:]
    assert filtered.std() / wave[250:].std() == pytest.approx(gain, rel=0.04)


def test_half_of_the_gain_in_decibels_lies_at_the_edge() -> None:
    wave = np.sin(2 * np.pi * 1.5 * np.arange(1000) / 25)[:, None]
    assert FastMotionFilter(1.6).apply(wave)[500:].std() / wave.std() == pytest.approx(np.sqrt(1.6), rel=0.01)


def test_the_filter_starts_at_rest_and_streams() -> None:
    motion = np.random.default_rng(0).normal(size=(200, 6)).cumsum(axis=0) + 5.0
    whole, stream = FastMotionFilter(1.3).apply(motion), FastMotionFilter(1.3)
    np.testing.assert_allclose(whole[0], motion[0], atol=1e-12)
    parts = [stream.apply(part) for part in np.split(motion, [0, 1, 7, 150])]
    assert np.array_equal(np.concatenate(parts), whole)
    np.testing.assert_allclose(FastMotionFilter(1.0).apply(motion), motion, atol=1e-12)
    still = np.full((50, 2), 3.0)
    np.testing.assert_allclose(FastMotionFilter(1.3).apply(still), still, atol=1e-12)
