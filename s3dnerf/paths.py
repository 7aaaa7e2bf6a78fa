"""Looking at paths that users give: what is there, and whether it can be used."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from s3dnerf.errors import UserError


def stat_path(path: str | Path) -> os.stat_result | None:
    """Return what the system says of a path, or None where nothing is there.

    Raises:
        UserError: the system refuses to look: the name is too long, a folder on the way may not be entered. Or the name
            is not valid UTF-8, which the libraries that read sound and video cannot open.
    """
    check_spelling(path)
    try:
        return os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UserError(path, f"cannot be used as a path ({error.strerror})", "Give another path.") from error
    except ValueError as error:
        raise UserError(path, f"cannot be used as a path ({error})", "Give another path.") from error


def check_spelling(path: str | Path) -> None:
    """Raise UserError where a path has bytes that are not UTF-8."""
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


def require_folder(path: str | Path, cure: str) -> Path:
    """Return a path as a Path, or raise UserError with this ``cure`` where it is no folder that can be read."""
    path = Path(path)
    state = stat_path(path)
    if state is None:
        raise UserError(path, "does not exist; it should be a folder", cure)
    if not stat.S_ISDIR(state.st_mode):
        raise UserError(path, "is a file, not a folder", cure)
    if not os.access(path, os.R_OK | os.X_OK):
        raise UserError(path, "may not be read", "Give yourself permission to read this folder.")
    return path


def shorten_name(name: str, size: int) -> str:
    """Return as much of the beginning of a file name as fits into ``size`` bytes."""
    return os.fsencode(name)[:size].decode(errors="ignore")
