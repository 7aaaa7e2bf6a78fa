"""Speech activity per video frame, by the energy of the audio."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from s3dnerf.constants import FPS, SAMPLES_PER_FRAME
from s3dnerf.media.audio import SpeechLevel, count_frames

ACTIVE_THRESHOLD_DB = -32.0
"""Energy relative to speech above which a frame is active."""
MIN_PAUSE = 0.4
"""Shortest pause in seconds in which the activity drops; in shorter ones people keep their lips ready."""
LEAD, TRAIL = 0.12, 0.2
"""Seconds by which lips open before a sound and close after it."""
RAMP = 0.12
"""Duration of opening and of closing, in seconds."""


def measure_speech_activity(blocks: Iterable[np.ndarray], level: SpeechLevel, frames: int | None = None) -> np.ndarray:
    """Measure the speech activity of each frame.

    Args:
        blocks: ``float32 [n]`` of 16 kHz audio.
        level: of the same audio.
        frames: number of frames; None for the length of the audio. Audio is followed by silence.

    Returns:
        ``float32 [T]``: 1 in speech and in pauses shorter than 0.4 s, 0 in longer ones, with ramps at the ends.
    """
    return shape_activity(find_active_frames(blocks, level, frames))


def find_active_frames(blocks: Iterable[np.ndarray], level: SpeechLevel, frames: int | None = None) -> np.ndarray:
    """Find the frames with sound, ``bool [T]``, by their energy; arguments as for :func:`measure_speech_activity`."""
    energies, rest, samples = [], np.zeros(0, np.float32), 0
    for block in blocks:
        samples += len(block)
        rest = np.concatenate([rest, block])
        whole = len(rest) // SAMPLES_PER_FRAME * SAMPLES_PER_FRAME
        energies.append(np.square(rest[:whole], dtype=np.float64).reshape(-1, SAMPLES_PER_FRAME).mean(axis=1))
        rest = rest[whole:]
    if len(rest):
        energies.append(np.square(rest, dtype=np.float64).mean(keepdims=True))
    energy = np.concatenate([np.zeros(0), *energies])
    count = count_frames(samples) if frames is None else frames
    energy = np.pad(energy[:count], (0, max(0, count - len(energy))))
    return energy > level.active_rms**2 * 10 ** (ACTIVE_THRESHOLD_DB / 10)


def find_pauses(is_active: np.ndarray) -> np.ndarray:
    """Find the frames well inside pauses of 0.4 s and longer.

    Frames in which lips may still close after a sound (0.2 s) or already open for the next one (0.12 s) are left out.
    Silence at the start or end of the recording is a pause if it is 0.4 s long itself.

    Args:
        is_active: ``bool [T]``, frames with sound.

    Returns:
        ``bool [T]``. A pause of 0.4 s has two such frames.
    """
    lead, trail, shortest = (round(seconds * FPS) for seconds in (LEAD, TRAIL, MIN_PAUSE))
    is_pause = np.zeros(len(is_active), bool)
    edges = np.flatnonzero(np.diff(np.concatenate([[True], is_active, [True]]).astype(np.int8)))
    for first, last in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
        if last - first >= shortest:
            start = first + trail if first > 0 else 0
            stop = last - lead if last < len(is_active) else last
            is_pause[start:stop] = True
    return is_pause


def shape_activity(is_active: np.ndarray) -> np.ndarray:
    """Turn ``bool [T]`` into ``float32 [T]`` with short pauses filled, lead and trail added, and smooth edges."""
    active = np.flatnonzero(is_active)
    if not len(active):
        return np.zeros(len(is_active), np.float32)
    frames = np.arange(len(is_active))
    after = np.searchsorted(active, frames)
    # Frames until the next active frame and since the last one; large if there is none.
    until = np.where(after < len(active), active[after.clip(max=len(active) - 1)] - frames, len(frames) + FPS)
    before = np.searchsorted(active, frames, side="right") - 1
    since = np.where(before >= 0, frames - active[before.clip(min=0)], len(frames) + FPS)
    in_pause = (until + since - 1) / FPS < MIN_PAUSE
    distance = np.minimum(until / FPS - LEAD, since / FPS - TRAIL)
    share = np.clip(1.0 - distance / RAMP, 0.0, 1.0)
    share = np.where(in_pause, 1.0, share)
    return (share * share * (3.0 - 2.0 * share)).astype(np.float32)
