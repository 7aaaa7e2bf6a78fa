"""Failures that are the machine's, not the program's: said in one line, where a bug gives its traceback."""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from s3dnerf.errors import UserError, first_line

CURES = {
    errno.ENOSPC: "Free some space, or write to another place.",
    errno.EDQUOT: "Free some of your quota, or write to another place.",
    errno.EROFS: "Write to another place.",
    errno.EFBIG: "Write to a file system that holds larger files.",
    errno.EIO: "Check the disk.",
    errno.EACCES: "Give yourself permission, or use another place.",
    errno.EPERM: "Give yourself permission, or use another place.",
    errno.ENAMETOOLONG: "Use a shorter name.",
    errno.ELOOP: "Fix the symbolic links.",
    errno.EMFILE: "Raise the limit on open files (ulimit -n), or use fewer workers.",
    errno.ENFILE: "Close other programs, or use fewer workers.",
    errno.EAGAIN: "Close other programs, or use fewer workers.",
    errno.ENOMEM: "Close other programs, or use a machine with more memory.",
    errno.ENOTCONN: "Connect the drive again.",
    errno.ESTALE: "Connect the network drive again.",
}
"""Errors of the system that no program can prevent, and what to do about them."""
READER_GONE = 128 + 13
MORE_MEMORY = "Close other programs, use smaller sizes, or use a machine with more memory."
MORE_GPU_MEMORY = "Close other programs on the GPU, use smaller sizes, or use --device cpu."
FEWER_WORKERS = "Use fewer workers (--data.workers), or give them more shared memory."
PHRASES = {
    "can't allocate memory": ("memory", MORE_MEMORY),
    "not enough memory": ("memory", MORE_MEMORY),
    "Storage size calculation overflowed": ("memory", MORE_MEMORY),
    "Insufficient memory": ("memory", MORE_MEMORY),
    "DataLoader worker (pid": ("worker processes", FEWER_WORKERS),
    "unable to mmap": ("worker processes", FEWER_WORKERS),
    "unable to open shared memory": ("worker processes", FEWER_WORKERS),
    "ancdata": ("worker processes", CURES[errno.EMFILE]),
}
"""What PyTorch and OpenCV say where the machine has too little of something: its subject, and the cure."""
SYSTEM_ERROR = re.compile(r"\(os error (\d+)\)")
"""How libraries written in Rust, such as safetensors, quote an error of the system."""


@contextmanager
def explain_failures() -> Iterator[None]:
    """Turn failures of the machine in the block into a UserError. Bugs keep their traceback.

    Standard output is flushed at the end. Where its reader has gone (``s3dnerf doctor | head``), the program ends
    quietly, with the exit code of one that was ended by SIGPIPE.
    """
    try:
        try:
            yield
        finally:
            _flush_output()
    except BrokenPipeError:
        raise SystemExit(READER_GONE) from None
    except Exception as error:
        explanation = explain_failure(error)
        if explanation is None:
            raise
        raise explanation from error


def explain_failure(error: Exception) -> UserError | None:
    """Return the line for a failure of the machine; None for everything else, which is a bug of this program."""
    text, name = str(error), type(error).__name__
    if isinstance(error, MemoryError):
        return UserError("memory", f"there is not enough ({first_line(error)})", MORE_MEMORY)
    if isinstance(error, ImportError):
        return _explain_import(error)
    if isinstance(error, OSError):
        return _explain_system(error.errno, error.filename)
    if isinstance(error, UnicodeEncodeError) and error.reason == "surrogates not allowed":
        # What Python makes of file names that are not UTF-8.
        nearby = error.object[max(0, error.start - 60) : error.end + 60]
        return UserError(nearby, "has a name that is not valid UTF-8", "Rename it.")
    if name == "OutOfMemoryError":
        return UserError("GPU memory", f"there is not enough ({first_line(error)})", MORE_GPU_MEMORY)
    if name == "AcceleratorError" or (isinstance(error, RuntimeError) and text.startswith("CUDA error")):
        return UserError("GPU", f"fails ({first_line(error)})", "Run it again, or use --device cpu.")
    if name == "UnknownCodecError":
        cure = "Install PyAV again with pip: its packages bring FFmpeg with all that is needed."
        return UserError("FFmpeg", f"has no encoder of this name ({first_line(error)})", cure)
    if name == "SafetensorError" and (quoted := SYSTEM_ERROR.search(text)):
        return _explain_system(int(quoted[1]), None)
    for phrase, (subject, cure) in PHRASES.items():
        if phrase in text and (isinstance(error, RuntimeError) or type(error).__module__ == "cv2"):
            return UserError(subject, f"there is not enough ({first_line(error)})", cure)
    return None


def _flush_output() -> None:
    try:
        sys.stdout.flush()
    except OSError:
        # What is left in the buffer would fail again when the interpreter ends.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
        raise


def _explain_system(number: int | None, path: object) -> UserError | None:
    if number not in CURES:
        return None
    reason = os.strerror(number)
    return UserError(os.fsdecode(path) if path else "system", f"{reason[:1].lower()}{reason[1:]}", CURES[number])


def _explain_import(error: ImportError) -> UserError | None:
    package = (error.name or "").partition(".")[0]
    missing = isinstance(error, ModuleNotFoundError) and package and package != "s3dnerf"
    if not missing and "cannot open shared object file" not in str(error):
        return None
    cure = "Install the package again, with all that it depends on."
    return UserError(package or str(error).partition(":")[0], f"cannot be loaded ({first_line(error)})", cure)
