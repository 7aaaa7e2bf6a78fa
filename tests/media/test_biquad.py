"""Second-order filters against scipy, in one block, in many, and from a settled state."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import signal

from s3dnerf.media.biquad import BLOCK, Biquad, make_high_pass

SECTION = ((0.3, -0.2, 0.5), (2.0, -1.7, 1.6))
"""Poles of absolute value .89; the first coefficient is not 1."""


@pytest.fixture
def sound() -> np.ndarray:
    return np.random.default_rng(0).standard_normal(3 * BLOCK + 7).astype(np.float32)


@pytest.mark.parametrize("step", [1, 7, BLOCK - 1, BLOCK, BLOCK + 1, 10_000])
def test_blocks_of_any_length_give_what_scipy_does(sound: np.ndarray, step: int) -> None:
    biquad = Biquad(*SECTION)
    blocks = [biquad.apply(sound[first : first + step]) for first in range(0, len(sound), step)]
    assert biquad.apply(sound[:0]).shape == (0,)
    np.testing.assert_allclose(np.concatenate(blocks), signal.lfilter(*SECTION, sound), rtol=0, atol=1e-13)


def test_a_settled_filter_passes_a_constant_at_once() -> None:
    biquad = Biquad(*SECTION)
    biquad.settle(0.8)
    gain = sum(SECTION[0]) / sum(SECTION[1])
    np.testing.assert_allclose(biquad.apply(np.full(500, 0.8)), 0.8 * gain, rtol=1e-12)


@pytest.mark.parametrize(("order", "frequency"), [(2, 3000.0), (4, 25.0), (6, 200.0)])
def test_high_passes_are_those_of_butterworth(sound: np.ndarray, order: int, frequency: float) -> None:
    filtered = sound
    for biquad in make_high_pass(frequency, 16_000, order):
        filtered = biquad.apply(filtered)
    design = signal.butter(order, frequency, "highpass", fs=16_000, output="sos")
    np.testing.assert_allclose(filtered, signal.sosfilt(design, sound), rtol=0, atol=1e-10)
