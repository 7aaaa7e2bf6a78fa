"""Imports the whole package and runs quick parts of it as on a system without Unix; a program of its own.

The package may neither import a module that only Unix has nor use a name that only Unix has in modules that all
systems have. Other packages keep theirs, since they look at the system themselves.
"""

from __future__ import annotations

import builtins
import importlib
import multiprocessing
import pkgutil
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

MODULES = {"resource", "fcntl", "termios", "tty", "pty", "pwd", "grp", "spwd", "syslog", "curses", "readline"}
MODULES |= {"posix", "_posixsubprocess", "crypt", "nis"}
SIGNALS = ("SIGHUP", "SIGKILL", "SIGPIPE", "SIGUSR1", "SIGUSR2", "SIGALRM", "SIGQUIT", "SIGCHLD", "SIGCONT", "SIGSTOP")
FUNCTIONS = (
    "fork",
    "forkpty",
    "getuid",
    "geteuid",
    "getgid",
    "killpg",
    "setsid",
    "getpgid",
    "mkfifo",
    "statvfs",
    "uname",
)
FUNCTIONS = (*FUNCTIONS, "uname", "chown", "nice", "sysconf", "wait3", "wait4", "getloadavg", "sched_getaffinity")


def block_modules() -> None:
    """Refuse the modules of Unix to code of the package."""
    import_module = builtins.__import__

    def import_checked(
        name: str,
        globals: Mapping[str, Any] | None = None,
        locals: Mapping[str, Any] | None = None,
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> Any:
        importer = str((globals or {}).get("__name__", ""))
        if level == 0 and name.partition(".")[0] in MODULES and importer.partition(".")[0] == "s3dnerf":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return import_module(name, globals, locals, fromlist, level)

    builtins.__import__ = import_checked


def import_package() -> list[str]:
    """Import every module of the package and return their names."""
    import s3dnerf

    found = [module.name for module in pkgutil.walk_packages(s3dnerf.__path__, "s3dnerf.")]
    for name in found:
        if not name.endswith("__main__"):
            importlib.import_module(name)
    return found


def remove_names() -> None:
    """Take the names of Unix out of ``os`` and ``signal``."""
    import os

    for module, names in ((signal, SIGNALS), (os, FUNCTIONS)):
        for name in names:
            if hasattr(module, name):
                delattr(module, name)
    multiprocessing.get_all_start_methods = lambda: ["spawn"]


def run_parts(folder: Path) -> None:
    """Write files, handle signals, read settings, choose kernels, and print help."""
    import numpy as np
    import torch

    from s3dnerf.cli import main
    from s3dnerf.config import load_config
    from s3dnerf.interruption import defer_interrupts, ignore_signals, keep_handlers, raise_on_signals
    from s3dnerf.media.files import atomic_write, atomic_write_folder
    from s3dnerf.media.video import VideoWriter, probe_video
    from s3dnerf.ops.backend import choose_backend
    from s3dnerf.ops.triplane import sample_triplane
    from s3dnerf.training import S3DNeRFConfig

    for _ in range(2):  # the second time they replace what is there
        with atomic_write(folder / "text.txt") as part:
            part.write_text("ü", "utf-8")
        with atomic_write_folder(folder / "inner") as part:
            (part / "one").touch()
    with raise_on_signals(), keep_handlers(), defer_interrupts() as interrupted:
        assert interrupted() == 0
    ignore_signals()
    assert load_config(S3DNeRFConfig, "smoke.yaml").train.steps > 0
    with VideoWriter(folder / "black.mp4", (32, 32)) as video:
        video.write(np.zeros((32, 32, 3), np.uint8))
    assert probe_video(folder / "black.mp4").frames == 1
    assert choose_backend("triplane", "cpu")
    assert sample_triplane(torch.ones(1, 3, 4, 8, 8), torch.zeros(1, 5, 3)).shape[1] == 5
    assert main(["doctor"]) == 0


if __name__ == "__main__":
    block_modules()
    modules = import_package()
    remove_names()
    run_parts(Path(sys.argv[1]))
    print(len(modules))
