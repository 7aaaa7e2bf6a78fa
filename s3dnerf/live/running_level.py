"""Loudness of speech and mean of its motion, estimated while the speech comes in."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from s3dnerf.constants import FPS, SAMPLE_RATE
from s3dnerf.media.audio import SILENCE_RMS, TARGET_RMS

LEVEL_FRAME = SAMPLE_RATE // 50
"""Samples of one measurement of energy: 20 ms."""
MIN_DB, DB_PER_BIN, BINS = -60.0, 0.5, 140
HORIZON = 1500
"""Frames of 20 ms of speech after which a measurement counts 1 / e: half a minute."""
PRIOR = 50
"""Frames of 20 ms of speech after which nothing of the usual level is left, with which the estimate starts."""
MIN_RMS = TARGET_RMS / 10.0
"""Least level: 20 dB below the usual one. Otherwise noise before the first word would be made as loud as speech."""
ACTIVE_DB = 30.0
"""Frames this far below the loud ones are pauses."""
VOICED_DB = 15.0
"""Frames less than this below the mean level are certainly speech."""
HANGOVER = 20
"""Frames after such a frame that still belong to the speech: 0.4 s."""
MEAN_HORIZON = 60 * FPS
"""Frames of motion after which one counts 1 / e: a minute."""


class RunningLevel:
    """The active RMS of ``measure_level``, of the speech so far. Noise in long pauses does not count.

    >>> level = RunningLevel()
    >>> level.feed(np.zeros(16000, np.float32))
    >>> round(20 * np.log10(level.active_rms))
    -23
    """

    def __init__(self, active_rms: float | None = None) -> None:
        """Start with the usual level, or keep a level that is known."""
        self.fixed = active_rms
        self._rest = np.zeros(0, np.float32)
        self._weights, self._energies = np.zeros(BINS), np.zeros(BINS)
        self._since_voiced = HANGOVER + 1
        self._active_rms = TARGET_RMS
        self._heard = 0

    @property
    def active_rms(self) -> float:
        """Root mean square of the speech without its pauses."""
        return self._active_rms if self.fixed is None else self.fixed

    @property
    def gain(self) -> float:
        """Gain that brings speech to the level that the models know."""
        return TARGET_RMS / self.active_rms

    def feed(self, sound: np.ndarray) -> None:
        """Take more 16 kHz sound ``float32 [n]``."""
        if self.fixed is not None:
            return
        self._rest = np.concatenate([self._rest, sound])
        whole = len(self._rest) // LEVEL_FRAME * LEVEL_FRAME
        energies = np.square(self._rest[:whole].reshape(-1, LEVEL_FRAME), dtype=np.float64).mean(axis=1)
        self._rest = self._rest[whole:]
        for energy in energies.tolist():
            is_voiced = self._heard < PRIOR or energy > self._active_rms**2 * 10 ** (-VOICED_DB / 10)
            self._since_voiced = 0 if is_voiced else self._since_voiced + 1
            if energy > SILENCE_RMS**2 and self._since_voiced <= HANGOVER:
                self._add(energy)

    def _add(self, energy: float) -> None:
        self._heard += 1
        index = int(np.clip((10 * np.log10(energy) - MIN_DB) / DB_PER_BIN, 0, BINS - 1))
        for values, value in ((self._weights, 1.0), (self._energies, energy)):
            values *= 1.0 - 1.0 / HORIZON
            values[index] += value
        loud = int(np.searchsorted(np.cumsum(self._weights), 0.95 * self._weights.sum()))
        first = max(0, loud - round(ACTIVE_DB / DB_PER_BIN))
        heard = float(np.sqrt(self._energies[first:].sum() / self._weights[first:].sum()))
        share = min(self._heard / PRIOR, 1.0)
        self._active_rms = max(heard**share * TARGET_RMS ** (1.0 - share), MIN_RMS)


class RunningMean:
    """The mean of the motion codes so far; of the last minute, if there are more."""

    def __init__(self, mean: Tensor | None = None) -> None:
        """Start without a mean, or keep one ``[1, R, code]`` that is known."""
        self.is_fixed = mean is not None
        self.mean = mean
        self.count = 0

    def feed(self, codes: Tensor) -> Tensor:
        """Take more codes ``[n, R, code]``, at least one, and return the mean ``[1, R, code]``."""
        if self.is_fixed:
            assert self.mean is not None
            return self.mean
        self.count += len(codes)
        weight = len(codes) / min(self.count, max(MEAN_HORIZON, len(codes)))
        new = codes.mean(dim=0, keepdim=True)
        self.mean = new if self.mean is None else torch.lerp(self.mean, new, weight)
        return self.mean
