"""Threads that render batches of frames at the same time.

An operator in several threads waits for the slowest one, and between operators the threads of OpenMP spin. Batches do
not depend on each other, so on the CPU each of a few threads renders a batch of its own.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from threading import Thread
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")
MOST_THREADS = 4
"""Most batches at the same time, which bounds the memory; further threads work inside of the operators."""


def map_in_threads(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Yield ``function(item)`` in the order of ``items``, computed in threads that share PyTorch's threads evenly.

    At most one item per thread is waiting for its result to be taken. Items are taken in the calling thread, whose
    operators then have as many threads. If the iteration ends early, the calls that run are waited for.
    """
    total = torch.get_num_threads()
    count = min(total, MOST_THREADS)
    pending: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(count, "render", set_own_threads, (total // count, total)) as pool:
        try:
            for item in limit_threads(items, total // count):
                pending.append(pool.submit(function, item))
                if len(pending) > count:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


@contextmanager
def use_threads(count: int) -> Iterator[None]:
    """Set the number of PyTorch's threads inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def set_own_threads(count: int, others: int) -> None:
    """Let PyTorch compute in ``count`` threads when this thread calls it, and in ``others`` for threads to come."""
    # A thread begins with the number that any thread set last, when it first asks for it, and then keeps its own.
    torch.get_num_threads()
    torch.set_num_threads(count)
    if others != count:
        setter = Thread(target=torch.set_num_threads, args=(others,))
        setter.start()
        setter.join()


def limit_threads(items: Iterable[Item], count: int) -> Iterator[Item]:
    """Yield ``items``, which PyTorch computes in ``count`` threads; other threads keep their numbers."""
    iterator = iter(items)
    while True:
        total = torch.get_num_threads()
        set_own_threads(count, total)
        try:
            item = next(iterator)
        except StopIteration:
            return
        finally:
            torch.set_num_threads(total)
        yield item


def delay_by_one(items: Iterable[Item]) -> Iterator[Item]:
    """Yield ``items``, each when the next one has been taken."""
    waiting: deque[Item] = deque()
    for item in items:
        waiting.append(item)
        if len(waiting) > 1:
            yield waiting.popleft()
    yield from waiting
