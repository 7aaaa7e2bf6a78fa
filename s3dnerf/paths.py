"""Looking at paths that users give: what is there, and whether it can be used."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from s3dnerf.errors import UserError


def stat_path(path: str | Path) -> os.stat_result | None:
    """Return what the system says of a path, or None where nothing is there.

    Raises:
        UserError: the system refuses to look: the name is too long, a folder on the way may not be entered.
    """
    try:
        return os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UserError(path, f"cannot be used as a path ({error.strerror})", "Give another path.") from error
    except ValueError as error:
        raise UserError(path, f"cannot be used as a path ({error})", "Give another path.") from error


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


def check_output_folder(path: str | Path) -> None:
    """Raise UserError where a folder can neither be used for output nor be made. Makes nothing."""
    path = Path(path)
    for place in (path, *path.absolute().parents):
        state = stat_path(place)
        if state is None:
            continue
        if not stat.S_ISDIR(state.st_mode):
            reason = "is a file" if place == path else f"cannot be made, because {place} is a file"
            raise UserError(path, f"{reason}; a folder is needed", "Choose another folder.")
        if not os.access(place, os.W_OK | os.X_OK):
            raise UserError(path, f"cannot be written to: no permission for {place}", "Choose another folder.")
        return


def check_output_file(path: str | Path) -> None:
    """Raise UserError where no file can be written at a path. Writes nothing."""
    path = Path(path)
    if is_folder(path):
        raise UserError(path, "is a folder, so no file can be written there", "Choose a file name.")
    check_output_folder(path.parent)


def make_folder(path: str | Path) -> Path:
    """Make a folder for output, with its parents, and return it. Raises UserError where that cannot be done."""
    check_output_folder(path)
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(path, f"cannot be made ({error.strerror})", "Choose another folder.") from error
    return path


def shorten_name(name: str, size: int) -> str:
    """Return as much of the beginning of a file name as fits into ``size`` bytes."""
    return os.fsencode(name)[:size].decode(errors="ignore")
