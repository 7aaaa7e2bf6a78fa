"""Corpora are read as they lie on disk: VoxCeleb2's tree, flat folders, manifests."""

from __future__ import annotations

from pathlib import Path

import pytest

from s3dnerf.data.videos import find_videos
from s3dnerf.errors import UserError


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def test_the_manifest_names_people_and_splits(shared_data: Path) -> None:
    entries = find_videos(shared_data / "clips", shared_data / "MANIFEST.csv")
    assert len(entries) == 184 and sum(entry.silent for entry in entries) == 16
    people = {split: {entry.person for entry in entries if entry.split == split} for split in ("train", "val")}
    assert len(people["val"]) == 9 and not people["train"] & people["val"]
    assert {entry.sync for entry in entries} == {"ok", "corrected", "unclear", "none"}


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


def test_val_people_are_chosen_once_and_for_all(tmp_path: Path) -> None:
    touch(tmp_path, *(f"person{number}_{clip}.mp4" for number in range(40) for clip in range(2)))
    val = {entry.person for entry in find_videos(tmp_path) if entry.split == "val"}
    train = {entry.person for entry in find_videos(tmp_path) if entry.split == "train"}
    assert len(val) == 2 and len(train) == 38 and not val & train


def test_folders_that_cannot_be_prepared(tmp_path: Path) -> None:
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
def test_manifests_with_impossible_rows(tmp_path: Path, id: str, split: str) -> None:
    touch(tmp_path, "a.mp4")
    header = "id,kind,file,identity,split,sync,notes"
    (tmp_path / "manifest.csv").write_text(f"{header}\n{id},clip,clips/a.mp4,someone,{split},ok,\n")
    with pytest.raises(UserError, match="clip id|split"):
        find_videos(tmp_path, tmp_path / "manifest.csv")
