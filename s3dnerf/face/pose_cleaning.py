"""Removal of what is no head motion from tracked head poses: the mouth's leak into pitch, and noise.

Poses of prepared clips are registered by optical flow (:mod:`s3dnerf.face.registration`), and still the jaw pulls on
them. Over 167 training clips, changes of pitch within a second correlate with those of the lip opening at -0.22 (18
clips of held-out people: -0.30), by -0.13 radians per head unit (median); those of yaw, roll, shift and scale do not
(at most 0.03). A model of head motion would learn to nod with every syllable. After the regression, the correlation is
-0.02 (-0.01), and the pitch itself correlates with the one before at 0.96 (0.93).
"""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter1d
from scipy.signal import butter, sosfiltfilt

from s3dnerf.constants import FPS, HEAD_CUTOFF_HZ

LEAK_REACH = 3
"""Frames of lip opening on either side that may leak into the pitch of a frame."""
LEAK_SIGMA = 6.0
"""Standard deviation in frames of the Gaussian whose smooth part the regression ignores: slow changes of pitch are head
motion."""
LEAK_PENALTY = 0.01
"""Ridge penalty in squared head units, about the lip motion within a second of speech: short clips and still lips give
smaller weights."""
FILTER_ORDER = 4


def remove_mouth_leak(pitch: np.ndarray, lip_opening: np.ndarray) -> np.ndarray:
    """Remove from the pitch of a clip what a ridge regression on the lip opening of nearby frames explains.

    Args:
        pitch: ``[T]`` in radians.
        lip_opening: ``[T]`` in head units.

    Returns:
        ``float64 [T]`` with the mean of ``pitch``.
    """
    pitch = np.asarray(pitch, np.float64)
    opening = np.asarray(lip_opening, np.float64)
    near = np.clip(np.arange(len(opening))[:, None] + np.arange(-LEAK_REACH, LEAK_REACH + 1), 0, len(opening) - 1)
    inputs = opening[near] - opening[near].mean(axis=0)
    fast = inputs - gaussian_filter1d(inputs, LEAK_SIGMA, axis=0, mode="nearest")
    target = pitch - gaussian_filter1d(pitch, LEAK_SIGMA, mode="nearest")
    weights = np.linalg.solve(fast.T @ fast + LEAK_PENALTY * np.eye(fast.shape[1]), fast.T @ target)
    return pitch - inputs @ weights


def low_pass(series: np.ndarray) -> np.ndarray:
    """Remove motion above ``HEAD_CUTOFF_HZ`` from ``[T, C]`` at 25 frames per second, without lag.

    A Butterworth filter runs forward and backward. Ends are extended by point reflection.
    """
    series = np.asarray(series, np.float64)
    if len(series) < 2:
        return series
    # Each of the two passes has half the attenuation in decibels, and half the amplitude is 6 dB: -3 dB in each.
    filter_ = butter(FILTER_ORDER, HEAD_CUTOFF_HZ, fs=FPS, output="sos")
    return sosfiltfilt(filter_, series, axis=0, padlen=min(3 * FPS, len(series) - 1))
