"""Ctrl-C, SIGTERM and SIGHUP: programs clean up and end, and training saves a checkpoint first."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_NAMES = ("SIGTERM", "SIGHUP")


class Interrupted(KeyboardInterrupt):
    """The program was told to end by a signal: handled wherever Ctrl-C is."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number
        """The signal's number; a shell expects the exit code 128 + number."""


@contextmanager
def raise_on_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP raise :class:`Interrupted` in the main thread, so that part files are removed.

    Signals that are ignored or handled already, as SIGHUP under nohup, are left alone.
    """
    with _handling(_list_unhandled(), _raise):
        yield


@contextmanager
def defer_interrupts() -> Iterator[Callable[[], bool]]:
    """Yield a function that says whether the program was told to end, so that a loop can save and leave.

    A second signal interrupts at once. At the end of the block a deferred interruption is raised again.
    """
    received: list[int] = []
    previous = signal.getsignal(signal.SIGINT)
    numbers = [signal.SIGINT, *_list_unhandled()]

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)
        for other in numbers:
            signal.signal(other, previous if other == signal.SIGINT else _raise)

    with _handling(numbers, note):
        yield lambda: bool(received)
    if received:
        raise KeyboardInterrupt if received[0] == signal.SIGINT else Interrupted(received[0])


def ignore_signals() -> None:
    """Ignore SIGINT, SIGTERM and SIGHUP in this process: for workers that the main process ends."""
    for name in ("SIGINT", *_NAMES):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)


def _list_unhandled() -> list[signal.Signals]:
    """The signals that would end the process, or are handled by :func:`raise_on_signals`."""
    numbers = [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]
    return [number for number in numbers if signal.getsignal(number) in (signal.SIG_DFL, _raise)]


@contextmanager
def _handling(numbers: list[signal.Signals], handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may handle signals
        return
    previous = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, former in previous.items():
            signal.signal(number, former)


def _raise(number: int, frame: FrameType | None) -> None:
    if number != signal.SIGTERM:
        # A terminal that closes hangs up more than once, which must not disturb the cleaning up.
        signal.signal(number, signal.SIG_IGN)
    raise Interrupted(number)
