"""Downmixing to one or two channels, by the role of each loudspeaker, and without cancellation between channels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_MINUS_3_DB = np.sqrt(0.5)
_STEREO = {
    # ITU-R BS.775: the center goes to both sides at half its power, each surround channel to its own side.
    "FL": (1.0, 0.0),
    "FR": (0.0, 1.0),
    "FC": (_MINUS_3_DB, _MINUS_3_DB),
    "LFE": (0.0, 0.0),
    "SL": (_MINUS_3_DB, 0.0),
    "SR": (0.0, _MINUS_3_DB),
    "BL": (_MINUS_3_DB, 0.0),
    "BR": (0.0, _MINUS_3_DB),
    "BC": (0.5, 0.5),
}
_SPEECH = {"FL": 0.5, "FR": 0.5, "FC": 1.0, "LFE": 0.0, "SL": 0.25, "SR": 0.25, "BL": 0.25, "BR": 0.25, "BC": 0.25}
"""Dialogue is in the center channel, music and effects in the others."""
_WAV_ORDER = ("FL", "FR", "FC", "LFE", "BL", "BR", "SL", "SR")
_INVERTED_RATIO = 4.0
"""Ratio of the energies of difference and sum of two channels, above which one of them is taken to be inverted."""
_SILENT_RATIO = 1e-4
"""Ratio of the energies of two channels below which the weaker one holds only noise (-40 dB)."""


def downmix_matrix(names: Sequence[str], channels: int) -> np.ndarray:
    """Return the matrix ``[channels, len(names)]`` that mixes a layout down to one or two channels.

    Args:
        names: FFmpeg's names of the channels, such as FL and LFE. Six or eight channels with unknown names are 5.1 or
            7.1 in the order of WAV files; other layouts with unknown names are averaged.
        channels: 1 for a speech mix, in which the center channel keeps its level; 2 for ITU-R BS.775.
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
    """Accumulated energies and cross-product of two channels."""

    left: float = 0.0
    right: float = 0.0
    product: float = 0.0

    def add(self, sound: np.ndarray) -> None:
        """Add ``float32 [2, n]``."""
        left, right = sound.astype(np.float64) - sound.mean(axis=1, keepdims=True, dtype=np.float64)
        self.left += float(left @ left)
        self.right += float(right @ right)
        self.product += float(left @ right)

    def choose_weights(self) -> np.ndarray:
        """Return the weights ``[1, 2]`` of both channels in a mono mix.

        They are equal, except that an almost silent channel is left out, so that the other keeps its level, and that
        one of two channels that would cancel is inverted.
        """
        if self.right <= _SILENT_RATIO * self.left:
            weights = (1.0, 0.0) if self.left else (0.5, 0.5)
        elif self.left <= _SILENT_RATIO * self.right:
            weights = (0.0, 1.0)
        else:
            total = self.left + self.right
            is_inverted = total - 2 * self.product > _INVERTED_RATIO * (total + 2 * self.product)
            weights = (0.5, -0.5) if is_inverted else (0.5, 0.5)
        return np.array([weights], np.float32)
