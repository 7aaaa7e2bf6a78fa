"""Second-order filters of sound that comes in blocks.

``scipy.signal`` has them too, but importing it takes longer than all else that is done before the first frame.
"""

from __future__ import annotations

import math

import numpy as np

BLOCK = 256
"""Samples that are filtered by one matrix product."""


class Biquad:
    """A second-order filter that keeps its state from block to block, in float64.

    With the state ``s`` of the transposed direct form II, ``y[n] = C s[n] + b0 x[n]``, ``s[n + 1] = A s[n] + B x[n]``.
    Over a block of samples, both are linear in the first state and in the samples, so a block takes a few matrix
    products instead of a loop over samples.

    Args:
        numerator: b0, b1 and b2.
        denominator: a0, a1 and a2.

    >>> Biquad((1.0, 0.0, 0.0), (1.0, -0.5, 0.0)).apply(np.array([1.0, 0.0, 0.0]))
    array([1.  , 0.5 , 0.25])
    """

    def __init__(self, numerator: tuple[float, float, float], denominator: tuple[float, float, float]) -> None:
        (b0, b1, b2), (_, a1, a2) = (np.array(part, np.float64) / denominator[0] for part in (numerator, denominator))
        self._step = np.array([[-a1, 1.0], [-a2, 0.0]])
        self._input = np.array([b1 - a1 * b0, b2 - a2 * b0])
        powers = np.empty((BLOCK + 1, 2, 2))
        powers[0] = np.eye(2)
        for n in range(BLOCK):
            powers[n + 1] = self._step @ powers[n]
        self._powers = powers
        # What the state before the block adds to each sample, and what each sample adds to the state after it.
        self._from_state = powers[:BLOCK, 0]
        self._to_state = (powers[:BLOCK] @ self._input)[::-1].T
        response = np.concatenate([[b0], self._from_state[:-1] @ self._input])
        lag = np.subtract.outer(np.arange(BLOCK), np.arange(BLOCK))
        self._response = np.where(lag >= 0, response[lag], 0.0)
        self._state = np.zeros(2)

    def settle(self, value: float) -> None:
        """Take the input to have been ``value`` for ever."""
        self._state = np.linalg.solve(np.eye(2) - self._step, self._input * value)

    def apply(self, samples: np.ndarray) -> np.ndarray:
        """Filter the next samples ``[n]``; returns ``float64 [n]``."""
        blocks = [samples[first : first + BLOCK] for first in range(0, len(samples), BLOCK)]
        return np.concatenate([np.zeros(0), *map(self._apply_block, blocks)])

    def _apply_block(self, samples: np.ndarray) -> np.ndarray:
        count = len(samples)
        filtered = self._from_state[:count] @ self._state + self._response[:count, :count] @ samples
        self._state = self._powers[count] @ self._state + self._to_state[:, BLOCK - count :] @ samples
        return filtered


def make_high_pass(frequency: float, rate: float, order: int) -> list[Biquad]:
    """Return a Butterworth high-pass as a cascade of second-order filters.

    The poles of a Butterworth filter lie on a circle; each conjugate pair is a filter with a quality of its own. The
    coefficients are those of R. Bristow-Johnson's "Cookbook formulae for audio EQ biquad filter coefficients".

    Args:
        frequency: at which the gain is -3 dB.
        rate: samples a second.
        order: an even number.
    """
    angle = 2.0 * math.pi * frequency / rate
    cosine = math.cos(angle)
    filters = []
    for pair in range(order // 2):
        # sin(angle) / (2 Q), where 1 / (2 Q) is the cosine of the pole's angle.
        alpha = math.sin(angle) * math.cos(math.pi * (2 * pair + 1) / (2 * order))
        numerator = ((1.0 + cosine) / 2.0, -(1.0 + cosine), (1.0 + cosine) / 2.0)
        filters.append(Biquad(numerator, (1.0 + alpha, -2.0 * cosine, 1.0 - alpha)))
    return filters
