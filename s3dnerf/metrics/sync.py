"""LSE-C and LSE-D: synchronization of lips and speech from their embeddings (Chung and Zisserman, 2016, section 4)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy.fft import dct

from s3dnerf.constants import SAMPLE_RATE

WINDOW, HOP, FFT_SIZE = 400, 160, 512
BANDS, CEPSTRA, LIFTER = 26, 13, 22
PREEMPHASIS = 0.97
FULL_SCALE = 32_768.0
EPS = float(np.finfo(np.float64).eps)
"""Replaces an energy of zero before the logarithm."""

MAX_SHIFT = 15
"""Largest shift of the audio in frames, to either side."""
DISTANCE_OFFSET = 1e-6
"""Term that PyTorch's pairwise_distance adds to each difference; published scores include it."""


@dataclass(frozen=True)
class LSEScores:
    """Lip-sync error of a video."""

    distance: float
    """LSE-D; lower is better."""
    confidence: float
    """LSE-C; higher is better."""
    offset: int
    """Shift in frames at which lips and audio match best; positive if the lips are late."""


def measure_lse(lips: np.ndarray, audio: np.ndarray, max_shift: int = MAX_SHIFT) -> LSEScores:
    """Compute LSE-D and LSE-C (Prajwal et al., 2020).

    Each lip embedding is compared with the audio embeddings of up to ``max_shift`` frames before and after it (zeros
    beyond the ends), and distances are averaged over time for each shift. LSE-D is the minimum over shifts, LSE-C the
    median minus the minimum.

    Args:
        lips: ``[N, C]``, one row per frame.
        audio: ``[N, C]``.
        max_shift: in frames.

    Returns:
        The scores; NaN with offset 0 if there are no rows.
    """
    if lips.ndim != 2 or lips.shape != audio.shape:
        raise ValueError(f"expected embeddings [N, C] of equal shapes, got {lips.shape} and {audio.shape}")
    if not len(lips):
        return LSEScores(float("nan"), float("nan"), 0)
    lips = lips.astype(np.float64)
    padded = np.pad(audio.astype(np.float64), ((max_shift, max_shift), (0, 0)))
    moved = (padded[first : first + len(lips)] for first in range(2 * max_shift + 1))
    means = np.array([np.linalg.norm(lips - part + DISTANCE_OFFSET, axis=1).mean() for part in moved])
    best = int(means.argmin())
    return LSEScores(float(means[best]), float(np.median(means) - means[best]), max_shift - best)


def compute_mfcc(speech: np.ndarray) -> np.ndarray:
    """Compute the MFCCs ``float64 [frames, 13]``, 100 per second, of 16 kHz speech ``[n]`` in [-1, 1].

    They equal the defaults of python_speech_features 0.6 on 16-bit samples: pre-emphasis 0.97, rectangular windows of
    25 ms, 26 triangular bands up to 8 kHz, orthonormal DCT-II, lifter 22, and the log energy of the window in place of
    the first coefficient.
    """
    samples = np.clip(np.rint(np.asarray(speech, np.float64) * FULL_SCALE), -FULL_SCALE, FULL_SCALE - 1)
    if samples.ndim != 1 or not len(samples):
        raise ValueError(f"expected speech [n], got {list(samples.shape)}")
    samples[1:] -= PREEMPHASIS * samples[:-1]
    count = 1 + max(0, -(-(len(samples) - WINDOW) // HOP))
    padded = np.pad(samples, (0, max(0, (count - 1) * HOP + WINDOW - len(samples))))
    windows = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP][:count]
    power = np.abs(np.fft.rfft(windows, FFT_SIZE)) ** 2 / FFT_SIZE
    bands = power @ _mel_filterbank().T
    cepstra = dct(np.log(np.where(bands == 0, EPS, bands)), type=2, axis=1, norm="ortho")[:, :CEPSTRA]
    cepstra *= 1.0 + LIFTER / 2 * np.sin(np.pi * np.arange(CEPSTRA) / LIFTER)
    energy = power.sum(axis=1)
    cepstra[:, 0] = np.log(np.where(energy == 0, EPS, energy))
    return cepstra


@cache
def _mel_filterbank() -> np.ndarray:
    """Return triangles ``[26, 257]`` between frequencies evenly spaced in mel, 2595 log10(1 + f / 700)."""
    top = 2595.0 * np.log10(1.0 + SAMPLE_RATE / 2 / 700.0)
    hertz = 700.0 * (10.0 ** (np.linspace(0.0, top, BANDS + 2) / 2595.0) - 1.0)
    corners = np.floor((FFT_SIZE + 1) * hertz / SAMPLE_RATE)
    low, peak, high = corners[:-2, None], corners[1:-1, None], corners[2:, None]
    bins = np.arange(FFT_SIZE // 2 + 1)
    rising, falling = (bins - low) / (peak - low), (high - bins) / (high - peak)
    inside = (bins >= low) & (bins < high)
    return np.where(inside, np.where(bins < peak, rising, falling), 0.0)
