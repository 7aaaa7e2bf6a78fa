"""Shards: readable by webdataset, equal to the folder that they were made from, and checked before use."""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset
from torch.testing import assert_close

from s3dnerf import cli
from s3dnerf.data.clip import INFO_FILE, MATTE_FILE, SPEECH_FILE, TRACK_FILE, VIDEO_FILE, load_clip
from s3dnerf.data.clip_files import ShardFiles, make_key, split_member
from s3dnerf.data.clips import open_clips
from s3dnerf.data.dataset import TalkingFaceDataset
from s3dnerf.data.index import INDEX_FILE, load_index, restore_id
from s3dnerf.data.report import PrepareReport
from s3dnerf.data.shards import read_shard, write_shards
from s3dnerf.errors import UserError
from s3dnerf.structures import map_tensors

FILES = {INFO_FILE, TRACK_FILE, SPEECH_FILE, VIDEO_FILE, MATTE_FILE}


def test_shards_are_written_by_split(shards: Path) -> None:
    assert sorted(path.name for path in shards.iterdir()) == [
        INDEX_FILE,
        "train-000000.tar",
        "train-000001.tar",
        "val-000000.tar",
    ]


def test_webdataset_reads_the_shards(drawn_clips: Path, shards: Path) -> None:
    urls = [str(path) for path in sorted(shards.glob("*.tar"))]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False, empty_check=False))
    assert sorted(sample["__key__"] for sample in samples) == ["ann_0", "ann_1", "ben_0", "cid_0"]
    for sample in samples:
        folder = drawn_clips / sample["__key__"]
        names = {name for name in sample if not name.startswith("__")}
        assert names == {path.name for path in folder.iterdir()} & FILES
        assert json.loads(sample[INFO_FILE])["id"] == folder.name
        for name in names:
            assert sample[name] == (folder / name).read_bytes()


def test_the_index_finds_every_clip(drawn_clips: Path, shards: Path) -> None:
    index = load_index(shards)
    for row in range(len(index)):
        name = index.get_id(row)
        shard = shards / index.get_shard(int(index.shard[row]))
        files = ShardFiles(shard, make_key(name), int(index.offset[row]))
        assert shard.name.startswith(index.split[row].decode())
        one, other = load_clip(files), load_clip(drawn_clips / name)
        np.testing.assert_array_equal(one.landmarks, other.landmarks)
        np.testing.assert_array_equal(one.read_frames([7, 2, 7]), other.read_frames([7, 2, 7]))
        np.testing.assert_array_equal(one.read_mattes([3]), other.read_mattes([3]))
        if one.has_speech:
            np.testing.assert_array_equal(one.read_speech(), other.read_speech())
    folders = load_index(drawn_clips)
    for column in ("id", "person", "split", "sync", "frames", "valid", "size", "has_speech"):
        np.testing.assert_array_equal(getattr(index, column), getattr(folders, column))


def test_an_index_of_shards_can_be_built_again(copied: Path) -> None:
    before = load_index(copied)
    (copied / INDEX_FILE).unlink()
    after = load_index(copied)
    for name, column in vars(before).items():
        np.testing.assert_array_equal(getattr(after, name), column, err_msg=name)
    assert (copied / INDEX_FILE).is_file()
    # Without a shard, the others keep their clips.
    (copied / "train-000000.tar").unlink()
    fewer = load_index(copied)
    assert set(fewer.id) < set(before.id) and len(fewer.shards) == 2
    for row in range(len(fewer)):
        assert fewer.get_shard(int(fewer.shard[row])) != "train-000000.tar"
        assert load_clip(open_clips(copied, fewer.split[row].decode()).open(0)).frames > 0


def test_folders_and_shards_make_the_same_batches(
    make_dataset: Callable[..., TalkingFaceDataset], shards: Path
) -> None:
    one, other = make_dataset(), make_dataset(root=shards)
    for step in range(5):
        tensors: list[torch.Tensor] = []
        map_tensors(one[step], lambda x, tensors=tensors: tensors.append(x) or x)
        rest = iter(tensors)
        map_tensors(other[step], lambda x, rest=rest: assert_close(x, next(rest), rtol=0, atol=0) or x)
        assert len(tensors) > 20 and next(rest, None) is None


def test_a_shard_that_is_cut_short_is_named(copied: Path) -> None:
    shard = copied / "train-000000.tar"
    content = shard.read_bytes()
    for length in (0, 700, len(content) // 2, len(content) // 512 * 256, len(content) - 10240):
        shard.write_bytes(content[:length])
        with pytest.raises(UserError, match=r"train-000000.tar.*(cut short|cannot be read)"):
            load_index(copied)
    # A stream cannot be checked in advance.
    for length in (700, len(content) // 2):
        with pytest.raises((tarfile.TarError, EOFError)):
            read_shard(io.BytesIO(content[:length]), shard, {"ben_0", "ann_0"})


def test_a_clip_that_is_not_where_the_index_says_is_named(copied: Path) -> None:
    index = load_index(copied)
    shard = copied / index.get_shard(int(index.shard[0]))
    for offset in (index.offset[0] + 512, 10**9):
        with pytest.raises(UserError, match=shard.name):
            load_clip(ShardFiles(shard, "ann_0", int(offset)))


def test_clips_in_two_shards_are_an_error(copied: Path) -> None:
    shutil.copy(copied / "train-000000.tar", copied / "train-000007.tar")
    with pytest.raises(UserError, match="train-000007.tar.* has the clip"):
        load_index(copied)


def test_shards_and_folders_are_not_mixed(copied: Path, drawn_clips: Path, tmp_path: Path) -> None:
    shutil.copytree(drawn_clips / "ann_0", copied / "ann_0")
    with pytest.raises(UserError, match="both clip folders and shards"):
        load_index(copied)
    with pytest.raises(UserError, match="holds clip folders"):
        write_shards(drawn_clips, copied)
    with pytest.raises(UserError, match="is also an input"):
        write_shards(drawn_clips, drawn_clips)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no clip folders"):
        write_shards(tmp_path / "empty", tmp_path / "out")


def test_shards_are_replaced(drawn_clips: Path, copied: Path) -> None:
    before = (copied / "val-000000.tar").read_bytes()
    index = write_shards(drawn_clips, copied)
    assert sorted(path.name for path in copied.glob("*.tar")) == ["train-000000.tar", "val-000000.tar"]
    assert (copied / "val-000000.tar").read_bytes() == before
    assert len(index) == len(load_index(copied)) == 4


def test_any_id_is_a_key() -> None:
    for name in ("a.b", "a%2Eb", "%", "ä b", "a%.tar"):
        key = make_key(name)
        assert restore_id(key) == name
        assert split_member(f"{key}.clip.json") == (key, "clip.json")


def test_prepare_writes_an_index_and_shards(
    drawn_clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clips, out = tmp_path / "clips", tmp_path / "shards"
    shutil.copytree(drawn_clips, clips, ignore=shutil.ignore_patterns(INDEX_FILE))
    monkeypatch.setattr("s3dnerf.data.prepare.prepare_videos", lambda **given: PrepareReport())
    words = ["prepare", "--videos", str(tmp_path / "videos"), "--out", str(clips)]
    assert cli.main(words) == 0
    assert (clips / INDEX_FILE).is_file() and not out.exists()
    (clips / "ben_0" / TRACK_FILE).write_bytes(b"no track")
    os.utime(clips / "ben_0" / INFO_FILE, ns=(1, 1))
    assert cli.main([*words, "--shards", str(out)]) == 0
    assert "ben_0" in capsys.readouterr().out
    assert load_index(out).id.tolist() == [b"ann_0", b"ann_1", b"cid_0"]
    # Checked before preparation, which may take days.
    monkeypatch.setattr("s3dnerf.data.prepare.prepare_videos", lambda **given: pytest.fail("prepared"))
    assert cli.main([*words, "--shards", str(clips)]) == 2
