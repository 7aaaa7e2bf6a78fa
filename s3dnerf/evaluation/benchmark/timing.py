"""Timing of functions, with the backend forced where one is to be measured."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch

from s3dnerf.ops import backend

Function = Callable[[], Any]


@contextmanager
def force_backend(name: str) -> Iterator[None]:
    """Force one backend for all operators inside the block, by the environment variable ``S3DNERF_BACKEND``."""
    previous = os.environ.get(backend.VARIABLE)
    os.environ[backend.VARIABLE] = name
    try:
        yield
    finally:
        if previous is None:
            del os.environ[backend.VARIABLE]
        else:
            os.environ[backend.VARIABLE] = previous


def on_pytorch(function: Function) -> Function:
    """Return ``function`` with all operators forced to PyTorch's own."""

    @wraps(function)
    def forced() -> Any:
        with force_backend("pytorch"):
            return function()

    return forced


def time_functions(functions: Sequence[Function], repeats: int) -> list[float]:
    """Return the best time of each function in seconds.

    The functions take turns, so that disturbances affect all of them. The first turn is a warm-up.
    """
    best = [float("inf")] * len(functions)
    for turn in range(repeats + 1):
        for index, function in enumerate(functions):
            begin = time.perf_counter()
            function()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if turn > 0:
                best[index] = min(best[index], time.perf_counter() - begin)
    return best
