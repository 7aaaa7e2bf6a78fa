"""Audio-video offset of a clip: measured with a lip-sync discriminator, then corrected.

docs/data.md describes the rule and its accuracy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from s3dnerf.constants import SAMPLES_PER_FRAME
from s3dnerf.face.camera import HeadPose
from s3dnerf.media.audio import measure_level, speech_gain

MAX_OFFSET = 10
"""Largest offset that is searched, in frames to either side (0.4 s)."""
PEAK_RADIUS = 2
"""Offsets within this many frames of the best one do not compete with it, because their scores rise with it."""
REFERENCE_WINDOWS = 50
"""Number of windows (two seconds) for which the margin is the confidence. The noise of a mean falls with the square
root of their number, so the margin of a longer clip counts for more."""
MAX_WINDOWS = 450
"""Number of windows (18 s) above which the margin gains no more weight: in a long recording, a small margin means that
only a small part of it is in sync."""
MIN_WINDOWS = 20
"""Clips with fewer windows are not measured."""
MIN_SYNC_CONFIDENCE = 0.18
"""Offsets with a lower confidence are rejected. One or two in a hundred clips with another speaker's audio reach it."""
MAX_IN_SYNC_OFFSET = 1
"""Accuracy of a measured offset in frames: clips with an offset of at most this are in sync as they are."""


@dataclass(frozen=True)
class SyncEmbedder:
    """A lip-sync discriminator: networks that embed lips and speech into one space.

    It is passed in, so that this package does not depend on the models.
    """

    frames: int
    """Consecutive frames in a window, an odd number."""
    embed_lips: Callable[[Iterable[np.ndarray], HeadPose], Tensor]
    """T head crops ``uint8 [S, S, 3]`` and T poses -> unit vectors ``[W, E]``, ``W = T - frames + 1``, one per window.

    Raises ValueError if the numbers of crops and poses differ.
    """
    embed_speech: Callable[[np.ndarray, np.ndarray], Tensor]
    """Speech ``[samples]`` at the normal level and frame numbers ``[W]`` -> unit vectors ``[W, E]``."""


@dataclass(frozen=True)
class SyncOffset:
    """The measured offset between audio and video of a clip."""

    offset: int
    """Frames by which the audio lags the video; negative if it leads."""
    confidence: float
    """Mean cosine of lips and speech at this offset, minus the highest one more than ``PEAK_RADIUS`` frames away, times
    ``sqrt(min(windows, MAX_WINDOWS) / REFERENCE_WINDOWS)``; 0 or above."""


@dataclass(frozen=True)
class Sync:
    """The sync label of a clip and the measurement behind it."""

    label: str
    """"ok", "corrected", "unclear" or "none"."""
    offset: int = 0
    """Frames by which the source's audio lags. If a measured clip is "corrected", its audio has been shifted by it."""
    confidence: float | None = None
    """Confidence of the offset; None if nothing was measured."""

    @property
    def shift_frames(self) -> int:
        """Frames by which the audio must be shifted forward to be in sync; 0 if it stays."""
        return self.offset if self.label == "corrected" and self.confidence is not None else 0


def determine_sync(
    known: str,
    speech: np.ndarray | None,
    open_frames: Callable[[], Iterable[np.ndarray]],
    pose: HeadPose,
    valid: np.ndarray,
    load_embedder: Callable[[], SyncEmbedder],
) -> Sync:
    """Return the sync of a clip: the known label if there is one, otherwise a measured one.

    Args:
        known: "ok", "corrected" or "unclear" from a manifest; "" to measure.
        speech: 16 kHz audio ``[samples]`` as recorded; None for a silent clip.
        open_frames: starts reading T head crops ``uint8 [S, S, 3]``; called only if the offset is measured.
        pose: T head poses in the crops.
        valid: ``bool [T]``, True where a face was tracked.
        load_embedder: returns the discriminator; called only if the offset is measured.
    """
    if speech is None:
        return Sync("none")
    if known:
        return Sync(known)
    measured = measure_offset(load_embedder(), open_frames(), pose, speech, valid)
    return Sync(label_offset(measured), measured.offset, round(measured.confidence, 4))


def label_offset(measured: SyncOffset) -> str:
    """Return "ok", "corrected" or "unclear" for a measured offset.

    An offset at the end of the search range is "unclear": the true one may lie beyond.
    """
    if measured.confidence < MIN_SYNC_CONFIDENCE or abs(measured.offset) >= MAX_OFFSET:
        return "unclear"
    return "ok" if abs(measured.offset) <= MAX_IN_SYNC_OFFSET else "corrected"


def measure_offset(
    embedder: SyncEmbedder, frames: Iterable[np.ndarray], pose: HeadPose, speech: np.ndarray, valid: np.ndarray
) -> SyncOffset:
    """Measure by how many frames the audio of a clip lags its video, over the whole clip.

    Only a few frames are in memory at a time; the embeddings take 1 kB per frame.

    Args:
        embedder: the discriminator.
        frames: T head crops ``uint8 [S, S, 3]``.
        pose: their head poses.
        speech: 16 kHz audio ``[samples]`` as recorded.
        valid: ``bool [T]``, True where a face was tracked; windows without a face are left out.

    Raises:
        ValueError: the numbers of frames and poses differ.
    """
    if len(pose) < max(embedder.frames, MIN_WINDOWS):
        return SyncOffset(0, 0.0)
    lips = embedder.embed_lips(frames, pose)
    gain = np.float32(speech_gain(measure_level([speech])))
    voice = embedder.embed_speech(speech * gain, embedder.frames // 2 + np.arange(len(lips)))
    visible = torch.from_numpy(np.lib.stride_tricks.sliding_window_view(valid, embedder.frames).all(axis=1))
    return find_offset(lips.cpu(), voice.cpu(), visible)


def find_offset(lips: Tensor, speech: Tensor, mask: Tensor) -> SyncOffset:
    """Find the offset between embedded lips and speech.

    Args:
        lips: unit vectors ``[W, E]`` of consecutive windows.
        speech: unit vectors ``[W, E]`` of the same windows.
        mask: ``bool [W]``, the windows whose lips are used.
    """
    windows = int(mask.sum())
    if windows < MIN_WINDOWS:
        return SyncOffset(0, 0.0)
    scores = score_embeddings(lips, speech, MAX_OFFSET, mask)
    best = int(scores.argmax())
    others = (torch.arange(len(scores)) - best).abs() > PEAK_RADIUS
    margin = (scores[best] - scores[others].max()).item()
    return SyncOffset(best - MAX_OFFSET, margin * math.sqrt(min(windows, MAX_WINDOWS) / REFERENCE_WINDOWS))


def score_embeddings(lips: Tensor, speech: Tensor, max_offset: int, mask: Tensor | None = None) -> Tensor:
    """Return the mean cosine of lips and speech for each offset; memory is linear in the number of windows.

    Args:
        lips: unit vectors ``[R, E]`` of consecutive windows.
        speech: unit vectors ``[T, E]`` of consecutive windows; row 0 belongs to row 0 of ``lips``.
        max_offset: largest offset, frames.
        mask: ``bool [R]``, the rows of ``lips`` to use; all by default.

    Returns:
        ``[2 max_offset + 1]`` mean cosines; entry ``max_offset + k`` pairs lips at t with speech at t + k. Entries for
        which fewer than half of the used rows have a partner are -1.
    """
    mask = torch.ones(len(lips), dtype=torch.bool, device=lips.device) if mask is None else mask
    scores = lips.new_full((2 * max_offset + 1,), -1.0)
    for offset in range(-max_offset, max_offset + 1):
        low, high = max(0, -offset), min(len(lips), len(speech) - offset)
        if low >= high:
            continue
        cosines = (lips[low:high] * speech[low + offset : high + offset]).sum(-1)[mask[low:high]]
        if len(cosines) and 2 * len(cosines) >= mask.sum():
            scores[max_offset + offset] = cosines.mean()
    return scores


def shift_speech(speech: np.ndarray, offset: int) -> np.ndarray:
    """Shift ``speech [n]`` that lags by ``offset`` frames back into sync; samples that are missing are silent."""
    shifted = np.zeros_like(speech)
    samples = min(abs(offset) * SAMPLES_PER_FRAME, len(speech))
    kept = len(speech) - samples
    source, target = (samples, 0) if offset > 0 else (0, samples)
    shifted[target : target + kept] = speech[source : source + kept]
    return shifted
