"""Sync offsets: found in embeddings of known offset, labeled by the rule, and corrected."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from s3dnerf.data.sync_offset import (
    MAX_IN_SYNC_OFFSET,
    MAX_OFFSET,
    MAX_WINDOWS,
    MIN_SYNC_CONFIDENCE,
    MIN_WINDOWS,
    PEAK_RADIUS,
    REFERENCE_WINDOWS,
    Sync,
    SyncEmbedder,
    SyncOffset,
    determine_sync,
    find_offset,
    label_offset,
    measure_offset,
    score_embeddings,
    shift_speech,
)
from s3dnerf.face.camera import HeadPose
from s3dnerf.models import sync_discriminator as module
from s3dnerf.models.sync_discriminator import SyncAudioConfig, SyncDiscriminator, SyncDiscriminatorConfig, score_offsets
from s3dnerf.sync_embedder import make_sync_embedder


def embed(count: int, late: int) -> tuple[Tensor, Tensor]:
    """Embeddings of a perfect discriminator for a clip whose audio lags by ``late`` frames."""
    vectors = F.normalize(torch.randn(count + 40, 64, generator=torch.Generator().manual_seed(0)), dim=-1)
    return vectors[20 : 20 + count], vectors[20 - late : 20 - late + count]


def make_pose(count: int) -> HeadPose:
    rotation = np.broadcast_to(np.eye(3, dtype=np.float32), (count, 3, 3)).copy()
    return HeadPose(rotation, np.full(count, 0.75, np.float32), np.zeros((count, 2), np.float32))


@pytest.fixture(scope="module")
def small(one_thread: None) -> SyncDiscriminator:
    torch.manual_seed(0)
    audio = SyncAudioConfig(features="logmel", width=16, context=320)
    return SyncDiscriminator(SyncDiscriminatorConfig(widths=(8, 8), frame_width=16, embedding=16, audio=audio)).eval()


@pytest.mark.parametrize("late", [0, 1, -1, 4, -9, 10])
def test_offset_of_embeddings_is_found(late: int) -> None:
    lips, speech = embed(100, late)
    found = find_offset(lips, speech, torch.ones(100, dtype=torch.bool))
    assert found.offset == late and found.confidence > 0.9


def test_confidence_grows_with_the_root_of_the_windows_and_neighbors_do_not_compete() -> None:
    speech = torch.eye(500)
    lips = torch.zeros(500, 500)
    for offset, value in ((3, 0.8), (2, 0.7), (5, 0.75), (0, 0.4)):
        rows = torch.arange(max(0, -offset), 500 - max(0, offset))
        lips[rows, rows + offset] = value
    for count, factor in ((50, 1.0), (200, 2.0), (450, 3.0), (500, 3.0)):
        found = find_offset(lips[:count], speech[:count], torch.ones(count, dtype=torch.bool))
        # Offsets 2 and 5 are neighbors of the best one, 0 is not.
        assert found.offset == 3 and found.confidence == pytest.approx(0.4 * factor, abs=1e-4)


def test_long_clip_that_is_in_sync_for_a_small_part_is_unclear() -> None:
    lips, speech = embed(3000, 2)
    apart = F.normalize(torch.randn(3000, 64, generator=torch.Generator().manual_seed(1)), dim=-1)
    inside = torch.arange(3000)[:, None] < 90
    everywhere = torch.ones(3000, dtype=torch.bool)
    assert label_offset(find_offset(torch.where(inside, lips, apart), speech, everywhere)) == "unclear"
    assert label_offset(find_offset(lips, speech, everywhere)) == "corrected"


def test_windows_without_a_face_are_left_out() -> None:
    lips, speech = embed(100, 2)
    false = lips.clone()
    false[40:] = embed(100, -6)[0][40:].roll(8, 0)
    everywhere, start = torch.ones(100, dtype=torch.bool), torch.arange(100) < 40
    assert find_offset(false, speech, start) == find_offset(lips, speech, start)
    assert find_offset(false, speech, start).confidence > find_offset(false, speech, everywhere).confidence
    assert find_offset(lips, speech, torch.arange(100) < MIN_WINDOWS - 1) == SyncOffset(0, 0.0)


@pytest.mark.parametrize(
    ("offset", "confidence", "label"),
    [
        (0, MIN_SYNC_CONFIDENCE, "ok"),
        (MAX_IN_SYNC_OFFSET, 0.5, "ok"),
        (-MAX_IN_SYNC_OFFSET, 0.5, "ok"),
        (MAX_IN_SYNC_OFFSET + 1, 0.5, "corrected"),
        (-4, MIN_SYNC_CONFIDENCE, "corrected"),
        (0, MIN_SYNC_CONFIDENCE - 0.01, "unclear"),
        (5, MIN_SYNC_CONFIDENCE - 0.01, "unclear"),
        (MAX_OFFSET, 0.9, "unclear"),
        (-MAX_OFFSET, 0.9, "unclear"),
    ],
)
def test_labels_follow_the_rule(offset: int, confidence: float, label: str) -> None:
    assert label_offset(SyncOffset(offset, confidence)) == label


@pytest.mark.parametrize(("late", "label", "shift"), [(0, "ok", 0), (1, "ok", 0), (-4, "corrected", -4)])
def test_an_unknown_offset_is_measured(late: int, label: str, shift: int) -> None:
    lips, voice = embed(76, late)

    def embed_lips(frames: Iterable[np.ndarray], pose: HeadPose) -> Tensor:
        assert len(list(frames)) == len(pose) == 80
        return lips

    embedder = SyncEmbedder(5, embed_lips, lambda speech, frames: voice[: len(frames)])
    frames = [np.zeros((8, 8, 3), np.uint8)] * 80
    speech = np.ones(640 * 80, np.float32)
    sync = determine_sync("", speech, lambda: frames, make_pose(80), np.ones(80, bool), lambda: embedder)
    assert (sync.label, sync.offset, sync.shift_frames) == (label, late, shift)
    assert sync.confidence > 0.9 and sync.confidence == round(sync.confidence, 4)


def test_known_labels_and_silent_clips_are_not_measured() -> None:
    def fail() -> object:
        raise AssertionError("measured")

    speech, pose, valid = np.zeros(640 * 50, np.float32), make_pose(50), np.ones(50, bool)
    for known in ("ok", "corrected", "unclear", "none"):
        assert determine_sync(known, speech, fail, pose, valid, fail) == Sync(known)
        assert Sync(known).shift_frames == 0
    for known in ("", "ok"):
        assert determine_sync(known, None, fail, pose, valid, fail) == Sync("none")


@pytest.mark.parametrize("first", [0, 3])
def test_scores_equal_those_of_the_full_cosine_matrix(first: int) -> None:
    lips, speech = embed(40, 2)
    lips = lips[: 40 - first]
    torch.testing.assert_close(score_embeddings(lips, speech, 9), score_offsets(lips @ speech.T, 9))
    mask = torch.arange(len(lips)) < 15
    torch.testing.assert_close(score_embeddings(lips, speech, 9, mask), score_offsets(lips[:15] @ speech.T, 9))


def test_speech_is_shifted_into_sync() -> None:
    speech = np.arange(1, 3201, dtype=np.float32)
    late = shift_speech(speech, 2)
    assert np.array_equal(late[: 3 * 640], speech[2 * 640 :]) and not late[3 * 640 :].any()
    early = shift_speech(speech, -1)
    assert np.array_equal(early[640:], speech[:-640]) and not early[:640].any()
    assert np.array_equal(shift_speech(speech, 0), speech)
    assert not shift_speech(speech, 7).any() and not shift_speech(speech, -7).any()


def test_few_frames_of_long_videos_are_in_memory(small: SyncDiscriminator, monkeypatch: pytest.MonkeyPatch) -> None:
    count, alive, most, windows = 200, weakref.WeakSet(), 0, []

    class Frame(np.ndarray):
        """A frame with weak references."""

        __hash__ = object.__hash__

    def stream() -> Iterator[np.ndarray]:
        nonlocal most
        for number in range(count):
            frame = np.full((64, 64, 3), number % 250, np.uint8).view(Frame)
            alive.add(frame)
            most = max(most, len(alive))
            yield frame

    cut = module.cut_speech_window
    monkeypatch.setattr(module, "cut_speech_window", lambda *given: windows.append(len(given[1])) or cut(*given))
    speech = np.random.default_rng(0).normal(0, 0.1, count * 640).astype(np.float32)
    found = measure_offset(make_sync_embedder(small), stream(), make_pose(count), speech, np.ones(count, bool))
    assert abs(found.offset) <= MAX_OFFSET and found.confidence >= 0.0
    # A batch, and the one that is read in the meantime.
    assert most <= 2 * module.CHUNK + 1 and max(windows) <= module.CHUNK and sum(windows) == count - 4


def test_short_clips_are_not_measured(small: SyncDiscriminator) -> None:
    speech, few = np.ones(3 * 640, np.float32), 3
    found = measure_offset(make_sync_embedder(small), iter(()), make_pose(few), speech, np.ones(few, bool))
    assert found == SyncOffset(0, 0.0) and label_offset(found) == "unclear"


def test_documentation_states_the_constants_of_the_rule() -> None:
    page = " ".join((Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8").split())
    for words in (
        f"each offset up to {MAX_OFFSET} frames",
        "more than two frames away" if PEAK_RADIUS == 2 else "",
        f"`sqrt(moments / {REFERENCE_WINDOWS})`",
        f"more than {MAX_WINDOWS} moments",
        f"confidence below {MIN_SYNC_CONFIDENCE}, an offset of {MAX_OFFSET}",
        f"fewer than {MIN_WINDOWS} moments: `unclear`",
        "at most one frame: `ok`" if MAX_IN_SYNC_OFFSET == 1 else "",
    ):
        assert words and words in page, words
