"""Signals: partial output is removed, and the exit code names the signal."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from s3dnerf.interruption import Interrupted, defer_interrupts, keep_handlers, raise_on_signals

WRITE = """
import signal, sys, time
import numpy as np
from s3dnerf import cli
from s3dnerf.media.video import VideoWriter

def write(options):
    with VideoWriter(sys.argv[1], (64, 64)) as writer:
        while True:
            writer.write(np.zeros((64, 64, 3), np.uint8))
            print("writing", flush=True)
            time.sleep(0.02)

if "inherit" not in sys.argv:  # a test run in the background may hand its ignored signals on
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
cli.diagnostics.run_doctor = write
sys.exit(cli.main(["doctor"]))
"""


def start_writing(path: Path, command: tuple[str, ...] = ()) -> subprocess.Popen:
    """Start a process that writes an endless video, and wait for its first frame."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    inherit = ["inherit"] if command else []
    process = subprocess.Popen([*command, sys.executable, "-c", WRITE, str(path), *inherit], **pipes)
    assert process.stdout.readline() == "writing\n"
    return process


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGINT"])
def test_a_signal_ends_in_one_line_and_leaves_nothing(tmp_path: Path, name: str) -> None:
    path, number = tmp_path / "a.mp4", getattr(signal, name)
    path.write_text("older")
    with start_writing(path) as process:
        process.send_signal(number)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert len(errors.splitlines()) == 1 and "Traceback" not in errors
    assert list(tmp_path.iterdir()) == [path] and path.read_text() == "older"


def test_a_hangup_that_is_ignored_stays_ignored(tmp_path: Path) -> None:
    with start_writing(tmp_path / "a.mp4", ("nohup",)) as process:
        process.send_signal(signal.SIGHUP)
        for _ in range(3):
            assert process.stdout.readline() == "writing\n"
        process.terminate()
        process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGTERM


def test_what_a_killed_run_left_is_removed_by_the_next(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    with start_writing(path) as process:
        process.kill()
        process.communicate(timeout=30)
    assert [part.suffix for part in tmp_path.iterdir()] == [".mp4"]
    with start_writing(path) as process:
        assert len(list(tmp_path.iterdir())) == 1
        process.terminate()
        process.communicate(timeout=30)
    assert list(tmp_path.iterdir()) == []


def test_a_deferred_signal_is_raised_at_the_end_of_the_block() -> None:
    reached = False
    with pytest.raises(Interrupted) as raised, raise_on_signals(), defer_interrupts() as interrupted:
        assert not interrupted()
        os.kill(os.getpid(), signal.SIGTERM)
        reached = interrupted()
    assert reached and raised.value.number == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_second_signal_is_not_deferred() -> None:
    with pytest.raises(Interrupted), defer_interrupts() as interrupted:
        signal.raise_signal(signal.SIGINT)
        assert interrupted()
        signal.raise_signal(signal.SIGTERM)
        pytest.fail("the second signal was deferred too")


def test_handlers_of_other_code_do_not_stay() -> None:
    with raise_on_signals():
        with keep_handlers():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        with pytest.raises(Interrupted):
            os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGINT) != signal.SIG_IGN
