"""Threads that render batches of frames at the same time.

An operator in several threads waits for the slowest one, and between operators the threads of OpenMP spin. Batches do
not depend on each other, so on the CPU each of a few threads renders a batch of its own.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")
MOST_THREADS = 4
"""Most batches at the same time, which bounds the memory; further threads work inside of the operators."""


def map_in_threads(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Yield ``function(item)`` in the order of ``items``, computed in threads that share PyTorch's threads evenly.

    At most one item per thread is waiting for its result to be taken. Items are taken in the calling thread. If the
    iteration ends early, the calls that run are waited for.
    """
    total = torch.get_num_threads()
    count = min(total, MOST_THREADS)
    pending: deque[Future[Result]] = deque()
    # PyTorch keeps a number of threads for each thread, and uses the latest one for threads to come.
    with ThreadPoolExecutor(count, "render", torch.set_num_threads, (total // count,)) as pool:
        try:
            for item in items:
                pending.append(pool.submit(function, item))
                if len(pending) > count:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
            torch.set_num_threads(total)


def delay_by_one(items: Iterable[Item]) -> Iterator[Item]:
    """Yield ``items``, each when the next one has been taken."""
    waiting: deque[Item] = deque()
    for item in items:
        waiting.append(item)
        if len(waiting) > 1:
            yield waiting.popleft()
    yield from waiting
