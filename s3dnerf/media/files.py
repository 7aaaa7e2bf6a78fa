"""Input and output files. Outputs are written atomically, and inputs are never overwritten."""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType

from s3dnerf.errors import UserError
from s3dnerf.paths import is_folder, stat_path

try:
    import fcntl as _fcntl

    fcntl: ModuleType | None = _fcntl
except ImportError:  # On Windows open files cannot be removed, so no lock is needed.
    fcntl = None

_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}
_MAX_STEM = 60
"""Number of characters of a name that a part file keeps, since the name may have the maximum length."""


def require_file(path: str | Path, kind: str) -> Path:
    """Return ``path`` as a Path, or raise UserError if it is not a readable file.

    Args:
        path: an input file.
        kind: what is expected, for the message: "image", "speech" or "video".
    """
    path = Path(path)
    state = stat_path(path)
    if state is None:
        raise UserError(path, "does not exist", f"Check the name of the {kind} file.")
    if stat.S_ISDIR(state.st_mode):
        raise UserError(path, f"is a folder, not {_with_article(kind)} file", "Name one file inside it.")
    if not stat.S_ISREG(state.st_mode):
        raise UserError(path, f"is not a regular file, so it is not read as {kind}", "Copy it to a file first.")
    if not os.access(path, os.R_OK):
        raise UserError(path, "may not be read", "Give yourself permission to read it.")
    return path


def is_stream(path: str | Path) -> bool:
    """Tell whether ``path`` is a pipe or a character device, such as standard output, which is not replaced.

    Raises:
        UserError: ``path`` cannot be looked up, or is a block device or a socket.
    """
    state = stat_path(path)
    if state is None:
        return False
    mode = state.st_mode
    if stat.S_ISBLK(mode) or stat.S_ISSOCK(mode):
        kind = "block device" if stat.S_ISBLK(mode) else "socket"
        raise UserError(path, f"is a {kind}, which is not written to", "Choose a file name.")
    return stat.S_ISFIFO(mode) or stat.S_ISCHR(mode)


def check_output(path: str | Path, inputs: Iterable[str | Path | None] = (), can_stream: bool = False) -> None:
    """Check an output before any work is done: it must be writable and not an input.

    Nothing is created. Links and other spellings of the same file are resolved.

    Args:
        path: the output file.
        inputs: files and folders that are read; None and missing ones are skipped.
        can_stream: whether the format can be written to a pipe or a device.

    Raises:
        UserError: the output cannot be written, or is one of the inputs.
    """
    path = Path(path)
    refuse_inputs(path, inputs)
    if is_stream(path):
        if not can_stream:
            raise UserError(
                path, "is a pipe or a device, to which this format cannot be written", "Choose a file name."
            )
        return
    target = _find_target(path)
    folder = target.parent
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if not folder.is_dir():
        raise UserError(folder, "is not a folder", "Choose another folder for the output.")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(folder, "may not be written to", "Choose another folder.")


def refuse_inputs(output: str | Path, inputs: Iterable[str | Path | None]) -> None:
    """Raise UserError if an output file or folder is one of the inputs, under any link or spelling."""
    for source in inputs:
        # A name that cannot be looked up is not a file that could be overwritten.
        with suppress(OSError, ValueError):
            if source is not None and os.path.samefile(output, source):
                raise UserError(
                    output, f"is also an input ({source}), which would be overwritten", "Choose another name."
                )


def make_folder(path: str | Path) -> Path:
    """Make an output folder and its parents, and return its path. Raises UserError if that fails."""
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise UserError(path, "is a file, so no folder can be made there", "Choose another folder.") from None
    except (OSError, ValueError) as error:
        raise UserError(
            path, f"cannot be made ({getattr(error, 'strerror', None) or error})", "Choose another folder."
        ) from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise UserError(path, "may not be written to", "Choose another folder.")
    return path


@contextmanager
def atomic_write(path: str | Path, can_stream: bool = False) -> Iterator[Path]:
    """Yield the path of a part file that replaces ``path`` when the block ends without an error.

    The part file is hidden, has the same suffix and is in the same folder. Missing folders are made. If the block
    raises (Ctrl-C included), the part file is removed and an existing file at ``path`` is unchanged. For a symbolic
    link, the file that it points to is replaced. Part files that killed runs left for the same output are removed;
    those of running processes stay.

    A pipe or a character device is not replaced: with ``can_stream`` its own path is yielded.

    Raises:
        UserError: the output cannot be written, or the disk is full.
    """
    path = Path(path)
    check_output(path, can_stream=can_stream)
    if is_stream(path):
        with _explain_disk_errors(path):
            yield path
        return
    target = _find_target(path)
    make_folder(target.parent)
    _remove_leftovers(target)
    part = _name_part(target)
    try:
        with _explain_disk_errors(path):
            part.touch(exist_ok=False)
            with _locked(part):
                yield part
                os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def atomic_write_folder(folder: str | Path) -> Iterator[Path]:
    """Yield a new hidden folder that replaces ``folder`` when the block ends without an error.

    Leftovers and errors are handled as by :func:`atomic_write`.
    """
    folder = Path(folder)
    make_folder(folder.parent)
    _remove_leftovers(folder)
    part, old = _name_part(folder), _name_part(folder)
    try:
        with _explain_disk_errors(folder):
            part.mkdir()
            with _locked(part):
                yield part
                if folder.exists():
                    os.rename(folder, old)
                os.rename(part, folder)
    finally:
        # The old folder is removed only after the new one is in place.
        if old.exists() and not folder.exists():
            os.rename(old, folder)
        for leftover in (part, old):
            shutil.rmtree(leftover, ignore_errors=True)


@contextmanager
def make_part_folder(path: str | Path) -> Iterator[Path]:
    """Yield a new hidden folder beside an output for files that are needed on the way, and remove it at the end.

    The next :func:`atomic_write` of the same output removes what a killed run left.
    """
    part = _name_part(_find_target(Path(path)))
    try:
        with _explain_disk_errors(Path(path)):
            part.mkdir()
            with _locked(part):
                yield part
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _find_target(path: Path) -> Path:
    """Return the file that is replaced, following symbolic links, including dangling ones."""
    if is_folder(path):
        raise UserError(path, "is a folder, so no file can be written there", "Choose a file name.")
    return Path(os.path.realpath(path))


def _name_part(target: Path) -> Path:
    return target.with_name(f".{target.stem[:_MAX_STEM]}.{uuid.uuid4().hex[:8]}.part{target.suffix}")


def _remove_leftovers(target: Path) -> None:
    """Remove part files and folders of this output that no process has locked."""
    if fcntl is None:
        return
    pattern = re.compile(rf"\.{re.escape(target.stem[:_MAX_STEM])}\.([0-9a-f]{{8}}\.)?part{re.escape(target.suffix)}")
    for name in os.listdir(target.parent):
        if not pattern.fullmatch(name):
            continue
        leftover = target.with_name(name)
        # Another process may remove or finish it at the same time.
        with suppress(OSError), _locked(leftover):
            if leftover.is_dir():
                shutil.rmtree(leftover)
            else:
                leftover.unlink()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock on a file or folder, which ends with this process. Raises OSError if it is locked already."""
    if fcntl is None:
        yield
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _explain_disk_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except BrokenPipeError as error:
        raise UserError(path, "was closed by its reader", "Keep the reader open to the end.") from error
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        reason = f"cannot be written ({os.strerror(error.errno)})"
        raise UserError(path, reason, "Free some space, or choose another folder.") from error


def _with_article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"
