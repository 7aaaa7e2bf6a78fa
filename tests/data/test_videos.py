"""Discovery of videos: VoxCeleb2 trees, flat folders, manifests."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from s3dnerf.data.videos import find_videos
from s3dnerf.errors import UserError


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def test_manifest_defines_identities_and_splits(shared_data: Path) -> None:
    with (shared_data / "MANIFEST.csv").open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["kind"] in ("clip", "silent_clip")]
    entries = find_videos(shared_data / "clips", shared_data / "MANIFEST.csv")
    named = [(entry.id, entry.person, entry.split, entry.silent) for entry in entries]
    wanted = [(row["id"], row["identity"], row["split"], row["kind"] == "silent_clip") for row in rows]
    assert named == sorted(wanted) and len(wanted) > 100
    people = {split: {entry.person for entry in entries if entry.split == split} for split in ("train", "val")}
    assert not people["train"] & people["val"]
    # The parent folder contains the same names in another size.
    both = find_videos(shared_data, shared_data / "MANIFEST.csv")
    assert [entry.path for entry in both] == [entry.path for entry in entries]


HEADER = "id,kind,file,identity,split,sync,notes"


def write_manifest(folder: Path, *files: str, **values: str) -> Path:
    """Write a manifest with the ids a, b, ... in the order of the files."""
    rows = [
        ",".join([values.get("id", "abc"[number]), "clip", file, "someone", "train", values.get("sync", ""), ""])
        for number, file in enumerate(files)
    ]
    path = folder / "manifest.csv"
    path.write_text("\n".join([HEADER, *rows]) + "\n", encoding=values.get("encoding", "utf-8"))
    return path


def test_files_of_a_manifest_are_found_by_path_first(tmp_path: Path) -> None:
    touch(tmp_path, "corpus/clips/x.mp4", "corpus/clips_512/x.mp4", "corpus/clips/only.mp4", "own/x.mp4")
    corpus = tmp_path / "corpus"
    by_path = write_manifest(corpus, "clips_512/x.mp4", "elsewhere/only.mp4", "other/absent.mp4")
    wanted = {"a": corpus / "clips_512" / "x.mp4", "b": corpus / "clips" / "only.mp4"}
    assert {entry.id: entry.path for entry in find_videos(corpus, by_path)} == wanted
    # The same with paths relative to --videos and a manifest elsewhere.
    apart = write_manifest(tmp_path, "clips_512/x.mp4", "elsewhere/only.mp4")
    assert {entry.id: entry.path for entry in find_videos(corpus, apart)} == wanted
    # By name, if only one file has it.
    assert [entry.path for entry in find_videos(tmp_path / "own", by_path)] == [tmp_path / "own" / "x.mp4"]
    assert [entry.path for entry in find_videos(corpus / "clips", by_path)] == [
        corpus / "clips" / "x.mp4",
        corpus / "clips" / "only.mp4",
    ]


def test_ambiguous_names_raise(tmp_path: Path) -> None:
    touch(tmp_path, "one/x.mp4", "two/x.mp4")
    with pytest.raises(UserError, match="could be meant") as caught:
        find_videos(tmp_path, write_manifest(tmp_path, "x.mp4"))
    assert "one/x.mp4" in str(caught.value) and "two/x.mp4" in str(caught.value)
    with pytest.raises(UserError, match="2 rows whose file could be"):
        find_videos(tmp_path / "one", write_manifest(tmp_path, "first/x.mp4", "second/x.mp4"))
    # One of the two rows has the path of the file, which makes it unambiguous.
    manifest = write_manifest(tmp_path, "one/x.mp4", "second/x.mp4")
    assert [(entry.id, entry.path) for entry in find_videos(tmp_path / "one", manifest)] == [
        ("a", tmp_path / "one" / "x.mp4")
    ]


@pytest.mark.parametrize("sync", ["ok", "corrected", "unclear", "none", ""])
def test_sync_label_comes_from_the_manifest(tmp_path: Path, sync: str) -> None:
    touch(tmp_path, "x.mp4")
    manifest = write_manifest(tmp_path, "x.mp4", sync=sync, encoding="utf-8-sig")
    assert [entry.sync for entry in find_videos(tmp_path, manifest)] == [sync]
    assert [entry.sync for entry in find_videos(tmp_path)] == [""]


def test_invalid_rows_raise(tmp_path: Path) -> None:
    touch(tmp_path, "x.mp4")
    with pytest.raises(UserError, match="sync 'good'"):
        find_videos(tmp_path, write_manifest(tmp_path, "x.mp4", sync="good"))
    manifest = tmp_path / "manifest.csv"
    manifest.write_text(f"{HEADER}\na,clip,x.mp4,someone\n")
    with pytest.raises(UserError, match="ends too early in line 2"):
        find_videos(tmp_path, manifest)


def test_voxceleb_tree(tmp_path: Path) -> None:
    touch(tmp_path, "mp4/id00012/2DLq/00001.mp4", "mp4/id00012/2DLq/00002.mp4", "mp4/id00017/x_1/00001.mp4")
    entries = find_videos(tmp_path)
    assert [entry.id for entry in entries] == [
        "id00012__2DLq__00001",
        "id00012__2DLq__00002",
        "id00017__x_1__00001",
    ]
    assert [entry.person for entry in entries] == ["id00012", "id00012", "id00017"]
    assert find_videos(tmp_path / "mp4" / "id00012")[0] == entries[0]


def test_flat_folder(tmp_path: Path) -> None:
    touch(tmp_path, "RD_Radio1_000.mp4", "RD_Radio1_001.mkv", "WDA_Obama.mp4", "notes.txt", "a.wav")
    entries = find_videos(tmp_path)
    assert [(entry.id, entry.person) for entry in entries] == [
        ("RD_Radio1_000", "RD_Radio1"),
        ("RD_Radio1_001", "RD_Radio1"),
        ("WDA_Obama", "WDA_Obama"),
    ]
    assert {entry.split for entry in entries} == {"train"}, "too few people for a val split"


def test_val_identities_are_chosen_deterministically(tmp_path: Path) -> None:
    touch(tmp_path, *(f"person{number}_{clip}.mp4" for number in range(40) for clip in range(2)))
    val = {entry.person for entry in find_videos(tmp_path) if entry.split == "val"}
    train = {entry.person for entry in find_videos(tmp_path) if entry.split == "train"}
    assert len(val) == 2 and len(train) == 38 and not val & train


def test_invalid_folders_raise(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a folder"):
        find_videos(tmp_path / "absent")
    with pytest.raises(UserError, match="no video"):
        find_videos(tmp_path)
    touch(tmp_path, "a_1.mp4", "a_1.mov")
    with pytest.raises(UserError, match="same clip id"):
        find_videos(tmp_path)
    with pytest.raises(UserError, match="cannot be read"):
        find_videos(tmp_path, tmp_path / "absent.csv")
    (tmp_path / "wrong.csv").write_text("id,name\n1,2\n")
    with pytest.raises(UserError, match="not a manifest"):
        find_videos(tmp_path, tmp_path / "wrong.csv")


@pytest.mark.parametrize(("id", "split"), [("../a", "train"), (".a", "train"), ("a", "training")])
def test_invalid_ids_and_splits_raise(tmp_path: Path, id: str, split: str) -> None:
    touch(tmp_path, "a.mp4")
    header = "id,kind,file,identity,split,sync,notes"
    (tmp_path / "manifest.csv").write_text(f"{header}\n{id},clip,clips/a.mp4,someone,{split},ok,\n")
    with pytest.raises(UserError, match="clip id|split"):
        find_videos(tmp_path, tmp_path / "manifest.csv")
