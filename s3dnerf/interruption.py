"""Handling of Ctrl-C, SIGTERM and SIGHUP: programs clean up and exit, and training saves a checkpoint first."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

_NAMES = ("SIGTERM", "SIGHUP")


class Interrupted(KeyboardInterrupt):
    """A signal ended the program. It is handled like Ctrl-C."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number
        """Number of the signal; shells expect the exit code 128 + number."""


@contextmanager
def raise_on_signals() -> Iterator[None]:
    """Make SIGTERM and SIGHUP raise :class:`Interrupted` in the main thread, so that part files are removed.

    Signals that are already ignored or handled, such as SIGHUP under nohup, are left unchanged.
    """
    with _handling(_list_unhandled(), _raise):
        yield


@contextmanager
def defer_interrupts(ignore_repeated: bool = False) -> Iterator[Callable[[], int]]:
    """Defer interruptions, so that a loop can save its state first.

    Yields a function that returns the number of the received signal, or 0. A deferred interruption is raised again at
    the end of the block.

    Args:
        ignore_repeated: whether a second signal is ignored; otherwise it interrupts immediately.
    """
    received: list[int] = []
    previous = signal.getsignal(signal.SIGINT)
    numbers = [signal.SIGINT, *_list_unhandled()]

    def record(number: int, frame: FrameType | None) -> None:
        received.append(number)
        for other in [] if ignore_repeated else numbers:
            signal.signal(other, previous if other == signal.SIGINT else _raise)

    with _handling(numbers, record):
        yield lambda: received[0] if received else 0
    if received:
        raise_interrupt(received[0])


@contextmanager
def keep_handlers() -> Iterator[None]:
    """Restore the handlers of SIGINT, SIGTERM and SIGHUP after a block of other people's code that sets its own."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread can handle signals
        return
    names = ("SIGINT", *_NAMES)
    previous = {name: signal.getsignal(getattr(signal, name)) for name in names if hasattr(signal, name)}
    try:
        yield
    finally:
        for name, handler in previous.items():
            if handler is not None:
                signal.signal(getattr(signal, name), handler)


def raise_interrupt(number: int) -> NoReturn:
    """Raise what a signal would have raised."""
    raise KeyboardInterrupt if number == signal.SIGINT else Interrupted(number)


def ignore_signals() -> None:
    """Ignore SIGINT, SIGTERM and SIGHUP in this process, for workers that the main process terminates."""
    for name in ("SIGINT", *_NAMES):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)


def _list_unhandled() -> list[signal.Signals]:
    """Return the signals with default handling, or handled by :func:`raise_on_signals`."""
    numbers = [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]
    return [number for number in numbers if signal.getsignal(number) in (signal.SIG_DFL, _raise)]


@contextmanager
def _handling(numbers: list[signal.Signals], handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread can handle signals
        return
    previous = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, former in previous.items():
            signal.signal(number, former)


def _raise(number: int, frame: FrameType | None) -> None:
    if number != signal.SIGTERM:
        # A closing terminal sends SIGHUP repeatedly, which must not interrupt the cleanup.
        signal.signal(number, signal.SIG_IGN)
    raise Interrupted(number)
