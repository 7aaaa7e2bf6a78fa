"""Sound offset of a clip: measured with the shipped lip-sync discriminator, and made up for.

The rule and how well it works are described in docs/data.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch

from s3dnerf.face.camera import HeadPose
from s3dnerf.media.audio import SAMPLES_PER_FRAME, measure_level, speech_gain
from s3dnerf.models.sync_discriminator import (
    SyncDiscriminator,
    embed_moments,
    embed_video,
    load_discriminator,
    score_embeddings,
)
from s3dnerf.structures import Camera

REACH = 10
"""Largest offset that is searched, frames to either side (0.4 s)."""
NEAR = 2
"""Offsets this near to the best one, in frames, do not compete with it: their scores rise with it."""
REFERENCE_MOMENTS = 50
"""Moments (two seconds) whose margin is the confidence as it is. Noise of a mean falls with the square root of their
number, so the margin of a longer clip counts for more."""
MOST_MOMENTS = 450
"""Beyond 18 seconds it does not count for still more: in a long recording, a small margin means that a small part of it
is in step."""
LEAST_MOMENTS = 20
"""Fewer moments say nothing."""
LEAST_CONFIDENCE = 0.18
"""Below this, an offset is not trusted. Of clips with the speech of somebody else, one or two in a hundred reach it."""
IN_STEP = 1
"""Frames by which an offset can be wrong: up to this one, a clip is in step as it is."""


@dataclass(frozen=True)
class SyncOffset:
    """What is measured of a clip's sound and picture."""

    offset: int
    """Frames by which the sound comes late; negative when it comes early."""
    confidence: float
    """Mean cosine of lips and speech at this offset, minus the highest of those more than ``NEAR`` frames away, times
    ``sqrt(min(moments, MOST_MOMENTS) / REFERENCE_MOMENTS)``; 0 or above."""


@dataclass(frozen=True)
class Sync:
    """What a clip's label says about sound and picture, and what was measured for it."""

    label: str
    """"ok", "corrected", "unclear" or "none"."""
    offset: int = 0
    """Frames by which the sound of the source comes late. Where a measured clip is "corrected", it has been moved."""
    confidence: float | None = None
    """Of the offset; None where nothing was measured."""

    @property
    def moves(self) -> int:
        """Frames by which the measured sound must be moved forward to be in step; 0 if it stays."""
        return self.offset if self.label == "corrected" and self.confidence is not None else 0


def find_sync(
    known: str, speech: np.ndarray | None, stream: Callable[[], Iterable[np.ndarray]], pose: HeadPose, valid: np.ndarray
) -> Sync:
    """Tell how a clip's sound and picture belong together: as it is known, or else as it is measured.

    Args:
        known: "ok", "corrected" or "unclear" of a manifest; "" to measure.
        speech: 16 kHz sound ``[samples]`` as recorded; None for a silent clip.
        stream: starts reading T head crops ``uint8 [S, S, 3]``; called only where something is measured.
        pose: T poses of the head in the crops.
        valid: ``bool [T]``, where a face was tracked.
    """
    if speech is None:
        return Sync("none")
    if known:
        return Sync(known)
    found = measure_offset(_load_once(), stream(), pose, speech, valid)
    return Sync(label_offset(found), found.offset, round(found.confidence, 4))


def label_offset(found: SyncOffset) -> str:
    """Return "ok", "corrected" or "unclear" for a measured offset.

    An offset at the end of the search is "unclear": the true one may lie beyond.
    """
    if found.confidence < LEAST_CONFIDENCE or abs(found.offset) >= REACH:
        return "unclear"
    return "ok" if abs(found.offset) <= IN_STEP else "corrected"


def measure_offset(
    model: SyncDiscriminator, frames: Iterable[np.ndarray], pose: HeadPose, speech: np.ndarray, valid: np.ndarray
) -> SyncOffset:
    """Measure by how many frames the sound of a clip comes late, over the whole clip.

    A few frames are in memory at a time; what is kept takes 1 kB a frame.

    Args:
        model: the discriminator, from ``load_discriminator``.
        frames: T head crops ``uint8 [S, S, 3]``.
        pose: their head poses.
        speech: 16 kHz sound ``[samples]`` as recorded.
        valid: ``bool [T]``, where a face was tracked; moments without one are left out.

    Raises:
        ValueError: there are not as many frames as poses.
    """
    run = model.config.frames
    if len(pose) < max(run, LEAST_MOMENTS):
        return SyncOffset(0, 0.0)
    camera = Camera(*(torch.from_numpy(part) for part in (pose.rotation, pose.scale, pose.center)))
    lips = embed_video(model, frames, camera)
    level = np.float32(speech_gain(measure_level([speech])))
    heard = embed_moments(model, speech * level, run // 2 + np.arange(len(lips)))
    seen = torch.from_numpy(np.lib.stride_tricks.sliding_window_view(valid, run).all(axis=1))
    return find_offset(lips.cpu(), heard.cpu(), seen)


def find_offset(lips: torch.Tensor, speech: torch.Tensor, counted: torch.Tensor) -> SyncOffset:
    """Find the offset of embedded lips and speech.

    Args:
        lips: unit vectors ``[W, E]`` of consecutive moments.
        speech: unit vectors ``[W, E]`` of the same moments.
        counted: ``bool [W]``, the moments whose lips take part.
    """
    moments = int(counted.sum())
    if moments < LEAST_MOMENTS:
        return SyncOffset(0, 0.0)
    scores = score_embeddings(lips, speech, REACH, counted=counted)
    best = int(scores.argmax())
    others = (torch.arange(len(scores)) - best).abs() > NEAR
    margin = (scores[best] - scores[others].max()).item()
    return SyncOffset(best - REACH, margin * math.sqrt(min(moments, MOST_MOMENTS) / REFERENCE_MOMENTS))


def shift_speech(speech: np.ndarray, offset: int) -> np.ndarray:
    """Move ``speech [n]`` that comes ``offset`` frames late back to its place; what is missing then is silent."""
    moved = np.zeros_like(speech)
    samples = min(abs(offset) * SAMPLES_PER_FRAME, len(speech))
    kept = len(speech) - samples
    late, early = (samples, 0) if offset > 0 else (0, samples)
    moved[early : early + kept] = speech[late : late + kept]
    return moved


@cache
def _load_once() -> SyncDiscriminator:
    """Load the shipped discriminator, once in a process: that takes as long as measuring a short clip."""
    return load_discriminator()
