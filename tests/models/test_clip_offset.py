"""The constant offset of a clip, on a similarity matrix with known diagonals."""

from __future__ import annotations

import pytest
import torch

from s3dnerf.models.clip_offset import find_clip_offset


def test_own_offset_comes_with_its_margin() -> None:
    similarities = torch.zeros(30, 30)
    for offset, value in ((2, 0.8), (1, 0.7), (3, 0.6), (-1, 0.5)):
        similarities.diagonal(offset).fill_(value)
    offset, margin = find_clip_offset(similarities)
    assert offset == 2 and margin == pytest.approx(0.3)
