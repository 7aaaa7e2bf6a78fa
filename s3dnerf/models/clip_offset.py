"""The constant audio offset of a clip, estimated from the similarity matrix of lips and speech."""

from __future__ import annotations

import torch
from torch import Tensor

from s3dnerf.models.sync_discriminator import score_offsets

MAX_CLIP_OFFSET = 5
"""Largest constant offset of a clip in frames, to either side."""


def find_clip_offset(similarities: Tensor) -> tuple[int, float]:
    """Find the constant offset of a clip.

    Args:
        similarities: ``[W, W]`` cosine similarities of lips (rows) and speech (columns).

    Returns:
        The offset in frames, up to :data:`MAX_CLIP_OFFSET`, and its margin: the mean similarity at this offset minus
        the best one at offsets that are not its neighbors.
    """
    scores = score_offsets(similarities, MAX_CLIP_OFFSET)
    best = int(scores.argmax())
    others = (torch.arange(len(scores)) - best).abs() > 1
    return best - MAX_CLIP_OFFSET, (scores[best] - scores[others].max()).item()
