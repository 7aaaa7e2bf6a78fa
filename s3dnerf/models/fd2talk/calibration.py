"""Corrections of generated motion: amplitudes of brows and of fast head motion, and noise.

Sampling in few steps with little guidance gives brows and nods less motion than people have. Two factors, fitted to
people held out of training, restore it. Sampling also leaves noise above the highest frequency of the heads that the
model has learned from.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import torch
from torch import Tensor

from s3dnerf.constants import FPS, HEAD_CUTOFF_HZ
from s3dnerf.face.expression_basis import load_shipped_basis
from s3dnerf.face.points import measure_brow_height, measure_lip_height

FAST_HZ = 1.5
"""Frequency above which head motion counts as fast."""


LOW_PASS_REACH = 7
"""Frames on either side that the low-pass filter of head motion sees."""


def low_pass_motion(motion: Tensor) -> Tensor:
    """Remove what is above ``HEAD_CUTOFF_HZ`` from ``motion [T, C]``, without lag.

    Ends are extended by point reflection, so that steady motion stays as it is.
    """
    if len(motion) <= LOW_PASS_REACH:
        return motion
    head = 2.0 * motion[:1] - motion[1 : LOW_PASS_REACH + 1].flip(0)
    tail = 2.0 * motion[-1:] - motion[-LOW_PASS_REACH - 1 : -1].flip(0)
    windows = torch.cat([head, motion, tail]).unfold(0, 2 * LOW_PASS_REACH + 1, 1)
    return (windows * make_low_pass().to(motion)).sum(-1)


@cache
def make_low_pass() -> Tensor:
    """Return the weights ``[2 reach + 1]`` of a sinc filter with a Hamming window."""
    steps = torch.arange(-LOW_PASS_REACH, LOW_PASS_REACH + 1, dtype=torch.float64)
    weights = torch.sinc(2.0 * HEAD_CUTOFF_HZ / FPS * steps) * torch.hamming_window(
        len(steps), periodic=False, dtype=torch.float64
    )
    return weights / weights.sum()


def scale_brows(expression: np.ndarray, factor: float) -> np.ndarray:
    """Scale the height of the brows about that of the mean face, and leave the lip gap as it is.

    Args:
        expression: ``[T, 24]`` coefficients.
        factor: 1 changes nothing.
    """
    height, direction = make_brow_axes()
    # Not a matrix product, whose rounding depends on the number of frames.
    heights = (expression * height).sum(axis=1, keepdims=True)
    return expression + (factor - 1.0) * heights * direction


@cache
def make_brow_axes() -> tuple[np.ndarray, np.ndarray]:
    """Return how the coefficients change the height of the brows, and how to change it by 1 with the lips at rest."""
    components = load_shipped_basis().components
    height, gap = measure_brow_height(components), measure_lip_height(components)
    direction = height - (height @ gap) / (gap @ gap) * gap
    return height, direction / (height @ direction)


class FastMotionFilter:
    """Scales motion above ``FAST_HZ``, one block of frames after the other: a high-shelf filter of second order.

    The coefficients are those of R. Bristow-Johnson's "Cookbook formulae for audio EQ biquad filter coefficients".
    """

    def __init__(self, factor: float) -> None:
        """Prepare a recording. ``factor`` is the gain of fast motion; slow motion stays as it is."""
        root, angle = math.sqrt(factor), 2.0 * math.pi * FAST_HZ / FPS
        cosine, alpha = math.cos(angle), math.sin(angle) / math.sqrt(2.0)
        edge = 2.0 * math.sqrt(root) * alpha
        above, below = root + 1.0, root - 1.0
        feedforward = (above + below * cosine + edge, -2.0 * (below + above * cosine), above + below * cosine - edge)
        feedback = (above - below * cosine + edge, 2.0 * (below - above * cosine), above - below * cosine - edge)
        self.numerator = root * np.array(feedforward) / feedback[0]
        self.denominator = np.array(feedback) / feedback[0]
        self.states: tuple[np.ndarray, np.ndarray] | None = None

    def apply(self, motion: np.ndarray) -> np.ndarray:
        """Filter the next frames ``[T, C]``. Before the first frame, the motion is taken to have been at rest in it."""
        (b0, b1, b2), (_, a1, a2) = self.numerator, self.denominator
        filtered = np.empty(motion.shape)
        for number, frame in enumerate(motion.astype(np.float64)):
            # The transposed direct form II, frame by frame and not as the matrix products of ``media.biquad``: however
            # a recording is cut into blocks, its frames are the same to the bit. A constant passes unchanged.
            first, second = self.states or ((1.0 - b0) * frame, (b2 - a2) * frame)
            filtered[number] = b0 * frame + first
            self.states = b1 * frame - a1 * filtered[number] + second, b2 * frame - a2 * filtered[number]
        return filtered
