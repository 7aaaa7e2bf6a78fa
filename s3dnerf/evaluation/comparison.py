"""Comparison of two evaluations of the same clips, with confidence intervals over people."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from s3dnerf.evaluation.scores import OF_REAL, Scores
from s3dnerf.evaluation.tables import COLUMNS, ROW_TITLES, format_score
from s3dnerf.metrics import (
    bootstrap_interval,
    measure_geometric_mean,
    measure_log_spread,
    measure_ratio_of_means,
    measure_weighted_mean,
)

ClipTable = Mapping[str, Mapping[str, Scores]]
"""Scores by row and clip."""
Statistic = Callable[[np.ndarray | None], np.ndarray]
"""Weights of the clips, None for equal ones, to a mean or spread over clips."""

COMPARED_ROW = "ours"
REAL_ROW = "ground_truth"
GAIN_STATISTICS = {
    "lip gain, plain, geometric mean → 1": measure_geometric_mean,
    "lip gain, plain, spread ↓": measure_log_spread,
}
"""Statistics over people of the lip gain by the plain mesh, by heading."""


@dataclass(frozen=True)
class ComparedScore:
    """One score of two evaluations, over the clips for which both know it."""

    heading: str
    decimals: int
    earlier: float
    later: float
    interval: tuple[float, float]
    """Ends of the 95% bootstrap interval over people of the difference; NaN for fewer than two people."""

    def format_cells(self) -> list[str]:
        """Return the cells of a table: heading, both values, difference and interval."""
        low, high = (_format_difference(end, self.decimals) for end in self.interval)
        values = [format_score(value, self.decimals) for value in (self.earlier, self.later)]
        difference = _format_difference(self.later - self.earlier, self.decimals)
        return [self.heading, *values, difference, f"{low} … {high}"]


def compare_scores(
    earlier: ClipTable, later: ClipTable, people: Mapping[str, str], row: str = COMPARED_ROW
) -> list[ComparedScore]:
    """Compare all scores that both evaluations have.

    The means are over clips. A bootstrap sample draws people, each with all of their clips, and takes the same sample
    of both evaluations, so that differences between people cancel.

    Args:
        earlier: the evaluation to compare with.
        later: the evaluation to compare.
        people: the person in each clip.
        row: the row of both that is compared, on the clips that both have.
    """
    clips = find_common_clips(earlier, later, row)
    if not clips:
        return []
    persons = [people[clip] for clip in clips]
    compared = []
    for column in COLUMNS:
        statistics = _choose_statistics(column.name, earlier, later, row, clips)
        if statistics is not None:
            compared.append(_compare(column.heading, column.decimals, statistics, persons))
    gains = _read_known("lip_gain_plain", [earlier[row], later[row]], clips)
    if gains is not None:
        for heading, measure in GAIN_STATISTICS.items():
            compared.append(_compare(heading, 2, [partial(measure, values, persons) for values in gains], persons))
    return compared


def find_common_clips(earlier: ClipTable, later: ClipTable, row: str = COMPARED_ROW) -> list[str]:
    """Return the clips of a row that both evaluations have."""
    return [clip for clip in later.get(row, {}) if clip in earlier.get(row, {})]


def format_comparison(scores: Sequence[ComparedScore], row: str = COMPARED_ROW) -> str:
    """Return a Markdown table with one line for each score."""
    lines = [
        f"| {ROW_TITLES.get(row, row)} | earlier | this | difference | 95% interval |",
        "|---|---:|---:|---:|---:|",
    ]
    lines += ["| " + " | ".join(score.format_cells()) + " |" for score in scores]
    return "\n".join(lines)


def _compare(heading: str, decimals: int, statistics: Sequence[Statistic], people: Sequence[str]) -> ComparedScore:
    first, second = statistics
    interval = bootstrap_interval(lambda weights: second(weights) - first(weights), people)
    return ComparedScore(heading, decimals, float(first(None)), float(second(None)), interval)


def _choose_statistics(
    name: str, earlier: ClipTable, later: ClipTable, row: str, clips: Sequence[str]
) -> list[Statistic] | None:
    """Return the mean of a score in both evaluations as functions of weights; None if one does not know it."""
    if name not in OF_REAL:
        values = _read_known(name, [earlier[row], later[row]], clips)
        return None if values is None else [partial(measure_weighted_mean, one) for one in values]
    if any(not all(clip in table.get(REAL_ROW, {}) for clip in clips) for table in (earlier, later)):
        return None
    tables = [table[kind] for table in (earlier, later) for kind in (row, REAL_ROW)]
    values = _read_known(OF_REAL[name], tables, clips)
    if values is None:
        return None
    pairs = values[:2], values[2:]
    return [partial(measure_ratio_of_means, 100.0 * score, real) for score, real in pairs]


def _read_known(name: str, tables: Sequence[Mapping[str, Scores]], clips: Sequence[str]) -> list[np.ndarray] | None:
    """Return a score of each clip ``[N]`` from each table, NaN in all if it is not finite in one; None if all are."""
    values = np.array([[getattr(table[clip], name) for clip in clips] for table in tables], np.float64)
    known = np.isfinite(values).all(axis=0)
    return list(np.where(known, values, np.nan)) if known.any() else None


def _format_difference(value: float, decimals: int) -> str:
    text = format_score(value, decimals)
    return f"+{text}" if value > 0 and float(text) > 0 else text
