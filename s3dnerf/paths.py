"""Checks of paths that users give."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from s3dnerf.errors import UserError


def stat_path(path: str | Path) -> os.stat_result | None:
    """Return the status of a path, or None if nothing is there.

    Raises:
        UserError: the path cannot be looked up, because the name is too long or a parent folder may not be entered; or
            the name is not valid UTF-8, which the audio and video libraries cannot open.
    """
    check_encoding(path)
    try:
        return os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UserError(path, f"cannot be used as a path ({error.strerror})", "Give another path.") from error
    except ValueError as error:
        raise UserError(path, f"cannot be used as a path ({error})", "Give another path.") from error


def check_encoding(path: str | Path) -> None:
    """Raise UserError if a path is not valid UTF-8."""
    try:
        str(path).encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(path, "has a name that is not valid UTF-8", "Rename it.") from error


def is_file(path: str | Path) -> bool:
    """Tell whether a path is a file. Raises UserError as :func:`stat_path` does."""
    state = stat_path(path)
    return state is not None and stat.S_ISREG(state.st_mode)


def is_folder(path: str | Path) -> bool:
    """Tell whether a path is a folder. Raises UserError as :func:`stat_path` does."""
    state = stat_path(path)
    return state is not None and stat.S_ISDIR(state.st_mode)


def require_folder(path: str | Path, hint: str) -> Path:
    """Return a path as a Path, or raise UserError with this ``hint`` if it is not a readable folder."""
    path = Path(path)
    state = stat_path(path)
    if state is None:
        raise UserError(path, "does not exist; it should be a folder", hint)
    if not stat.S_ISDIR(state.st_mode):
        raise UserError(path, "is a file, not a folder", hint)
    if not os.access(path, os.R_OK | os.X_OK):
        raise UserError(path, "may not be read", "Give yourself permission to read this folder.")
    return path


def shorten_name(name: str, size: int) -> str:
    """Return the longest prefix of a file name that fits into ``size`` bytes."""
    return os.fsencode(name)[:size].decode(errors="ignore")
