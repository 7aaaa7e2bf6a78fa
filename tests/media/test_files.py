"""Files are either complete or not there."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from s3dnerf.errors import UserError
from s3dnerf.media.files import replace_when_done, require_file


def test_new_content_appears_only_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "result.txt"
    with replace_when_done(path) as temporary:
        temporary.write_text("new")
        assert temporary.parent == path.parent
        assert temporary.suffix == ".txt"
        assert not path.exists()
    assert path.read_text() == "new"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_failure_keeps_the_old_file_and_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "result.txt"
    path.write_text("old")
    with pytest.raises(error), replace_when_done(path) as temporary:
        temporary.write_text("half")
        raise error
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_very_long_names_fit(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 250 + ".txt")
    with replace_when_done(path) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "new"


def test_full_disk_is_the_users_to_mend(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No space left.*Free some space"), replace_when_done(tmp_path / "a"):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_folders_and_missing_files_are_named(tmp_path: Path) -> None:
    with (
        pytest.raises(UserError, match="is a folder, so no file can be written"),
        replace_when_done(tmp_path),
    ):
        pass
    with pytest.raises(UserError, match="is a folder, not an image file"):
        require_file(tmp_path, "image")
    with pytest.raises(UserError, match=r"none\.wav: does not exist\. Check the name of the speech file\."):
        require_file(tmp_path / "none.wav", "speech")


def test_a_file_in_place_of_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be made"), replace_when_done(tmp_path / "file" / "a.txt"):
        pass
