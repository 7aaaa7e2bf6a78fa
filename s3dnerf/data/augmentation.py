"""Augmentation of training data: colors, level, noise and tempo."""

from __future__ import annotations

import numpy as np

from s3dnerf.constants import SAMPLES_PER_FRAME
from s3dnerf.media.audio import cut_speech_window


def jitter_colors(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Jitter brightness, contrast, saturation and tint of ``uint8 [n, H, W, 3]``, all frames alike."""
    # All these changes are affine in color, so they combine to one 3 x 3 matrix and an offset.
    saturation = rng.uniform(0.6, 1.3)
    gray = np.full((3, 3), 1 / 3) * np.array([[0.9, 1.8, 0.3]])
    matrix = saturation * np.eye(3) + (1 - saturation) * gray
    matrix *= rng.uniform(0.8, 1.2) * rng.uniform(0.93, 1.07, size=(3, 1))
    offset = 255.0 * rng.uniform(-0.08, 0.08)
    changed = pixels.astype(np.float32) @ matrix.T.astype(np.float32) + np.float32(offset)
    return changed.clip(0, 255).astype(np.uint8)


def augment_speech(
    speech: np.ndarray, start: float, tempo: float, count: int, window: int, rng: np.random.Generator | None
) -> np.ndarray:
    """Extract speech windows at another tempo.

    The segment is resampled so that its frames are 640 samples apart, as ``cut_speech_window`` expects.

    Args:
        speech: 16 kHz audio ``[samples]``.
        start: fractional number of the first frame.
        tempo: distance of the frames, in frames of the recording.
        count: number of frames.
        window: samples of a window.
        rng: if given, level, spectral tilt and noise are augmented too.

    Returns:
        ``float32 [count, window]``.
    """
    margin = -(-window // (2 * SAMPLES_PER_FRAME)) + 1
    length = (count + 2 * margin) * SAMPLES_PER_FRAME
    # Sample (margin + 0.5) * 640 of the segment is the center of frame ``start`` of the recording.
    center = (margin + 0.5) * SAMPLES_PER_FRAME
    positions = (start + 0.5) * SAMPLES_PER_FRAME + (np.arange(length) - center) * tempo
    segment = np.interp(positions, np.arange(len(speech)), speech, left=0.0, right=0.0).astype(np.float32)
    if rng is not None:
        segment = augment_waveform(segment, rng)
    return cut_speech_window(segment, margin + np.arange(count), window)


def augment_waveform(speech: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Change the level (+-6 dB) and the spectral tilt (first order) and add noise (15 to 45 dB below the speech)."""
    speech = speech * np.float32(10 ** (rng.uniform(-6, 6) / 20))
    tilt = np.float32(rng.uniform(-0.4, 0.4))
    speech = speech + tilt * np.concatenate([[np.float32(0)], speech[:-1]])
    level = np.sqrt(np.mean(np.square(speech)) + 1e-10)
    noise = rng.standard_normal(len(speech), dtype=np.float32)
    return speech + noise * np.float32(level * 10 ** (-rng.uniform(15, 45) / 20))
