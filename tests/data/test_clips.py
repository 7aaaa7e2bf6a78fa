"""Clips by number: read when they are needed, kept within a bound, and found quickly among very many."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from s3dnerf.data.cache import MemoryCache
from s3dnerf.data.clip import INFO_FILE, VIDEO_FILE, Clip, load_clip
from s3dnerf.data.clips import PreparedClips, measure_track, open_clips
from s3dnerf.data.index import load_index, make_index, write_index
from s3dnerf.errors import UserError

CLIPS = 100_000
START = """
import sys, time
begin = time.process_time()
from s3dnerf.data.config import DataConfig
from s3dnerf.data.dataset import TalkingFaceDataset, select_held_out
config = DataConfig(root=sys.argv[1], frames=2, sequences=2, sequence_frames=8, cache_gb=0.1)
held_out = select_held_out(config)
parts = [TalkingFaceDataset(config, "train", 64, 7680, 4, 0, select) for select in
         (lambda person: person not in held_out, held_out.__contains__)]
batches = [part[step] for part in parts for step in range(4)]
seconds = time.process_time() - begin
memory = next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]
print(len(parts[0].clips), len(parts[1].people), seconds, int(memory) / 2**20)
"""


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of the frames that are decoded."""
    numbers: list[int] = []
    read = Clip.read_frames

    def record(clip: Clip, indices: list[int]) -> np.ndarray:
        numbers.extend(indices)
        return read(clip, indices)

    monkeypatch.setattr(Clip, "read_frames", record)
    return numbers


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="peak memory is read from /proc")
def test_a_hundred_thousand_clips_take_seconds_and_little_memory(drawn_clips: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root, real = Path(folder), load_index(drawn_clips)
        rows = []
        for number in range(CLIPS):
            row = number % 3
            (root / f"clip_{number:06d}").symlink_to(drawn_clips / real.get_id(row))
            columns = {name: getattr(real, name)[row].item() for name in ("frames", "valid", "size", "has_speech")}
            columns |= {name: getattr(real, name)[row].decode() for name in ("split", "sync")}
            changed = int(real.changed[row])
            rows.append({"id": f"clip_{number:06d}", "person": f"person {number // 20}", "changed": changed, **columns})
        write_index(root, make_index(rows))
        words = [sys.executable, "-c", START, str(root)]
        output = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    clips, held_out, seconds, memory = map(float, output.split())
    assert (clips, held_out) == (CLIPS - 8 * 20, 8)
    # With the time of imports, on one core.
    assert seconds < 10 and memory < 1


def test_tracks_and_frames_are_those_of_the_clip(drawn_clips: Path) -> None:
    clips = open_clips(drawn_clips, "train", offsets={"ben_0": 2})
    assert [clips.index.get_id(row) for row in range(len(clips))] == ["ann_0", "ann_1", "ben_0"]
    indices = np.array([4, 9, 4])
    for row in range(3):
        track, clip = clips.load_track(row), load_clip(drawn_clips / clips.index.get_id(row))
        np.testing.assert_array_equal(track.clip.landmarks, clip.landmarks)
        np.testing.assert_array_equal(clips.read_frames(track, indices, clip.size), clip.read_frames(indices))
        assert clips.read_frames(track, indices, 32).shape == (3, 32, 32, 3)
    plain = open_clips(drawn_clips, "train").load_track(2)
    np.testing.assert_array_equal(clips.load_track(2).speech[:-1280], plain.speech[1280:])


def test_what_was_read_is_kept(drawn_clips: Path, decoded: list[int]) -> None:
    clips = open_clips(drawn_clips, "train")
    track = clips.load_track(0)
    assert clips.load_track(0) is track
    for indices in ([3, 5], [5, 3], [5, 7]):
        clips.read_frames(track, np.array(indices), 64)
    assert decoded == [3, 5, 7]


def test_memory_is_bounded(drawn_clips: Path, decoded: list[int]) -> None:
    clips = open_clips(drawn_clips, "train", max_bytes=10 * 64 * 64 * 3)
    # A track is larger, so only frames are kept.
    track = clips.load_track(0)
    assert measure_track(track) > clips.cache.max_bytes and clips.load_track(0) is not track
    for first in range(0, 30, 5):
        clips.read_frames(track, first + np.arange(5), 64)
    assert clips.cache.bytes == clips.cache.max_bytes
    clips.read_frames(track, np.arange(20, 30), 64)
    assert decoded == list(range(30))
    clips.read_frames(track, np.array([0]), 64)
    assert decoded == [*range(30), 0]


def test_values_that_were_not_used_for_longest_are_dropped() -> None:
    cache = MemoryCache(10)
    loads: list[str] = []

    def get(key: str, size: int = 4) -> str:
        return cache.get(key, lambda: loads.append(key) or key.upper(), lambda value: size)

    assert [get(key) for key in ("a", "b", "a", "c", "a", "b")] == ["A", "B", "A", "C", "A", "B"]
    assert loads == ["a", "b", "c", "b"] and cache.bytes == 8
    get("large", 11)
    assert cache.peek("large") is None and cache.peek("a") == "A" and cache.bytes == 8


def test_only_people_who_are_wanted_are_opened(drawn_clips: Path) -> None:
    clips = open_clips(drawn_clips, "train", lambda person: person == "ann")
    assert np.unique(clips.index.person).tolist() == [b"ann"] and len(clips) == 2
    assert clips.find_speaking(8).tolist() == [0]
    assert len(open_clips(drawn_clips, "test")) == 0


def test_a_clip_that_has_changed_is_named(drawn_clips: Path) -> None:
    index = load_index(drawn_clips)
    index.frames[0] += 1
    with pytest.raises(UserError, match=r"ann_0.*changed while it was in use"):
        PreparedClips(drawn_clips, index).load_track(0)


def test_a_file_that_is_gone_is_named(drawn_clips: Path, tmp_path: Path) -> None:
    for path in (drawn_clips / "ann_0").iterdir():
        (tmp_path / path.name).symlink_to(path)
    clip = load_clip(tmp_path)
    (tmp_path / VIDEO_FILE).unlink()
    with pytest.raises(UserError, match=r"video.mp4 cannot be read"):
        clip.read_frames([0])
    (tmp_path / INFO_FILE).unlink()
    with pytest.raises(UserError, match="not a prepared clip"):
        load_clip(tmp_path)
