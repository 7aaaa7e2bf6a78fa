"""Shards through a pipe or a URL: the same batches wherever a run begins, and broken connections."""

from __future__ import annotations

import io
import shlex
import shutil
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from s3dnerf.data import remote
from s3dnerf.data.batch import Batch
from s3dnerf.data.clips import open_clips
from s3dnerf.data.config import DataConfig
from s3dnerf.data.dataset import TalkingFaceDataset, select_held_out
from s3dnerf.data.index import INDEX_FILE, load_index
from s3dnerf.data.remote import RemoteShards, is_remote, load_remote_index, open_remote, read_remote
from s3dnerf.data.shards import write_shards
from s3dnerf.errors import UserError
from s3dnerf.structures import map_tensors


@pytest.fixture(scope="module")
def root(drawn_clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine clips of three people as nine shards."""
    base = tmp_path_factory.mktemp("remote")
    for number in range(3):
        for name in ("ann_0", "ann_1", "ben_0"):
            shutil.copytree(drawn_clips / name, base / "clips" / f"{name}_{number}")
    write_shards(base / "clips", base / "shards", 1)
    return base / "shards"


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are read."""
    names: list[str] = []
    read = remote.read_remote

    def record(root: str, name: str, reader: Callable[..., object]) -> object:
        names.append(name)
        return read(root, name, reader)

    monkeypatch.setattr(remote, "read_remote", record)
    return names


class Handler(SimpleHTTPRequestHandler):
    """Serves a folder. The first ``broken`` answers end in the middle."""

    broken = 0

    def copyfile(self, source: io.BufferedReader, output: io.BufferedIOBase) -> None:
        if Handler.broken > 0:
            Handler.broken -= 1
            output.write(source.read(700))
        else:
            super().copyfile(source, output)

    def log_message(self, *given: object) -> None:
        """Print nothing."""


@pytest.fixture
def url(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The shards behind a URL."""
    monkeypatch.setattr(remote, "WAIT", 0.01)
    monkeypatch.setattr(Handler, "broken", 0)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(root))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def pipe(root: Path) -> str:
    return f"pipe:cat {shlex.quote(str(root))}/{{}}"


def list_tensors(batch: Batch) -> list[torch.Tensor]:
    tensors: list[torch.Tensor] = []
    map_tensors(batch, lambda x: tensors.append(x) or x)
    assert len(tensors) > 20
    return tensors


def assert_equal(one: Batch, other: Batch) -> None:
    for first, second in zip(list_tensors(one), list_tensors(other), strict=True):
        assert torch.equal(first, second)


def keep(batch: Batch) -> Batch:
    """Collate nothing. Python 3.14 sends the function to workers, which a lambda would not survive."""
    return batch


def list_steps(data: TalkingFaceDataset, steps: range, workers: int) -> dict[int, Batch]:
    loader = DataLoader(data, batch_size=None, sampler=steps, num_workers=workers, collate_fn=keep)
    return dict(zip(steps, loader, strict=True))


def test_a_root_is_a_folder_a_url_or_a_pipe(tmp_path: Path) -> None:
    assert all(map(is_remote, ("pipe:cat x/{}", "http://a/b", "https://a/b", "file:///a")))
    assert not any(map(is_remote, ("data/prepared", tmp_path, "C:/data", "httpd")))


def test_pipe_and_url_make_the_same_batches(
    make_dataset: Callable[..., TalkingFaceDataset], root: Path, url: str
) -> None:
    one, other, third = (make_dataset(root=source) for source in (pipe(root), url, root.as_uri()))
    for step in (0, 3, 40):
        batch = one[step]
        assert_equal(batch, other[step])
        assert_equal(batch, third[step])


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_that_is_resumed_has_the_same_batches(
    make_dataset: Callable[..., TalkingFaceDataset], root: Path, workers: int
) -> None:
    def make() -> TalkingFaceDataset:
        data = make_dataset(root=pipe(root), size=32, cache_gb=0)
        data.streams = 2
        return data

    # The first epoch of both streams ends on the way.
    end = 2 * make().plan.length
    straight = list_steps(make(), range(end - 8, end + 4), workers)
    for begin in (end - 1, end + 2):
        for step, batch in list_steps(make(), range(begin, end + 4), workers).items():
            assert_equal(batch, straight[step])


@pytest.mark.slow
def test_each_shard_is_read_about_once_in_an_epoch(
    make_dataset: Callable[..., TalkingFaceDataset], root: Path, reads: list[str]
) -> None:
    memory = 3.5 * load_index(root).shard_bytes.max() / 2**30
    streams = []
    for stream in range(2):
        data = make_dataset(root=pipe(root), size=32, cache_gb=memory)
        data.streams = 2
        reads.clear()
        for step in range(stream, 2 * data.plan.length, 2):
            data[step]
        # The shard that follows belongs to the next epoch.
        upcoming = data.plan.find_pool(step).upcoming
        data.clips.remote.get_shard(upcoming)
        reads.remove(data.clips.index.get_shard(upcoming))
        streams.append(Counter(reads))
    # A stream ends an epoch with the shard that it began with.
    assert all(sum(counts.values()) <= len(counts) + 1 for counts in streams)
    assert streams[0].keys() | streams[1].keys() == {path.name for path in root.glob("*.tar")}
    assert not streams[0].keys() & streams[1].keys()


def test_memory_is_bounded(root: Path) -> None:
    index = load_index(root)
    bound = 4 * int(index.shard_bytes.max())
    shards = RemoteShards(pipe(root), index, bound)
    for number in range(9):
        shards.get_shard(number)
        assert number in shards.shards
        assert sum(clip.size for clips in shards.shards.values() for clip in clips.values()) <= bound
    assert 4 <= len(shards.shards) < 9
    least = RemoteShards(pipe(root), index, 0)
    for number in (0, 1, 2):
        least.get_shard(number)
    assert list(least.shards) == [1, 2]


def test_prefetched_shards_are_read_once(root: Path, reads: list[str]) -> None:
    shards = RemoteShards(pipe(root), load_index(root), 0)
    for number in (0, 0, 1):
        shards.prefetch(number)
    assert [len(shards.get_shard(number)) for number in (0, 1, 1)] == [1, 1, 1]
    shards.prefetch(1)
    assert len(reads) == 2


def test_clips_that_can_be_read_in_any_order_fit_into_memory(root: Path) -> None:
    index = load_index(root)
    for limit, count in ((0, 1), (int(index.shard_bytes.max()) * 3, 3), (2**30, 9)):
        clips = open_clips(pipe(root), "train", max_bytes=limit)
        assert count <= len(clips.find_readable()) <= count + 1
        assert all(clips.load_track(row).clip.frames == clips.index.frames[row] for row in clips.find_readable())
    held_out = select_held_out(DataConfig(root=pipe(root), sequence_frames=8, held_out_people=1))
    assert held_out == select_held_out(DataConfig(root=str(root), sequence_frames=8, held_out_people=1))


def test_a_broken_connection_is_tried_again(url: str) -> None:
    index = load_remote_index(url)
    Handler.broken = 2
    assert len(RemoteShards(url, index, 0).get_shard(0)) == 1
    assert Handler.broken == 0
    Handler.broken = 6
    with pytest.raises(UserError, match=r"train-000000.tar cannot be read"):
        RemoteShards(url, index, 0).get_shard(0)
    # The background reader reports it when the shard is needed.
    shards = RemoteShards(url, index, 0)
    shards.prefetch(0)
    with pytest.raises(UserError, match=r"train-000000.tar cannot be read"):
        shards.get_shard(0)
    assert Handler.broken == 0


def test_what_is_missing_is_not_tried_again(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("tried again"))
    with pytest.raises(UserError, match="nothing.tar cannot be read.*404"):
        read_remote(url, "nothing.tar", lambda stream: stream.read())


def test_a_shard_that_is_not_the_one_of_the_index_is_an_error(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "WAIT", 0.0)
    index = load_index(copied)
    shard = copied / "train-000000.tar"
    content = shard.read_bytes()
    # Cut at the end of a file, and longer than in the index.
    for wrong in (content[:10240], content + bytes(10240), (copied / "val-000000.tar").read_bytes()):
        shard.write_bytes(wrong)
        with pytest.raises(UserError, match=r"train-000000.tar cannot be read"):
            RemoteShards(pipe(copied), index, 0).get_shard(0)
    (copied / INDEX_FILE).write_bytes(b"no index")
    with pytest.raises(UserError, match="no index of shards"):
        load_remote_index(pipe(copied))


def test_a_folder_of_clips_is_not_streamed(drawn_clips: Path) -> None:
    load_index(drawn_clips)
    with pytest.raises(UserError, match="no index of shards"):
        load_remote_index(pipe(drawn_clips))


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ("pipe:cat", "does not say where"),
        ("pipe:cat '{}", "is no command"),
        ("pipe:no-such-program {}", "cannot be run"),
        (f"pipe:{sys.executable} -c 'exit(3)' {{}}", "ended with code 3"),
        # It prints all of the file, but fails.
        (f"pipe:{sys.executable} -c 'print(5); exit(4)' {{}}", "ended with code 4"),
        (f"pipe:{sys.executable} -c 'import os; print(5, flush=True); os.kill(os.getpid(), 9)' {{}}", "code -9"),
    ],
)
def test_commands_that_fail(command: str, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "WAIT", 0.0)
    with pytest.raises(UserError, match=reason):
        load_remote_index(command)


def test_names_are_no_commands(tmp_path: Path) -> None:
    name = "a b; touch c $(x).tar"
    (tmp_path / name).write_bytes(b"content")
    for source in (pipe(tmp_path), tmp_path.as_uri()):
        with open_remote(source, name) as stream:
            assert stream.read() == b"content"
    assert np.array_equal(sorted(path.name for path in tmp_path.iterdir()), [name])
