"""The clips of an evaluation: by split, name, person and from a file."""

from pathlib import Path

import pytest

from s3dnerf.errors import UserError
from s3dnerf.evaluation.clip_list import find_clips, find_people, select_names


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a1", "a2", "b1", "loose"):
        (tmp_path / f"{name}.mp4").touch()
    return tmp_path


@pytest.fixture
def manifest(folder: Path) -> Path:
    path = folder / "list.csv"
    rows = ["file,split,identity", "clips/a1.mp4,val,ann", "clips/a2.mp4,val,ann", "clips/b1.mp4,train,"]
    path.write_text("\n".join(rows), "utf-8")
    return path


def names(videos: list[Path]) -> list[str]:
    return [video.stem for video in videos]


def test_manifest_selects_a_split(folder: Path, manifest: Path) -> None:
    assert names(find_clips(folder)) == ["a1", "a2", "b1", "loose"]
    assert names(find_clips(folder, manifest)) == ["a1", "a2", "b1"]
    assert names(find_clips(folder, manifest, "val")) == ["a1", "a2"]
    with pytest.raises(UserError, match="split test"):
        find_clips(folder, manifest, "test")
    with pytest.raises(UserError, match="manifest"):
        find_clips(folder, None, "val")


def test_people_are_identities_or_clips(folder: Path, manifest: Path) -> None:
    assert find_people(find_clips(folder, manifest), manifest) == {"a1": "ann", "a2": "ann", "b1": "b1"}
    assert find_people(find_clips(folder))["a2"] == "a2"


def test_only_takes_clips_people_and_files(folder: Path, manifest: Path) -> None:
    assert names(find_clips(folder, manifest, only=["ann"])) == ["a1", "a2"]
    assert names(find_clips(folder, manifest, only=["b1", "a2"])) == ["a2", "b1"]
    (folder / "some.txt").write_text("# chosen by hand\nb1  # the bearded man\n\na1\n", "utf-8")
    assert names(find_clips(folder, manifest, only=[str(folder / "some.txt")])) == ["a1", "b1"]
    assert select_names("subset", [], {"a1": "ann"}) == ()


def test_unknown_names_are_refused(folder: Path, manifest: Path) -> None:
    with pytest.raises(UserError, match="only: no clip or person anne. Did you mean ann"):
        find_clips(folder, manifest, only=["anne"])
    # A clip of another split is unknown, too: it would not be evaluated.
    with pytest.raises(UserError, match="no clip or person b1"):
        find_clips(folder, manifest, "val", only=["b1"])
    with pytest.raises(UserError, match="cannot be read"):
        find_clips(folder, manifest, only=[str(folder / "missing.txt")])
    (folder / "empty.txt").write_text("# nobody\n", "utf-8")
    with pytest.raises(UserError, match="has no names"):
        find_clips(folder, manifest, only=[str(folder / "empty.txt")])
