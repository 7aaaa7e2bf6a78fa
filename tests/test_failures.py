"""Failures of the machine are reported in one line; bugs keep their traceback."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors import SafetensorError

from s3dnerf import cli
from s3dnerf.failures import explain_failure

WORDS = ["render", "--image", "a.png", "--audio", "b.wav"]


def run(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> int:
    """Run a command that fails with an error."""

    def fail(options: object) -> None:
        raise error

    monkeypatch.setattr(cli.rendering, "run_render", fail)
    return cli.main(WORDS)


def system_error(number: int, path: str | None = None) -> OSError:
    return OSError(number, os.strerror(number), path)


FAILURES = [
    (system_error(errno.ENOSPC, "/full/a.mp4"), "/full/a.mp4"),
    (system_error(errno.ENOSPC), "space"),
    (system_error(errno.EACCES, "secret.png"), "secret.png"),
    (system_error(errno.ENAMETOOLONG, "x" * 300), "xxx"),
    (system_error(errno.EMFILE), "open files"),
    (system_error(errno.EROFS, "runs"), "runs"),
    (MemoryError(), "memory"),
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nmore"), "GPU memory"),
    (RuntimeError("CUDA error: device-side assert triggered\nCompile with"), "GPU"),
    (RuntimeError("[enforce fail at alloc_cpu.cpp:1] . DefaultCPUAllocator: can't allocate memory"), "memory"),
    (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."), "workers"),
    (RuntimeError("unable to open shared memory object </torch_1> in read-write mode"), "workers"),
    (SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"), "space"),
    (ImportError("libGL.so.1: cannot open shared object file: No such file or directory"), "libGL.so.1"),
    (ModuleNotFoundError("No module named 'diffusers'", name="diffusers"), "diffusers"),
]


@pytest.mark.parametrize(("error", "named"), FAILURES, ids=lambda value: value if isinstance(value, str) else "")
def test_failures_of_the_machine_are_one_line(
    error: Exception, named: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(error, monkeypatch) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and named in lines[0]


def fail_really() -> dict[str, Exception]:
    """Return errors as the libraries raise them."""
    errors = {}
    for name, act in {
        "torch": lambda: torch.empty(2**60),
        "torch overflow": lambda: torch.empty(2**40, 2**40),
        "numpy": lambda: np.empty(2**50),
        "opencv": lambda: cv2.resize(np.zeros((8, 8), np.uint8), (2**30, 2**30)),
        "spelling": lambda: "talking\udcff.mp4".encode(),
        "name": lambda: Path("x" * 300).read_bytes(),
    }.items():
        try:
            act()
        except Exception as error:
            errors[name] = error
    return errors


def test_real_failures_are_explained() -> None:
    errors = fail_really()
    assert set(errors) >= {"torch", "torch overflow", "numpy", "name", "spelling"}
    for name, error in errors.items():
        assert explain_failure(error) is not None, (name, error)


BUGS = [
    RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"),
    ValueError("not enough values to unpack"),
    KeyError("landmarks"),
    AttributeError("'NoneType' object has no attribute 'shape'"),
    FileNotFoundError(errno.ENOENT, "No such file or directory", "internal.bin"),
    ImportError("cannot import name 'render' from 's3dnerf.pipeline'", name="s3dnerf.pipeline"),
    ModuleNotFoundError("No module named 's3dnerf.rooms'", name="s3dnerf.rooms"),
    SafetensorError("key not found"),
]


@pytest.mark.parametrize("error", BUGS, ids=lambda error: type(error).__name__)
def test_bugs_keep_their_traceback(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(type(error)) as raised:
        run(error, monkeypatch)
    assert raised.value is error
