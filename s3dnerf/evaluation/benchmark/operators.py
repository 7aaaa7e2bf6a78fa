"""Speed of each operator, against its PyTorch reference and other libraries."""

from __future__ import annotations

from typing import Any

import torch

from s3dnerf import limits
from s3dnerf.device import choose_device
from s3dnerf.evaluation.benchmark.libraries import COMPILED, UnavailableError, warm_up
from s3dnerf.evaluation.benchmark.operator_cases import SEPARATE, make_cases
from s3dnerf.evaluation.benchmark.report import Table
from s3dnerf.evaluation.benchmark.timing import time_functions
from s3dnerf.ops import backend

MIN_RATIO = 1.5
"""A kernel stays if it is at least this many times as fast as the best library."""


def measure_kernels(
    points: int = 2**18, repeats: int = 5, device: str = "auto", with_libraries: bool = False
) -> list[Table]:
    """Time every operator, forward and with its backward pass.

    Baselines are timed twice: with PyTorch's default allocator, and in turns with ours after
    :func:`s3dnerf.ops.backend.keep_freed_memory`, which is for programs that make many large tensors. The second table
    compares ours with the best library under the latter condition.

    Args:
        points: points (samples) that an operator processes.
        repeats: runs of each; the fastest counts.
        device: "auto", "cpu" or "cuda".
        with_libraries: measure ``torch.compile`` of the references too, in float32. Compiling takes minutes.
    """
    limits.POINTS.require("points", points)
    limits.REPEATS.require("repeats", repeats)
    place = choose_device(device)
    by_default = [
        {name: time_functions([baseline], case.repeats)[0] for name, baseline in case.baselines.items()}
        for case in make_cases(points, repeats, place)
    ]
    backend.keep_freed_memory()
    rows, best = [], []
    for case, default in zip(make_cases(points, repeats, place), by_default, strict=True):
        times: dict[str, tuple[float, float]] = {}
        for name, baseline in case.baselines.items():
            ours, other = time_functions([case.ours, baseline], case.repeats)
            times[name] = ours, other
            rows.append(_format_row(case.operator, points, ours, name, other, default[name]))
        note = "not measured"
        if with_libraries and case.compiled is not None:
            try:
                ours, other = time_functions([case.ours, warm_up(case.compiled())], case.repeats)
                times[COMPILED], note = (ours, other), f"{1e3 * other:.2f} ms"
                rows.append(_format_row(case.operator, points, ours, COMPILED, other))
            except UnavailableError as reason:
                note = str(reason)
        best.append(_compare_with_best(case.operator, times, note))
    machine = f"{points} points, {torch.get_num_threads()} threads, {place.type}"
    return [Table(f"Operators, {machine}", rows), Table(f"Operators against the best library, {machine}", best)]


def _format_row(
    operator: str, points: int, ours: float, name: str, kept: float, default: float | None = None
) -> dict[str, Any]:
    return {
        "operator": operator,
        "ours ms": ours * 1e3,
        "million points/s": points / ours / 1e6,
        "compared with": name,
        "its ms": "" if default is None else default * 1e3,
        "times as fast": "" if default is None else default / ours,
        "its ms, memory kept": kept * 1e3,
        "times as fast, memory kept": kept / ours,
    }


def _compare_with_best(operator: str, times: dict[str, tuple[float, float]], compiled: str) -> dict[str, Any]:
    """Compare with the library that has the lowest time relative to ours, measured in turns with it."""
    libraries = {name: other / ours for name, (ours, other) in times.items() if name != SEPARATE}
    best = min(libraries, key=libraries.__getitem__)
    return {
        "operator": operator,
        "ours ms": 1e3 * times[best][0],
        COMPILED: compiled,
        "best library": best,
        "its ms": 1e3 * times[best][1],
        "times as fast as it": libraries[best],
        f"at least {MIN_RATIO}": "yes" if libraries[best] >= MIN_RATIO else "no",
    }
