"""Engines that apply a function to many items: processes of this machine, or a Ray cluster.

An item whose process dies (a crash, out of memory) gets :class:`WorkerDied` as its result and stops no other. Worker
processes end with the main process, however it ends.
"""

from __future__ import annotations

import _thread
import logging
import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection
from types import ModuleType
from typing import Any, Generic, TypeVar

import cv2
import torch
from tqdm import tqdm

from s3dnerf.errors import UserError
from s3dnerf.interruption import Interrupted, keep_handlers, raise_on_signals

LOCAL_RAY = "local"
"""Address that starts a Ray cluster on this machine for the time of the run."""
OBJECT_STORE_BYTES = 2**27
"""Memory of a local cluster for arguments and results, which are small."""
RAY_ATTEMPTS = 2
"""Times that an item is tried on a Ray cluster: a process may die because its machine goes."""
CLEANUP_SECONDS = 5.0
"""Time for a worker to remove its part files when the main process has ended."""

Item = TypeVar("Item")
Result = TypeVar("Result")


class WorkerDied(Generic[Result]):
    """The result of an item whose process ended abruptly."""


def run_in_processes(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int
) -> Iterator[tuple[Item, Result | WorkerDied[Result]]]:
    """Apply ``function`` to items in several processes and yield each with its result, as they are done.

    If this process is interrupted or killed, the others remove their part files and end as well.

    Args:
        function: what to do; picklable.
        items: its arguments; picklable.
        workers: number of processes.
    """
    waiting = deque(items)
    while waiting:
        suspects = yield from _run_pool(function, waiting, workers)
        # A process died and took the work of the others with it: run alone, each shows whether it was the cause.
        for item in suspects:
            if (yield from _run_pool(function, deque([item]), 1)):
                yield item, WorkerDied()


def _run_pool(
    function: Callable[[Item], Result], waiting: deque[Item], workers: int
) -> Generator[tuple[Item, Result], None, list[Item]]:
    """Take items from ``waiting`` until it is empty; return those in progress when a process died."""
    futures: dict[Future[Result], Item] = {}
    # Fresh processes, because the tracker's threads do not survive a fork.
    context = multiprocessing.get_context("spawn")
    # The system closes this end of the pipe when this process ends in whatever way, and the workers notice.
    lifeline, held = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(
        min(workers, len(waiting)), mp_context=context, initializer=_start_worker, initargs=(lifeline,)
    )
    run_item = partial(_run_item, function)
    try:
        while waiting or futures:
            while waiting and len(futures) < 2 * workers:
                futures[pool.submit(run_item, waiting[0])] = waiting[0]
                waiting.popleft()
            for future in wait(futures, return_when=FIRST_COMPLETED).done:
                result = future.result()
                yield futures.pop(future), result
    except BrokenProcessPool:
        return list(futures.values())
    except BaseException:
        held.close()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        held.close()
        lifeline.close()
    return []


def _start_worker(lifeline: Connection) -> None:
    # Ctrl-C reaches all processes of a terminal; the main process handles it and ends the workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    limit_threads()
    # By default tqdm makes a semaphore, which is reported as leaked when the process ends abruptly.
    tqdm.set_lock(threading.RLock())
    threading.Thread(target=_end_with_main_process, args=(lifeline,), daemon=True).start()


def _end_with_main_process(lifeline: Connection) -> None:
    with suppress(EOFError, OSError):
        lifeline.recv_bytes()  # nothing is ever sent
    if signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        _thread.interrupt_main(signal.SIGTERM)
        time.sleep(CLEANUP_SECONDS)
    os._exit(1)


def _run_item(function: Callable[[Item], Result], item: Item) -> Result:
    try:
        with raise_on_signals():
            return function(item)
    except Interrupted:
        # Part files are removed, and nobody waits for a result.
        os._exit(1)


def limit_threads() -> None:
    """Use one thread in this process, because one process per core runs."""
    cv2.setNumThreads(1)
    torch.set_num_threads(1)


def run_on_ray(
    function: Callable[[Item], Result], items: Iterable[Item], address: str, workers: int
) -> Iterator[tuple[Item, Result | WorkerDied[Result]]]:
    """Apply ``function`` to items on a Ray cluster and yield each with its result, as they are done.

    One item runs on each processor. Every machine needs this package, and the same paths for all files.

    Args:
        function: what to do.
        items: its arguments.
        address: of the cluster (``HOST:PORT`` or ``auto``), or ``local``.
        workers: number of processes of a local cluster; others use all of their processors.

    Raises:
        UserError: Ray is not installed, or the cluster cannot be reached.
    """
    ray = connect_ray(address, workers)
    task = ray.remote(num_cpus=1, max_retries=0)(_run_limited)
    shared = ray.put(function)
    waiting, running = deque((item, 1) for item in items), dict[Any, tuple[Any, int]]()
    try:
        while waiting or running:
            # The cluster may grow and shrink.
            capacity = 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))
            while waiting and len(running) < capacity:
                item, attempt = waiting.popleft()
                running[task.remote(shared, item)] = (item, attempt)
            for reference in ray.wait(list(running), num_returns=1)[0]:
                item, attempt = running.pop(reference)
                try:
                    yield item, ray.get(reference)
                except ray.exceptions.RayTaskError as error:
                    # An error of the function itself.
                    raise error.cause from error
                except ray.exceptions.RayError:
                    if attempt < RAY_ATTEMPTS:
                        waiting.append((item, attempt + 1))
                    else:
                        yield item, WorkerDied()
    finally:
        ray.shutdown()


def connect_ray(address: str, workers: int) -> ModuleType:
    """Connect to a Ray cluster, or start one on this machine; return the module ``ray``.

    Raises:
        UserError: Ray is not installed, or the cluster cannot be reached.
    """
    try:
        import ray
    except ImportError as error:
        raise UserError("ray", f"cannot be loaded ({error})", 'Run: pip install "s3dnerf[ray]"') from None
    options: dict[str, Any] = {}
    if address == LOCAL_RAY:
        options = {"num_cpus": workers, "include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
    try:
        # Ray handles SIGTERM by ending the program at once, so that nothing would be cleaned up.
        with keep_handlers():
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **options)
    except Exception as error:
        # Ray raises plain exceptions too, such as for a start that takes longer than 30 seconds.
        ray.shutdown()
        reason = f"no Ray cluster can be reached at this address ({str(error).splitlines()[0]})"
        raise UserError(address, reason, "Start one with `ray start --head`, or use --ray local.") from None
    return ray


def _run_limited(function: Callable[[Item], Result], item: Item) -> Result:
    limit_threads()
    return function(item)
