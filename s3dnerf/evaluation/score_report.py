"""The report of ``score``: means over people with intervals, differences of methods, and all that was not scored."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

from s3dnerf.constants import FPS
from s3dnerf.evaluation.estimates import NAN, Estimate, estimate_closeness, estimate_mean, format_estimates, replace_nan
from s3dnerf.evaluation.measures import Measure, choose_measures
from s3dnerf.evaluation.protocol import PROTOCOL, RULES
from s3dnerf.evaluation.score_jobs import REAL_METHOD, ScoreSettings, VideoResult
from s3dnerf.evaluation.tables import write_number
from s3dnerf.media.files import atomic_write

SCORE_FILES = ("scores.md", "scores.csv", "scores.json", "contact_sheet.png")
Values = Mapping[str, float | None]
"""Measures of one video by name: None was not measured, NaN is undefined."""


@dataclass
class ScoreReport:
    """Scores of the videos of one or more methods."""

    settings: ScoreSettings
    methods: dict[str, Path]
    """Folder of each method; the first one is compared with the others."""
    people: dict[str, str]
    """The person in each real clip."""
    real: Path
    """Folder of the real clips."""
    clips: str = ""
    """Which real clips these are."""
    missing: dict[str, str] = field(default_factory=dict)
    """Reason for each measure of public networks that was not measured."""
    scores: dict[str, dict[str, Values]] = field(default_factory=dict)
    """Measures by method and clip; those of the real clips as well."""
    failed: dict[str, dict[str, str]] = field(default_factory=dict)
    """Reason for each video that was not scored, by method and clip."""
    unmatched: dict[str, list[str]] = field(default_factory=dict)
    """Videos without a real clip, by method."""
    results: dict[str, dict[str, VideoResult]] = field(default_factory=dict)
    """What else is known of the scored videos."""
    of_sets: dict[str, dict[str, float]] = field(default_factory=dict)
    """Measures of all videos of a method together."""
    costs: dict[str, dict[str, float]] = field(default_factory=dict)
    """What ``benchmark-method`` measured of a method."""

    def __post_init__(self) -> None:
        for method in (REAL_METHOD, *self.methods):
            self.scores.setdefault(method, {})
            self.results.setdefault(method, {})
            self.failed.setdefault(method, {})

    @property
    def measures(self) -> list[Measure]:
        """Measures of the task that some video has."""
        known = {
            name
            for by_clip in self.scores.values()
            for values in by_clip.values()
            for name in values
            if values[name] is not None
        }
        known |= {name for values in self.of_sets.values() for name in values}
        return [measure for measure in choose_measures(self.settings.task) if measure.name in known]

    @property
    def undefined(self) -> list[Measure]:
        """Measures that are undefined in every video."""
        clips = [values for by_clip in self.scores.values() for values in by_clip.values()]
        known = {name for values in clips for name, value in values.items() if value is not None and isfinite(value)}
        known |= {name for values in self.of_sets.values() for name in values}
        return [measure for measure in self.measures if measure.name not in known]

    def add(self, method: str, clip: str, result: VideoResult) -> None:
        """Add what became of a video."""
        if result.reason is not None:
            self.fail([method], clip, result.reason)
            return
        self.scores[method][clip] = result.scores
        self.results[method][clip] = result

    def fail(self, methods: Iterable[str], clip: str, reason: str) -> None:
        """List the video of a clip by some methods as not scored."""
        for method in methods:
            self.failed[method][clip] = reason

    def estimate(self, method: str) -> dict[str, Estimate]:
        """Estimate the mean over people of each measure of a method, by name."""
        clips = self.scores[method]
        people = [self.people[clip] for clip in clips]
        means = {
            measure.name: estimate_mean([_to_number(values.get(measure.name)) for values in clips.values()], people)
            for measure in self.measures
        }
        return means | {name: (value, NAN, NAN) for name, value in self.of_sets.get(method, {}).items()}

    def compare(self, other: str) -> dict[str, Estimate]:
        """Estimate the mean over people of the first method minus another one, over the clips that both have.

        Differences are taken clip by clip, so that what clips have in common does not widen their intervals.
        """
        first, second = self.scores[next(iter(self.methods))], self.scores[other]
        clips = [clip for clip in first if clip in second]
        people = [self.people[clip] for clip in clips]
        return {
            name: estimate_mean(
                [_to_number(first[clip].get(name)) - _to_number(second[clip].get(name)) for clip in clips], people
            )
            for name in (measure.name for measure in self.measures)
        }

    def measure_closeness(self, method: str) -> dict[str, Estimate]:
        """Estimate how close the means of THEval's measures are to those of the real clips, by name."""
        scores, real = self.scores[method], self.scores[REAL_METHOD]
        clips = [clip for clip in scores if clip in real]
        people = [self.people[clip] for clip in clips]
        return {
            one.name: estimate_closeness(
                [_to_number(scores[clip].get(one.name)) for clip in clips],
                [_to_number(real[clip].get(one.name)) for clip in clips],
                people,
            )
            for one in self.measures
            if one.has_closeness
        }

    @property
    def core_seconds_per_second(self) -> float:
        """Processor time of scoring one second of one video, NaN without videos."""
        results = [one for by_clip in self.results.values() for one in by_clip.values()]
        frames = sum(self.results[m][c].video["scored_frames"] for m in self.methods for c in self.results[m])
        return sum(one.core_seconds for one in results) * FPS / frames if frames else NAN

    def format_means(self, details: bool = False) -> str:
        """Return the means of all methods as a Markdown table, with the measures that are details if wanted."""
        measures = self._select_measures(details)
        rows = {}
        for method in (REAL_METHOD, *self.methods):
            means = self.estimate(method)
            rows[method] = {one.heading: means[one.name] for one in measures if one.name in means}
        return format_estimates(rows)

    def format_differences(self, details: bool = False) -> str:
        """Return the differences from each other method as a Markdown table; with details, from the real clips too.

        Empty if there is nothing to compare with.
        """
        first, *others = self.methods
        measures = self._select_measures(details)
        columns = {}
        for other in [*others, REAL_METHOD] if details else others:
            differences = self.compare(other)
            columns[f"minus {other}"] = {one.heading: differences[one.name] for one in measures}
        return format_estimates(columns, first) if columns else ""

    def format_closeness(self) -> str:
        """Return the closeness of all methods as a Markdown table."""
        headings = {one.name: one.heading.partition(" → ")[0] for one in self.measures}
        rows = {}
        for method in self.methods:
            closeness = self.measure_closeness(method)
            rows[method] = {headings[name]: estimate for name, estimate in closeness.items()}
        return format_estimates(rows, "closeness to real")

    def format_counts(self) -> str:
        """Return a line with the number of scored videos and people of each method."""
        parts = []
        for method in self.methods:
            scored, failed = self.scores[method], self.failed[method]
            people = len({self.people[clip] for clip in scored})
            parts.append(f"{method}: {len(scored)} of {len(scored) + len(failed)} videos, {people} people")
        return "; ".join(parts)

    def format_costs(self) -> str:
        """Return the cost of methods as a Markdown table."""
        rows = {
            method: {name: (value, NAN, NAN) for name, value in cost.items()} for method, cost in self.costs.items()
        }
        return format_estimates(rows, "cost")

    def list_problems(self) -> list[str]:
        """Return lines of all videos that were not scored or that need a note."""
        lines = []
        for method in (REAL_METHOD, *self.methods):
            lines += [f"{method}/{clip}: not scored: {reason}" for clip, reason in sorted(self.failed[method].items())]
            if names := self.unmatched.get(method):
                lines.append(f"{method}: not scored: no real clip of the name of {', '.join(names)}")
            for clip, result in sorted(self.results[method].items()):
                lines += [f"{method}/{clip}: {note}" for note in result.notes]
        if undefined := self.undefined:
            headings = ", ".join(measure.heading for measure in undefined)
            lines.append(f"undefined in every video (too short, or without pauses): {headings}")
        return lines

    def format_summary(self) -> str:
        """Return what the command prints: counts, means, differences, and problems."""
        parts = [self.format_counts() + ".", self.format_means()]
        if differences := self.format_differences():
            parts.append(differences)
        if problems := self.list_problems():
            parts.append("\n".join(problems))
        return "\n\n".join(parts)

    def save(self, out: Path) -> None:
        """Write OUT/scores.md, OUT/scores.csv and OUT/scores.json."""
        texts = (self._format_markdown(), self._format_csv(), self._format_json())
        for name, text in zip(SCORE_FILES, texts, strict=False):
            with atomic_write(out / name) as part:
                part.write_text(text, "utf-8")

    def _select_measures(self, details: bool) -> list[Measure]:
        """Return the measures of a table: those with values, and the details if wanted."""
        undefined = self.undefined
        return [one for one in self.measures if one not in undefined and (details or not one.column.is_detail)]

    def _format_markdown(self) -> str:
        settings = ", ".join(f"{name} {value}" for name, value in asdict(self.settings).items() if value is not None)
        parts = [
            f"# Scores ({PROTOCOL}, task {self.settings.task})",
            f"{self.format_counts()}. Of {self.clips}. Settings: {settings}. {RULES}",
            "Means are over people, each the mean of their clips, with 95% bootstrap intervals over people. The real "
            "clips have the measures that need no second video.",
            self.format_means(details=True),
            "THEval's scores, 1 - |m - real| / |real| of the means above:",
            self.format_closeness(),
        ]
        if differences := self.format_differences(details=True):
            parts += [
                "## Differences",
                "Clip by clip, on the clips that both methods have. An interval without 0 is a difference that other "
                "people can be expected to show. The real clips have the measures that need no second video.",
                differences,
            ]
        if self.costs:
            parts += ["## Cost", self.format_costs()]
        problems = [f"- {line}" for line in self.list_problems()]
        if problems:
            parts += ["## Not scored, and notes", "\n".join(problems)]
        lines = [
            f"- {one.heading}: {one.column.meaning}. Reads {one.reads}. Blind to: {one.blind}." for one in self.measures
        ]
        parts += ["## Measures", "\n".join(lines)]
        unmeasured = [f"- {name}: {reason}" for name, reason in self.missing.items()]
        if unmeasured:
            parts += ["Not measured:", "\n".join(unmeasured)]
        return "\n\n".join(parts) + "\n"

    def _format_csv(self) -> str:
        text = io.StringIO()
        names = [measure.name for measure in self.measures]
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["method", "clip", "person", *names, "not_scored", "notes"])
        for method in (REAL_METHOD, *self.methods):
            for clip, values in self.scores[method].items():
                numbers = [write_number(values.get(name)) for name in names]
                notes = "; ".join(self.results[method][clip].notes)
                writer.writerow([method, clip, self.people[clip], *numbers, "", notes])
            for clip, reason in self.failed[method].items():
                writer.writerow([method, clip, self.people.get(clip, ""), *[""] * len(names), reason, ""])
        return text.getvalue()

    def _format_json(self) -> str:
        methods: dict[str, Any] = {}
        for method in (REAL_METHOD, *self.methods):
            methods[method] = {
                "folder": str(self.methods.get(method, self.real)),
                "means": _describe_estimates(self.estimate(method)),
                "closeness": _describe_estimates(self.measure_closeness(method)),
                "clips": self.scores[method],
                "videos": {clip: one.video for clip, one in self.results[method].items()},
                "notes": {clip: one.notes for clip, one in self.results[method].items() if one.notes},
                "not_scored": self.failed[method],
                "without_real_clip": self.unmatched.get(method, []),
            }
            if method in self.costs:
                methods[method]["cost"] = self.costs[method]
        tree = {
            "protocol": PROTOCOL,
            "real_clips": self.clips,
            "settings": asdict(self.settings),
            "people": self.people,
            "methods": methods,
            "differences": {
                other: _describe_estimates(self.compare(other)) for other in [*list(self.methods)[1:], REAL_METHOD]
            },
            "core_seconds_per_second": self.core_seconds_per_second,
            "missing": self.missing,
            "measures": {
                one.name: {"meaning": one.column.meaning, "reads": one.reads, "blind": one.blind}
                for one in self.measures
            },
        }
        return json.dumps(replace_nan(tree), indent=1, ensure_ascii=False) + "\n"


def _describe_estimates(estimates: Mapping[str, Estimate]) -> dict[str, dict[str, float]]:
    return {name: {"mean": mean, "low": low, "high": high} for name, (mean, low, high) in estimates.items()}


def _to_number(value: float | None) -> float:
    return NAN if value is None else value
