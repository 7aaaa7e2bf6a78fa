"""The index of a folder: what it tells, when it is stale, and what is read again then."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from s3dnerf.data import index as index_module
from s3dnerf.data.clip import INFO_FILE, TRACK_FILE, list_clips, load_clip
from s3dnerf.data.index import INDEX_FILE, decode_text, load_index, order_people, refresh_index
from s3dnerf.errors import UserError


@pytest.fixture
def root(drawn_clips: Path, tmp_path: Path) -> Path:
    """A copy of the drawn clips without an index."""
    shutil.copytree(drawn_clips, tmp_path / "clips", ignore=shutil.ignore_patterns(INDEX_FILE))
    return tmp_path / "clips"


@pytest.fixture
def described(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the clips that are read to build an index."""
    names: list[str] = []
    describe = index_module.describe_clip

    def record(files: index_module.ClipFiles) -> dict[str, object]:
        names.append(files.path.name)
        return describe(files)

    monkeypatch.setattr(index_module, "describe_clip", record)
    return names


def test_an_index_tells_what_the_clips_are(root: Path) -> None:
    index = load_index(root)
    assert len(index) == 4 and not len(index.shards)
    for row, folder in enumerate(list_clips(root)):
        clip = load_clip(folder)
        assert index.get_id(row) == folder.name
        for name in ("person", "split", "sync"):
            assert decode_text(getattr(index, name)[row]) == getattr(clip, name)
        assert (index.frames[row], index.size[row], index.has_speech[row]) == (clip.frames, clip.size, clip.has_speech)
        assert index.valid[row] == clip.valid.sum()
    assert index.in_split("val").tolist() == [False, False, False, True]
    # Silent clips and clips that are too short for the fastest tempo teach no speech.
    assert index.teaches_speech(8).tolist() == [True, False, True, True]
    assert index.teaches_speech(30).tolist() == [True, False, False, False]


def test_lost_faces_and_unclear_sync_teach_no_speech(root: Path) -> None:
    index = load_index(root)
    index.valid[0] -= 1
    index.sync[2] = b"unclear"
    assert index.teaches_speech(8).tolist() == [False, False, False, True]


def test_an_index_is_built_once(root: Path, described: list[str]) -> None:
    first = load_index(root)
    assert described == ["ann_0", "ann_1", "ben_0", "cid_0"]
    again = load_index(root)
    assert len(described) == 4
    for name, column in vars(first).items():
        np.testing.assert_array_equal(getattr(again, name), column)
        assert column.dtype == getattr(again, name).dtype


def test_only_what_has_changed_is_read_again(root: Path, described: list[str]) -> None:
    load_index(root)
    described.clear()
    shutil.rmtree(root / "ann_1")
    shutil.copytree(root / "ben_0", root / "abe_0")
    info = json.loads((root / "cid_0" / INFO_FILE).read_text())
    (root / "cid_0" / INFO_FILE).write_text(json.dumps({**info, "sync": "unclear"}))
    os.utime(root / "cid_0" / INFO_FILE, ns=(1, 1))
    index = load_index(root)
    assert described == ["abe_0", "cid_0"]
    assert [index.get_id(row) for row in range(len(index))] == ["abe_0", "ann_0", "ben_0", "cid_0"]
    assert index.sync.tolist() == [b"corrected", b"ok", b"corrected", b"unclear"]


@pytest.mark.parametrize("content", [b"", b"PK", "version", "array", "columns"])
def test_a_damaged_or_older_index_is_built_again(
    root: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | str
) -> None:
    if isinstance(content, bytes):
        (root / INDEX_FILE).write_bytes(content)
    elif content == "array":
        with (root / INDEX_FILE).open("wb") as file:
            np.save(file, np.zeros(3))
    elif content == "columns":
        index = load_index(root)
        index_module.write_index(root, dataclasses.replace(index, changed=index.changed[:2]))
    else:
        with monkeypatch.context() as patch:
            patch.setattr(index_module, "INDEX_VERSION", 0)
            load_index(root)
    assert len(load_index(root)) == 4
    assert index_module.read_index(root / INDEX_FILE) is not None


def test_a_damaged_clip_is_named_or_left_out(root: Path) -> None:
    (root / "ben_0" / TRACK_FILE).write_bytes(b"no track")
    with pytest.raises(UserError, match=r"ben_0.*track.npz"):
        load_index(root)
    index, damaged = refresh_index(root)
    assert len(index) == 3 and len(damaged) == 1
    # It stays out of the index, so the next reader is told too.
    with pytest.raises(UserError, match="ben_0"):
        load_index(root)


def test_an_index_that_cannot_be_kept_is_used(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*given: object) -> None:
        raise UserError(root, "may not be written to", "Choose another folder.")

    monkeypatch.setattr(index_module, "write_index", refuse)
    assert len(load_index(root)) == 4
    assert "may not be written" in capsys.readouterr().out


def test_hidden_folders_and_other_files_are_no_clips(root: Path) -> None:
    shutil.copytree(root / "ann_0", root / ".ann_2")
    (root / "empty").mkdir()
    (root / "report.json").write_text("{}")
    assert len(load_index(root)) == 4


def test_names_may_have_any_letters(root: Path) -> None:
    os.rename(root / "ann_0", root / "änn.0 %2E")
    index = load_index(root)
    assert sorted(index.get_id(row) for row in range(4)) == ["ann_1", "ben_0", "cid_0", "änn.0 %2E"]


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere"):
        load_index(tmp_path / "nowhere")
    assert len(load_index(tmp_path)) == 0


def test_the_order_of_people_is_that_of_no_alphabet() -> None:
    people = [f"person {number}" for number in range(20)]
    assert order_people(people) == order_people(reversed(people)) != people
