"""Evaluation of offsets: perfect and useless embeddings, and clips on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from s3dnerf.errors import UserError
from s3dnerf.evaluation import sync_offsets
from s3dnerf.evaluation.sync_offsets import Segment, evaluate_offsets, format_offset_scores, score_segments
from s3dnerf.models.sync_discriminator import SyncAudioConfig, SyncDiscriminator, SyncDiscriminatorConfig

COUNT = 60


def embed(seed: int, late: int) -> tuple[Tensor, Tensor]:
    """Embeddings of a perfect discriminator for a segment whose sound comes ``late`` frames late."""
    vectors = F.normalize(torch.randn(COUNT + 40, 64, generator=torch.Generator().manual_seed(seed)), dim=-1)
    return vectors[20 : 20 + COUNT], vectors[20 - late : 20 - late + COUNT]


def make_segment(seed: int, person: str, shift: int, clip_offset: int, late: int) -> Segment:
    return Segment(person, f"{person}_{seed}", *embed(seed, late), shift, clip_offset)


def test_shares_are_means_over_people() -> None:
    segments = [
        make_segment(0, "ann", shift=3, clip_offset=1, late=4),
        make_segment(1, "ann", shift=-2, clip_offset=0, late=-2),
        # Its clip has a constant offset that the label does not include.
        make_segment(2, "ben", shift=0, clip_offset=3, late=3),
        make_segment(3, "cid", shift=5, clip_offset=0, late=-3),
    ]
    scores = score_segments(50, segments, np.random.default_rng(0))
    assert scores.segments == 4
    assert scores.accepted == {"ann": [True, True], "ben": [True], "cid": [True]}
    assert scores.found == {"ann": [True, True], "ben": [True], "cid": [False]}
    assert scores.labelled == {"ann": [True, True], "ben": [False], "cid": [False]}
    assert not any(sum(scores.false_other.values(), []))
    assert {person: len(tried) for person, tried in scores.false_other.items()} == {"ann": 4, "ben": 3, "cid": 3}
    assert {person: len(tried) for person, tried in scores.false_same.items()} == {"ann": 2}
    line = format_offset_scores([scores]).splitlines()[2]
    assert line == "| 2 s | 4 | 3 | 100.0% | 66.7% | 33.3% | 0.0% | 0.0% |"


def test_speech_that_matches_everybody_is_falsely_accepted() -> None:
    same = [Segment(person, person, *embed(0, 0), 0, 0) for person in ("ann", "ben", "cid")]
    scores = score_segments(None, same, np.random.default_rng(0))
    assert scores.false_other == {person: [True, True] for person in ("ann", "ben", "cid")}
    assert format_offset_scores([scores]).splitlines()[2].endswith("| 100.0% | - |")


def test_clips_on_disk_are_cut_into_segments_and_scored(
    drawn_clips: Path, one_thread: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sync_offsets, "SEGMENT_LENGTHS", (30, None))
    torch.manual_seed(0)
    audio = SyncAudioConfig(features="logmel", width=16, context=320)
    model = SyncDiscriminator(SyncDiscriminatorConfig(widths=(8, 8), frame_width=16, embedding=16, audio=audio)).eval()
    scores = evaluate_offsets(model, drawn_clips, "train")
    assert [(one.length, one.segments, sorted(one.accepted)) for one in scores] == [
        (30, 2, ["ann", "ben"]),
        (None, 2, ["ann", "ben"]),
    ]
    assert len(format_offset_scores(scores).splitlines()) > 4
    with pytest.raises(UserError, match="no clip with speech in step"):
        evaluate_offsets(model, drawn_clips, "test")
