"""Second-order filters of sound that comes in blocks.

``scipy.signal`` has them too, but it takes .6 s of processor time to import, and rendering needs nothing else of it.
"""

from __future__ import annotations

import math
from functools import cache
from typing import NamedTuple

import numpy as np

BLOCK = 256
"""Samples that are filtered by one row of a matrix product."""
Coefficients = tuple[float, float, float]


class BlockMatrices(NamedTuple):
    """What a block of samples does to the output and to the state of a filter; both are linear in samples and state."""

    response: np.ndarray
    """``[BLOCK, BLOCK]`` output from samples."""
    from_state: np.ndarray
    """``[BLOCK, 2]`` output from the state before the block."""
    to_state: np.ndarray
    """``[2, BLOCK]`` change of the state by samples."""
    powers: np.ndarray
    """``[BLOCK + 1, 2, 2]`` state after n samples from the state before them."""
    settled: np.ndarray
    """``[2]`` state after a long time with an input of 1."""


@cache
def make_block_matrices(numerator: Coefficients, denominator: Coefficients) -> BlockMatrices:
    """Return the matrices of a filter.

    With the state ``s`` of the transposed direct form II, ``y[n] = C s[n] + b0 x[n]``, ``s[n + 1] = A s[n] + B x[n]``.
    """
    (b0, b1, b2), (_, a1, a2) = (np.array(part) / denominator[0] for part in (numerator, denominator))
    step, entry = np.array([[-a1, 1.0], [-a2, 0.0]]), np.array([b1 - a1 * b0, b2 - a2 * b0])
    powers = np.empty((BLOCK + 1, 2, 2))
    powers[0] = np.eye(2)
    for n in range(BLOCK):
        powers[n + 1] = step @ powers[n]
    from_state = powers[:BLOCK, 0]
    impulse = np.concatenate([[b0], from_state[:-1] @ entry])
    lag = np.subtract.outer(np.arange(BLOCK), np.arange(BLOCK))
    response = np.where(lag >= 0, impulse[lag], 0.0)
    to_state = (powers[:BLOCK] @ entry)[::-1].T
    return BlockMatrices(response, from_state, to_state, powers, np.linalg.solve(np.eye(2) - step, entry))


class Biquad:
    """A second-order filter that keeps its state from block to block, in float64.

    A block of samples takes a few matrix products in place of a loop over samples. Where a recording is cut into blocks
    changes the rounding, by less than 1e-9 of the largest sample.

    Args:
        numerator: b0, b1 and b2.
        denominator: a0, a1 and a2.

    >>> Biquad((1.0, 0.0, 0.0), (1.0, -0.5, 0.0)).apply(np.array([1.0, 0.0, 0.0]))
    array([1.  , 0.5 , 0.25])
    """

    def __init__(self, numerator: Coefficients, denominator: Coefficients) -> None:
        self._matrices = make_block_matrices(numerator, denominator)
        self._state = np.zeros(2)

    def settle(self, value: float) -> None:
        """Take the input to have been ``value`` for ever."""
        self._state = value * self._matrices.settled

    def apply(self, samples: np.ndarray) -> np.ndarray:
        """Filter the next samples ``[n]``, which are finite; returns ``float64 [n]``."""
        matrices = self._matrices
        whole = len(samples) // BLOCK * BLOCK
        blocks = samples[:whole].reshape(-1, BLOCK)
        states = np.empty((len(blocks), 2))
        for number, change in enumerate(blocks @ matrices.to_state.T):
            states[number] = self._state
            self._state = matrices.powers[BLOCK] @ self._state + change
        filtered = blocks @ matrices.response.T + states @ matrices.from_state.T
        return np.concatenate([filtered.ravel(), self._apply_rest(samples[whole:])])

    def _apply_rest(self, samples: np.ndarray) -> np.ndarray:
        """Filter less than a block."""
        matrices, count = self._matrices, len(samples)
        filtered = matrices.from_state[:count] @ self._state + matrices.response[:count, :count] @ samples
        self._state = matrices.powers[count] @ self._state + matrices.to_state[:, BLOCK - count :] @ samples
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
