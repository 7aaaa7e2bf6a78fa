"""Failures of the machine, reported in one line. Bugs keep their traceback."""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from s3dnerf.errors import UserError, first_line

HINTS = {
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
"""Operating system errors that the program cannot prevent, and hints for them."""
EXTRAS = {
    "accelerate": "train",
    "tensorboard": "train",
    "transformers": "train",
    "tyro": "train",
    "skimage": "eval",
    "c2pa": "provenance",
    "cryptography": "provenance",
    "onnx": "export",
    "onnxruntime": "export",
    "fastapi": "serve",
    "uvicorn": "serve",
    "starlette": "serve",
    "prometheus_client": "serve",
    "aiortc": "serve",
}
"""Modules that the core does not need, and the extra that brings them."""
SIGPIPE_EXIT_CODE = 128 + 13
MORE_MEMORY = "Close other programs, use smaller sizes, or use a machine with more memory."
MORE_GPU_MEMORY = "Close other programs on the GPU, use smaller sizes, or use the device cpu."
FEWER_WORKERS = "Use fewer workers (--data.workers), or give them more shared memory."
PHRASES = {
    "can't allocate memory": ("memory", MORE_MEMORY),
    "not enough memory": ("memory", MORE_MEMORY),
    "Storage size calculation overflowed": ("memory", MORE_MEMORY),
    "Insufficient memory": ("memory", MORE_MEMORY),
    "DataLoader worker (pid": ("worker processes", FEWER_WORKERS),
    "unable to mmap": ("worker processes", FEWER_WORKERS),
    "unable to open shared memory": ("worker processes", FEWER_WORKERS),
    "ancdata": ("worker processes", HINTS[errno.EMFILE]),
}
"""Phrases of PyTorch and OpenCV for exhausted resources: subject and hint."""
SYSTEM_ERROR = re.compile(r"\(os error (\d+)\)")
"""Format of operating system errors in libraries written in Rust, such as safetensors."""


@contextmanager
def explain_failures() -> Iterator[None]:
    """Turn failures of the machine inside the block into UserErrors. Bugs keep their traceback.

    Standard output is flushed at the end. If its reader has closed it (``s3dnerf doctor | head``), the program exits
    silently with the exit code of SIGPIPE.
    """
    try:
        try:
            yield
        finally:
            _flush_output()
    except BrokenPipeError:
        raise SystemExit(SIGPIPE_EXIT_CODE) from None
    except Exception as error:
        explanation = explain_failure(error)
        if explanation is None:
            raise
        raise explanation from error


def explain_failure(error: Exception) -> UserError | None:
    """Return a UserError for a failure of the machine, or None for a bug of this program."""
    text, name = str(error), type(error).__name__
    if isinstance(error, MemoryError):
        return UserError("memory", f"there is not enough ({first_line(error)})", MORE_MEMORY)
    if isinstance(error, ImportError):
        return _explain_import(error)
    if isinstance(error, OSError):
        return _explain_system(error.errno, error.filename)
    if isinstance(error, UnicodeEncodeError) and error.reason == "surrogates not allowed":
        # Python represents file names that are not UTF-8 by surrogates.
        nearby = error.object[max(0, error.start - 60) : error.end + 60]
        return UserError(nearby, "has a name that is not valid UTF-8", "Rename it.")
    if name == "OutOfMemoryError":
        return UserError("GPU memory", f"there is not enough ({first_line(error)})", MORE_GPU_MEMORY)
    if name == "AcceleratorError" or (isinstance(error, RuntimeError) and text.startswith("CUDA error")):
        return UserError("GPU", f"fails ({first_line(error)})", "Run it again, or use the device cpu.")
    if name == "UnknownCodecError":
        hint = "Install PyAV again with pip: its packages bring FFmpeg with all that is needed."
        return UserError("FFmpeg", f"has no encoder of this name ({first_line(error)})", hint)
    if name == "SafetensorError" and (quoted := SYSTEM_ERROR.search(text)):
        return _explain_system(int(quoted[1]), None)
    for phrase, (subject, hint) in PHRASES.items():
        if phrase in text and (isinstance(error, RuntimeError) or type(error).__module__ == "cv2"):
            return UserError(subject, f"there is not enough ({first_line(error)})", hint)
    return None


def _flush_output() -> None:
    try:
        sys.stdout.flush()
    except OSError:
        # Otherwise the interpreter would fail again on the rest of the buffer when it exits.
        null_device = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null_device, sys.stdout.fileno())
        os.close(null_device)
        raise


def _explain_system(number: int | None, path: str | bytes | None) -> UserError | None:
    if number not in HINTS:
        return None
    reason = os.strerror(number)
    return UserError(os.fsdecode(path) if path else "system", f"{reason[:1].lower()}{reason[1:]}", HINTS[number])


def _explain_import(error: ImportError) -> UserError | None:
    package = (error.name or "").partition(".")[0]
    missing = isinstance(error, ModuleNotFoundError) and package and package != "s3dnerf"
    if not missing and "cannot open shared object file" not in str(error):
        return None
    hint = "Install the package again, with all that it depends on."
    if package in EXTRAS:
        hint = f'Run: pip install "s3dnerf[{EXTRAS[package]}]"'
    return UserError(package or str(error).partition(":")[0], f"cannot be loaded ({first_line(error)})", hint)
