"""Files that are either complete or not there."""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from s3dnerf.errors import UserError

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}


def require_file(path: str | Path, kind: str) -> Path:
    """Return `path` as a Path, or raise UserError if it is not a readable file.

    `kind` names what was expected, for the message ("image", "speech", "video").
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(path, f"is a folder, not {_with_article(kind)} file", "Name one file inside it.")
    if not path.is_file():
        raise UserError(path, "does not exist", f"Check the name of the {kind} file.")
    if not os.access(path, os.R_OK):
        raise UserError(path, "may not be read", "Give yourself permission to read it.")
    return path


@contextmanager
def replace_when_done(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, with its suffix, that becomes `path` when the block ends well.

    Missing parent folders are made. If the block raises (Ctrl-C included) the temporary file is deleted and
    a file that was at `path` before stays as it was. Raises UserError if the place cannot be written or is
    full.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(path, "is a folder, so no file can be written there", "Choose a file name.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(path.parent, f"cannot be made: {error.strerror}", "Choose another folder.") from error
    if not os.access(path.parent, os.W_OK):
        raise UserError(path.parent, "may not be written to", "Choose another folder.")
    temporary = path.with_name(f".{path.stem[:80]}.{uuid.uuid4().hex[:8]}.part{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        reason = f"cannot be written ({os.strerror(error.errno)})"
        raise UserError(path, reason, "Free some space, or choose another folder.") from error
    finally:
        temporary.unlink(missing_ok=True)


def _with_article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"
