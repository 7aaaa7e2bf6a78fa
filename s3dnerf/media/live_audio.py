"""Sound that comes in arrays, such as from a microphone, as mono 16 kHz speech."""

from __future__ import annotations

from typing import Any

import av
import numpy as np

from s3dnerf.errors import ArgumentError
from s3dnerf.media.memory import MAX_CHANNELS, RATES, to_array


class LiveResampler:
    """Converts blocks of sound to one rate. The blocks may have any length, and channels are mixed down."""

    def __init__(self, rate: int) -> None:
        """Take the rate of the output."""
        self.rate = rate
        self._resampler: av.AudioResampler | None = None
        self._input_rate = rate

    def feed(self, samples: Any, rate: int) -> np.ndarray:
        """Convert more sound and return what is complete, ``float32 [n]``.

        Args:
            samples: an array or tensor ``[n]`` or ``[C, n]``: floats in [-1, 1], or signed integers, whose range is
                scaled to it.
            rate: samples per second.

        Raises:
            ArgumentError: it is no sound.
        """
        hint = "Give an array [n] or [C, n] of floats in [-1, 1] or of signed integers."
        if isinstance(rate, bool) or not isinstance(rate, (int, np.integer)) or not RATES[0] <= rate <= RATES[1]:
            raise ArgumentError("rate", rate, "is no sample rate", f"Use a whole number from {RATES[0]} to {RATES[1]}.")
        sound = to_array(samples)
        if sound.ndim not in (1, 2) or (sound.ndim == 2 and not 1 <= sound.shape[0] <= MAX_CHANNELS):
            raise ArgumentError("samples", None, f"have the shape {list(sound.shape)}", hint)
        if np.issubdtype(sound.dtype, np.signedinteger):
            sound = (sound / -float(np.iinfo(sound.dtype).min)).astype(np.float32)
        elif not np.issubdtype(sound.dtype, np.floating):
            raise ArgumentError("samples", None, f"are of type {sound.dtype}", hint)
        mono = (sound if sound.ndim == 1 else sound.mean(axis=0)).astype(np.float32)
        if not np.isfinite(mono).all():
            raise ArgumentError("samples", None, "hold values that are not numbers", "Check the source of the sound.")
        parts = [] if rate == self._input_rate else [self.finish()]
        self._input_rate = int(rate)
        return np.concatenate([*parts, self._resample(mono)])

    def finish(self) -> np.ndarray:
        """Return the rest of the sound, ``float32 [n]``."""
        if self._resampler is None:
            return np.zeros(0, np.float32)
        resampler, self._resampler = self._resampler, None
        return _join(resampler.resample(None))

    def _resample(self, mono: np.ndarray) -> np.ndarray:
        if self._input_rate == self.rate or not len(mono):
            return mono
        if self._resampler is None:
            self._resampler = av.AudioResampler("fltp", "mono", self.rate)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(mono)[None], "fltp", "mono")
        frame.sample_rate = self._input_rate
        return _join(self._resampler.resample(frame))


def _join(frames: list[av.AudioFrame]) -> np.ndarray:
    pieces = [frame.to_ndarray()[0] for frame in frames if frame is not None and frame.samples]
    return np.concatenate([np.zeros(0, np.float32), *pieces])
