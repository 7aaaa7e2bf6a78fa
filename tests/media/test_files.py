"""Output files are either complete or absent."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from s3dnerf.errors import UserError
from s3dnerf.media.files import (
    atomic_write,
    atomic_write_folder,
    check_output,
    make_folder,
    require_file,
)


def test_new_content_appears_only_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "result.txt"
    with atomic_write(path) as temporary:
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
    with pytest.raises(error), atomic_write(path) as temporary:
        temporary.write_text("half")
        raise error
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_very_long_names_fit(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 250 + ".txt")
    with atomic_write(path) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "new"


def test_a_full_disk_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No space left.*Free some space"), atomic_write(tmp_path / "a"):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_folders_and_missing_files_are_reported(tmp_path: Path) -> None:
    with (
        pytest.raises(UserError, match="is a folder, so no file can be written"),
        atomic_write(tmp_path),
    ):
        pass
    with pytest.raises(UserError, match="is a folder, not an image file"):
        require_file(tmp_path, "image")
    with pytest.raises(UserError, match=r"none\.wav: does not exist\. Check the name of the speech file\."):
        require_file(tmp_path / "none.wav", "speech")


def test_a_file_in_place_of_a_folder_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is not a folder"), atomic_write(tmp_path / "file" / "a.txt"):
        pass


def test_a_symbolic_link_stays_and_its_target_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    target, link = tmp_path / "real" / "a.txt", tmp_path / "link.txt"
    target.write_text("old")
    link.symlink_to("real/a.txt")
    with atomic_write(link) as part:
        part.write_text("new")
        assert part.parent == target.parent
    assert link.is_symlink() and target.read_text() == "new"
    assert list((tmp_path / "real").iterdir()) == [target]


def test_a_dangling_link_gets_its_target_and_a_loop_is_refused(tmp_path: Path) -> None:
    dangling, loop = tmp_path / "dangling", tmp_path / "loop"
    dangling.symlink_to("target")
    loop.symlink_to("loop")
    with atomic_write(dangling) as part:
        part.write_text("new")
    assert dangling.is_symlink() and (tmp_path / "target").read_text() == "new"
    with pytest.raises(UserError, match="symbolic links"), atomic_write(loop):
        pass
    assert loop.is_symlink()


def test_a_pipe_is_written_into_where_the_format_allows_it(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with ThreadPoolExecutor(1) as thread:
        read = thread.submit(pipe.read_text)
        with atomic_write(pipe, can_stream=True) as path:
            path.write_text("through the pipe")
        assert read.result(timeout=10) == "through the pipe"
    with pytest.raises(UserError, match="pipe or a device"), atomic_write(pipe):
        pass
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert list(tmp_path.iterdir()) == [pipe]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes device nodes")
def test_a_device_is_written_into_and_a_block_device_is_refused(tmp_path: Path) -> None:
    null, disk = tmp_path / "null", tmp_path / "disk"
    try:
        os.mknod(null, stat.S_IFCHR | 0o600, os.makedev(1, 3))
        os.mknod(disk, stat.S_IFBLK | 0o600, os.makedev(7, 200))
        with atomic_write(null, can_stream=True) as path:
            path.write_text("gone")
    except PermissionError:
        pytest.skip("device nodes cannot be made or opened here")
    assert stat.S_ISCHR(null.stat().st_mode)
    with pytest.raises(UserError, match="block device"), atomic_write(disk, can_stream=True):
        pass
    assert stat.S_ISBLK(disk.stat().st_mode)


def test_a_closed_reader_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="closed by its reader"), atomic_write(tmp_path / "a"):
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")


def test_an_input_is_refused_as_output_under_any_name(tmp_path: Path) -> None:
    source = tmp_path / "speech.wav"
    source.write_text("precious")
    (tmp_path / "link.wav").symlink_to(source)
    os.link(source, tmp_path / "hard.wav")
    (tmp_path / "folder").mkdir()
    for name in ("speech.wav", "link.wav", "hard.wav", "folder/../speech.wav"):
        with pytest.raises(UserError, match="is also an input"):
            check_output(tmp_path / name, [None, tmp_path / "absent", source])
    check_output(tmp_path / "new.wav", [source])
    assert source.read_text() == "precious"


def test_a_place_that_cannot_be_written_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "a.txt", tmp_path / ("n" * 300), tmp_path / "a\0b", tmp_path):
        with pytest.raises(UserError):
            check_output(path)
    check_output(tmp_path / "deep" / "er" / "a.txt")
    assert not (tmp_path / "deep").exists()


def test_part_files_of_killed_runs_are_removed_but_not_those_of_running_ones(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    code = (
        "import sys, time\nfrom s3dnerf.media.files import atomic_write\n"
        "with atomic_write(sys.argv[1]) as part:\n"
        "    part.write_text('half'); print(part, flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, path], stdout=subprocess.PIPE, text=True) as other:
        part = Path(other.stdout.readline().strip())
        with atomic_write(path) as mine:
            mine.write_text("mine")
        assert part.read_text() == "half"
        other.kill()
    assert part.exists()
    stranger = tmp_path / ".b.00000000.part.txt"
    stranger.write_text("another output's")
    with atomic_write(path) as mine:
        mine.write_text("new")
    assert sorted(tmp_path.iterdir()) == [stranger, path]


def test_folders_appear_when_they_are_complete_and_replace_older_ones(tmp_path: Path) -> None:
    folder = tmp_path / "clip"
    for content in ("first", "second"):
        with atomic_write_folder(folder) as part:
            (part / "a.txt").write_text(content)
    assert (folder / "a.txt").read_text() == "second"
    with pytest.raises(RuntimeError), atomic_write_folder(folder) as part:
        (part / "a.txt").write_text("third")
        raise RuntimeError
    (tmp_path / ".clip.part").mkdir()  # as a killed run of an earlier version left it
    with atomic_write_folder(tmp_path / "clip") as part:
        (part / "a.txt").write_text("fourth")
    assert (folder / "a.txt").read_text() == "fourth"
    assert list(tmp_path.iterdir()) == [folder]


def test_no_folder_is_made_in_place_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    with pytest.raises(UserError, match="is a file"):
        make_folder(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "kept"
