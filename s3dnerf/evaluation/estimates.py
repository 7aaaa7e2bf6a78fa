"""Means over people with their intervals, and tables of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from s3dnerf.metrics import bootstrap_interval, measure_closeness, measure_weighted_mean

NAN = float("nan")
Estimate = tuple[float, float, float]
"""A number and the ends of its interval; NaN where there is none."""
UNKNOWN: Estimate = (NAN, NAN, NAN)
ROUNDING = 1e-12


def estimate_mean(values: Sequence[float], people: Sequence[str]) -> Estimate:
    """Estimate the mean over people of the means of their clips, with its 95% bootstrap interval over people.

    Args:
        values: one for each clip; NaN and infinity are ignored.
        people: the person in each clip.

    Returns:
        The mean and the ends of its interval: NaN without a value, and without an interval for fewer than two people.
    """
    groups: dict[str, list[float]] = {}
    for value, person in zip(values, people, strict=True):
        if np.isfinite(value):
            groups.setdefault(person, []).append(value)
    if not groups:
        return UNKNOWN
    names = sorted(groups)
    balanced = np.array([np.mean(groups[name]) for name in names])
    return float(balanced.mean()), *bootstrap_interval(partial(measure_weighted_mean, balanced), names)


def estimate_closeness(values: Sequence[float], real: Sequence[float], people: Sequence[str]) -> Estimate:
    """Estimate :func:`~s3dnerf.metrics.measure_closeness` of two means over people, of the clips known in both.

    Args:
        values: one for each clip.
        real: the same of the real clips.
        people: the person in each clip.
    """
    groups: dict[str, list[tuple[float, float]]] = {}
    for value, wanted, person in zip(values, real, people, strict=True):
        if np.isfinite([value, wanted]).all():
            groups.setdefault(person, []).append((value, wanted))
    if not groups:
        return UNKNOWN
    names = sorted(groups)
    means = np.array([np.mean(groups[name], axis=0) for name in names])

    def measure(weights: np.ndarray) -> np.ndarray:
        sums = weights @ means
        return np.array([measure_closeness(*pair) for pair in sums])

    return float(measure(np.ones((1, len(names))))[0]), *bootstrap_interval(measure, names)


def format_estimate(value: float, low: float, high: float) -> str:
    """Format a number with its interval in three digits; a dash if it is unknown."""
    if not np.isfinite(value):
        return "-"
    interval = f" ({format_number(low)} … {format_number(high)})" if np.isfinite(low) and low < high else ""
    return format_number(value) + interval


def format_number(value: float) -> str:
    """Format a number in three digits; rounding errors of exact zeros are zero."""
    value = 0.0 if abs(value) < ROUNDING else value
    return f"{value:#.3g}".rstrip(".") if abs(value) >= 0.001 or value == 0 else f"{value:.0e}"


def format_estimates(rows: Mapping[str, Mapping[str, Estimate]], heading: str = "metric") -> str:
    """Return a Markdown table with a line for each metric and a column for each row of estimates."""
    lines = [f"| {heading} | " + " | ".join(rows) + " |", "| --- |" + " ---: |" * len(rows)]
    for name in list_names(list(rows.values())):
        cells = [format_estimate(*estimates.get(name, UNKNOWN)) for estimates in rows.values()]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def list_names(rows: Sequence[Mapping[str, object]]) -> list[str]:
    """Return all keys of some tables, in the order of their first appearance."""
    return list(dict.fromkeys(name for row in rows for name in row))


def replace_nan(value: Any) -> Any:
    """Return a tree of values with None for NaN and infinity, which JSON does not have."""
    if isinstance(value, dict):
        return {key: replace_nan(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [replace_nan(one) for one in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
