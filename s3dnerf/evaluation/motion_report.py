"""Report of a comparison of motions: people-balanced scores of each row as Markdown, CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from s3dnerf.media.files import atomic_write
from s3dnerf.metrics import bootstrap_interval, measure_weighted_mean

NAN = float("nan")
Estimate = tuple[float, float, float]
"""A number and the ends of its interval; NaN where there is none."""


@dataclass
class MotionReport:
    """Scores of each row."""

    people: list[str]
    """The person of each clip."""
    clips: dict[str, list[dict[str, float]]]
    """Scores of each clip by row. Rows may have different scores; the clips of a row have the same."""
    sets: dict[str, dict[str, Estimate]]
    """Scores of a row as a whole."""
    details: tuple[str, ...] = ()
    """Rows that stand in a second table."""
    notes: list[str] = field(default_factory=list)

    def summarize(self) -> dict[str, dict[str, Estimate]]:
        """Return people-balanced means of clips with their 95% bootstrap intervals over people, and scores of sets."""
        means = {
            row: {n: self._summarize([s[n] for s in scores]) for n in scores[0]} for row, scores in self.clips.items()
        }
        return {row: scores | self.sets.get(row, {}) for row, scores in means.items()}

    def _summarize(self, values: Sequence[float]) -> Estimate:
        groups = {name: [v for v, p in zip(values, self.people, strict=True) if p == name] for name in set(self.people)}
        known = {name: [v for v in group if np.isfinite(v)] for name, group in sorted(groups.items())}
        means = {name: float(np.mean(group)) for name, group in known.items() if group}
        if not means:
            return NAN, NAN, NAN
        balanced = np.array(list(means.values()))
        return float(balanced.mean()), *bootstrap_interval(partial(measure_weighted_mean, balanced), list(means))

    def format_markdown(self) -> str:
        """Return tables with a line for each metric and a column for each row, and the notes."""
        summary = self.summarize()
        rows = [row for row in summary if row not in self.details]
        parts = [_format_table({row: summary[row] for row in rows})]
        if self.details:
            parts.append(_format_table({row: summary[row] for row in (rows[0], *self.details)}))
        return "\n\n".join([*parts, "\n".join(f"- {note}" for note in self.notes)])

    def save(self, out: Path, stem: str = "motion") -> None:
        """Write OUT/<stem>.md, OUT/<stem>.csv (a line for each row and clip) and OUT/<stem>.json."""
        table = io.StringIO()
        names = _list_names([scores[0] for scores in self.clips.values()])
        writer = csv.writer(table, lineterminator="\n")
        writer.writerow(["row", "person", *names])
        for row, scores in self.clips.items():
            for person, score in zip(self.people, scores, strict=True):
                writer.writerow([row, person, *(f"{score.get(name, NAN):.6g}" for name in names)])
        stored = {"people": self.people, "scores": self.summarize(), "notes": self.notes}
        report = json.dumps(_replace_nan(stored), indent=1)
        for name, text in (("md", self.format_markdown()), ("csv", table.getvalue()), ("json", report)):
            with atomic_write(out / f"{stem}.{name}") as temporary:
                temporary.write_text(text + "\n" * (name != "csv"), "utf-8")


def _format_table(summary: dict[str, dict[str, Estimate]]) -> str:
    lines = ["| metric | " + " | ".join(summary) + " |", "| --- |" + " ---: |" * len(summary)]
    for name in _list_names(list(summary.values())):
        cells = [_format_estimate(*scores.get(name, (NAN, NAN, NAN))) for scores in summary.values()]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _list_names(scores: Sequence[dict[str, float]] | Sequence[dict[str, Estimate]]) -> list[str]:
    return list(dict.fromkeys(name for one in scores for name in one))


def _format_number(value: float) -> str:
    return f"{value:#.3g}".rstrip(".") if abs(value) >= 0.001 or value == 0 else f"{value:.0e}"


def _format_estimate(value: float, low: float, high: float) -> str:
    if not np.isfinite(value):
        return "-"
    interval = f" ({_format_number(low)} … {_format_number(high)})" if np.isfinite(low) and low < high else ""
    return _format_number(value) + interval


def _replace_nan(value: object) -> object:
    if isinstance(value, dict):
        return {key: _replace_nan(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_replace_nan(one) for one in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
