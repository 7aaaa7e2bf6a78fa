"""Sound offsets: found in embeddings of known offset, labelled by the rule, and made up for."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from s3dnerf.data import sync_offset
from s3dnerf.data.sync_offset import (
    IN_STEP,
    LEAST_CONFIDENCE,
    LEAST_MOMENTS,
    MOST_MOMENTS,
    NEAR,
    REACH,
    REFERENCE_MOMENTS,
    Sync,
    SyncOffset,
    find_offset,
    find_sync,
    label_offset,
    measure_offset,
    shift_speech,
)
from s3dnerf.face.camera import HeadPose
from s3dnerf.models import lip_sync
from s3dnerf.models.sync_discriminator import SyncAudioConfig, SyncDiscriminator, SyncDiscriminatorConfig


def embed(count: int, late: int) -> tuple[Tensor, Tensor]:
    """Embeddings of a perfect discriminator for a clip whose sound comes ``late`` frames late."""
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
def test_the_offset_of_embeddings_is_found(late: int) -> None:
    lips, speech = embed(100, late)
    found = find_offset(lips, speech, torch.ones(100, dtype=torch.bool))
    assert found.offset == late and found.confidence > 0.9


def test_confidence_grows_with_the_root_of_the_moments_and_neighbors_do_not_compete() -> None:
    speech = torch.eye(500)
    lips = torch.zeros(500, 500)
    for offset, value in ((3, 0.8), (2, 0.7), (5, 0.75), (0, 0.4)):
        rows = torch.arange(max(0, -offset), 500 - max(0, offset))
        lips[rows, rows + offset] = value
    for count, factor in ((50, 1.0), (200, 2.0), (450, 3.0), (500, 3.0)):
        found = find_offset(lips[:count], speech[:count], torch.ones(count, dtype=torch.bool))
        # Offsets 2 and 5 are next to the best one, 0 is not.
        assert found.offset == 3 and found.confidence == pytest.approx(0.4 * factor, abs=1e-4)


def test_a_long_clip_that_is_in_step_for_a_small_part_is_unclear() -> None:
    lips, speech = embed(3000, 2)
    apart = F.normalize(torch.randn(3000, 64, generator=torch.Generator().manual_seed(1)), dim=-1)
    inside = torch.arange(3000)[:, None] < 90
    everywhere = torch.ones(3000, dtype=torch.bool)
    assert label_offset(find_offset(torch.where(inside, lips, apart), speech, everywhere)) == "unclear"
    assert label_offset(find_offset(lips, speech, everywhere)) == "corrected"


def test_moments_without_a_face_do_not_count() -> None:
    lips, speech = embed(100, 2)
    false = lips.clone()
    false[40:] = embed(100, -6)[0][40:].roll(8, 0)
    everywhere, start = torch.ones(100, dtype=torch.bool), torch.arange(100) < 40
    assert find_offset(false, speech, start) == find_offset(lips, speech, start)
    assert find_offset(false, speech, start).confidence > find_offset(false, speech, everywhere).confidence
    assert find_offset(lips, speech, torch.arange(100) < LEAST_MOMENTS - 1) == SyncOffset(0, 0.0)


@pytest.mark.parametrize(
    ("offset", "confidence", "label"),
    [
        (0, LEAST_CONFIDENCE, "ok"),
        (IN_STEP, 0.5, "ok"),
        (-IN_STEP, 0.5, "ok"),
        (IN_STEP + 1, 0.5, "corrected"),
        (-4, LEAST_CONFIDENCE, "corrected"),
        (0, LEAST_CONFIDENCE - 0.01, "unclear"),
        (5, LEAST_CONFIDENCE - 0.01, "unclear"),
        (REACH, 0.9, "unclear"),
        (-REACH, 0.9, "unclear"),
    ],
)
def test_labels_follow_the_rule(offset: int, confidence: float, label: str) -> None:
    assert label_offset(SyncOffset(offset, confidence)) == label


def test_what_is_known_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> Iterator[np.ndarray]:
        raise AssertionError("read frames")

    speech, pose, valid = np.zeros(640 * 50, np.float32), make_pose(50), np.ones(50, bool)
    for known in ("ok", "corrected", "unclear", "none"):
        assert find_sync(known, speech, fail, pose, valid) == Sync(known)
        assert Sync(known).moves == 0
    assert find_sync("", None, fail, pose, valid) == find_sync("ok", None, fail, pose, valid) == Sync("none")
    monkeypatch.setattr(sync_offset, "measure_offset", lambda *given: SyncOffset(-4, 0.61234))
    monkeypatch.setattr(sync_offset, "_load_once", lambda: None)
    found = find_sync("", speech, lambda: iter(()), pose, valid)
    assert found == Sync("corrected", -4, 0.6123) and found.moves == -4
    monkeypatch.setattr(sync_offset, "measure_offset", lambda *given: SyncOffset(1, 0.6))
    assert find_sync("", speech, lambda: iter(()), pose, valid).moves == 0


def test_sound_is_moved_to_its_place() -> None:
    speech = np.arange(1, 3201, dtype=np.float32)
    late = shift_speech(speech, 2)
    assert np.array_equal(late[: 3 * 640], speech[2 * 640 :]) and not late[3 * 640 :].any()
    early = shift_speech(speech, -1)
    assert np.array_equal(early[640:], speech[:-640]) and not early[:640].any()
    assert np.array_equal(shift_speech(speech, 0), speech)
    assert not shift_speech(speech, 7).any() and not shift_speech(speech, -7).any()


def test_long_videos_are_measured_a_few_frames_at_a_time(
    small: SyncDiscriminator, monkeypatch: pytest.MonkeyPatch
) -> None:
    count, alive, most, windows = 200, weakref.WeakSet(), 0, []

    class Frame(np.ndarray):
        """A picture that can be watched."""

        __hash__ = object.__hash__

    def stream() -> Iterator[np.ndarray]:
        nonlocal most
        for number in range(count):
            frame = np.full((64, 64, 3), number % 250, np.uint8).view(Frame)
            alive.add(frame)
            most = max(most, len(alive))
            yield frame

    cut = lip_sync.cut_speech_window
    monkeypatch.setattr(lip_sync, "cut_speech_window", lambda *given: windows.append(len(given[1])) or cut(*given))
    speech = np.random.default_rng(0).normal(0, 0.1, count * 640).astype(np.float32)
    found = measure_offset(small, stream(), make_pose(count), speech, np.ones(count, bool))
    assert abs(found.offset) <= REACH and found.confidence >= 0.0
    # A batch, and the one that is read meanwhile.
    assert most <= 2 * lip_sync.CHUNK + 1 and max(windows) <= lip_sync.CHUNK and sum(windows) == count - 4


def test_clips_that_are_too_short_are_not_measured(small: SyncDiscriminator) -> None:
    speech, few = np.ones(3 * 640, np.float32), 3
    found = measure_offset(small, iter(()), make_pose(few), speech, np.ones(few, bool))
    assert found == SyncOffset(0, 0.0) and label_offset(found) == "unclear"


def test_the_page_on_data_states_the_numbers_of_the_rule() -> None:
    page = " ".join((Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8").split())
    for words in (
        f"each offset up to {REACH} frames",
        "more than two frames away" if NEAR == 2 else "",
        f"`sqrt(moments / {REFERENCE_MOMENTS})`",
        f"more than {MOST_MOMENTS} moments",
        f"confidence below {LEAST_CONFIDENCE}, an offset of {REACH}",
        f"fewer than {LEAST_MOMENTS} moments: `unclear`",
        "at most one frame: `ok`" if IN_STEP == 1 else "",
    ):
        assert words and words in page, words
