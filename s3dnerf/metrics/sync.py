"""How well lips and speech agree, from embeddings of both (Chung and Zisserman, 2016, section 4)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy.fft import dct

SAMPLE_RATE = 16_000
WINDOW, HOP, TRANSFORM = 400, 160, 512
BANDS, CEPSTRA, LIFTER = 26, 13, 22
PREEMPHASIS = 0.97
FULL_SCALE = 32_768.0
NOTHING = float(np.finfo(np.float64).eps)
"""Stands for an energy of zero, so that it has a logarithm."""

LONGEST_SHIFT = 15
"""Frames that sound is moved to and fro."""
DISTANCE_OFFSET = 1e-6
"""Added to each difference by PyTorch's pairwise_distance, with which the published scores were measured."""


@dataclass(frozen=True)
class SyncScores:
    """distance: LSE-D, lower is better. confidence: LSE-C, higher is better.

    offset: by how many frames lips and sound fit best; positive if the lips come after their sound.
    """

    distance: float
    confidence: float
    offset: int


def measure_sync(lips: np.ndarray, sounds: np.ndarray, longest: int = LONGEST_SHIFT) -> SyncScores:
    """LSE-D and LSE-C (Prajwal et al., 2020) of embeddings of lips and of sound, both [N, C], a row a frame.

    Each lip row is compared with the sound rows up to `longest` frames before and after it (zeros beyond the
    ends). The mean distance over time is taken for each shift: LSE-D is the smallest, LSE-C the median over
    shifts minus the smallest. NaN, with offset 0, without rows.
    """
    if lips.ndim != 2 or lips.shape != sounds.shape:
        raise ValueError(f"expected embeddings [N, C] of equal shapes, got {lips.shape} and {sounds.shape}")
    if not len(lips):
        return SyncScores(float("nan"), float("nan"), 0)
    lips = lips.astype(np.float64)
    padded = np.pad(sounds.astype(np.float64), ((longest, longest), (0, 0)))
    moved = (padded[first : first + len(lips)] for first in range(2 * longest + 1))
    means = np.array([np.linalg.norm(lips - part + DISTANCE_OFFSET, axis=1).mean() for part in moved])
    best = int(means.argmin())
    return SyncScores(float(means[best]), float(np.median(means) - means[best]), longest - best)


def compute_mfcc(speech: np.ndarray) -> np.ndarray:
    """Mel-frequency cepstra of speech [n] in [-1, 1] at 16 kHz, float64 [frames, 13], 100 a second.

    Those of the library python_speech_features 0.6 by default, on samples of 16 bits: pre-emphasis 0.97, windows
    of 25 ms without a taper, 26 triangular bands up to 8 kHz, orthonormal DCT-II, lifter 22, and the log of
    the window's energy in place of the first coefficient.
    """
    samples = np.clip(np.rint(np.asarray(speech, np.float64) * FULL_SCALE), -FULL_SCALE, FULL_SCALE - 1)
    if samples.ndim != 1 or not len(samples):
        raise ValueError(f"expected speech [n], got {list(samples.shape)}")
    samples[1:] -= PREEMPHASIS * samples[:-1]
    count = 1 + max(0, -(-(len(samples) - WINDOW) // HOP))
    padded = np.pad(samples, (0, max(0, (count - 1) * HOP + WINDOW - len(samples))))
    windows = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP][:count]
    power = np.abs(np.fft.rfft(windows, TRANSFORM)) ** 2 / TRANSFORM
    bands = power @ _draw_bands().T
    cepstra = dct(np.log(np.where(bands == 0, NOTHING, bands)), type=2, axis=1, norm="ortho")[:, :CEPSTRA]
    cepstra *= 1.0 + LIFTER / 2 * np.sin(np.pi * np.arange(CEPSTRA) / LIFTER)
    energy = power.sum(axis=1)
    cepstra[:, 0] = np.log(np.where(energy == 0, NOTHING, energy))
    return cepstra


@cache
def _draw_bands() -> np.ndarray:
    """Triangles [26, 257] between bins evenly spaced in mel, 2595 log10(1 + f / 700)."""
    top = 2595.0 * np.log10(1.0 + SAMPLE_RATE / 2 / 700.0)
    hertz = 700.0 * (10.0 ** (np.linspace(0.0, top, BANDS + 2) / 2595.0) - 1.0)
    corners = np.floor((TRANSFORM + 1) * hertz / SAMPLE_RATE)
    low, peak, high = corners[:-2, None], corners[1:-1, None], corners[2:, None]
    bins = np.arange(TRANSFORM // 2 + 1)
    rising, falling = (bins - low) / (peak - low), (high - bins) / (high - peak)
    inside = (bins >= low) & (bins < high)
    return np.where(inside, np.where(bins < peak, rising, falling), 0.0)
