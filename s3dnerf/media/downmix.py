"""Many channels to one or two: by what each loudspeaker carries, and without letting channels cancel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_HALF_POWER = np.sqrt(0.5)
_STEREO = {
    # ITU-R BS.775: the centre goes to both sides at half its power, so does each surround to its own side.
    "FL": (1.0, 0.0),
    "FR": (0.0, 1.0),
    "FC": (_HALF_POWER, _HALF_POWER),
    "LFE": (0.0, 0.0),
    "SL": (_HALF_POWER, 0.0),
    "SR": (0.0, _HALF_POWER),
    "BL": (_HALF_POWER, 0.0),
    "BR": (0.0, _HALF_POWER),
    "BC": (0.5, 0.5),
}
_SPEECH = {"FL": 0.5, "FR": 0.5, "FC": 1.0, "LFE": 0.0, "SL": 0.25, "SR": 0.25, "BL": 0.25, "BR": 0.25, "BC": 0.25}
"""Dialogue is in the centre; music and effects are around it."""
_WAV_ORDER = ("FL", "FR", "FC", "LFE", "BL", "BR", "SL", "SR")
_OPPOSITE = 4.0
"""How many times the difference of two channels has the energy of their sum, from which on one of them is inverted."""
_SILENT = 1e-4
"""Share of a channel's energy in the other's below which it carries noise only (40 dB)."""


def make_downmix(names: Sequence[str], channels: int) -> np.ndarray:
    """Return the matrix ``[channels, len(names)]`` that mixes the channels of a layout down to one or two.

    Args:
        names: FFmpeg's names of the channels, such as FL and LFE. Six or eight channels without known names are taken
            for 5.1 or 7.1 in the order of WAV files, other layouts with unknown names are averaged.
        channels: 1 mixes for listening to speech: what is in the centre keeps its level. 2 is ITU-R BS.775.
    """
    count = len(names)
    if count == channels:
        return np.eye(count, dtype=np.float32)
    known = _SPEECH if channels == 1 else _STEREO
    if not set(names) <= set(known):
        names = _WAV_ORDER[:count] if count in (6, 8) else names
    if count <= 2 or not set(names) <= set(known):
        return np.full((channels, count), 1.0 / count, np.float32)
    return np.array([known[name] for name in names], np.float32).reshape(count, channels).T


@dataclass
class StereoStatistics:
    """Energies of two channels and of their product, added up over a recording."""

    left: float = 0.0
    right: float = 0.0
    product: float = 0.0

    def add(self, sound: np.ndarray) -> None:
        """Take in float32 [2, n]."""
        left, right = sound.astype(np.float64) - sound.mean(axis=1, keepdims=True, dtype=np.float64)
        self.left += float(left @ left)
        self.right += float(right @ right)
        self.product += float(left @ right)

    def choose_weights(self) -> np.ndarray:
        """Return the weights ``[1, 2]`` of both channels in a mono mix.

        Equal halves; but a channel that is all but silent is left out, so that the other keeps its level, and where
        the channels would cancel one of them is inverted.
        """
        if self.right <= _SILENT * self.left:
            weights = (1.0, 0.0) if self.left else (0.5, 0.5)
        elif self.left <= _SILENT * self.right:
            weights = (0.0, 1.0)
        else:
            total = self.left + self.right
            is_opposite = total - 2 * self.product > _OPPOSITE * (total + 2 * self.product)
            weights = (0.5, -0.5) if is_opposite else (0.5, 0.5)
        return np.array([weights], np.float32)
