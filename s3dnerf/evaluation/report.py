"""Results of an evaluation, and the files they are written to."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from s3dnerf.errors import UserError, first_line
from s3dnerf.evaluation.comparison import (
    COMPARED_ROW,
    REAL_ROW,
    ComparedScore,
    compare_scores,
    find_common_clips,
    format_comparison,
)
from s3dnerf.evaluation.scores import OF_REAL, Scores, average_scores
from s3dnerf.evaluation.tables import (
    COLUMNS,
    ROW_TITLES,
    choose_columns,
    format_csv,
    format_markdown,
    format_markdown_table,
    format_score,
    jsonable_table,
    list_missing,
    restore_scores,
)
from s3dnerf.media.files import atomic_write
from s3dnerf.metrics import measure_geometric_mean, measure_log_spread, measure_ratio_of_means

REPORT_FILES = ("table.md", "table.csv", "report.json")
COMPARED_SETTINGS = ("max_frames", "seed", "fit_steps")
"""Settings that must be equal for scores to be comparable; the comparison says if they are not."""


@dataclass(frozen=True)
class GainSummary:
    """Lip gain over people."""

    mean: float
    """Geometric mean."""
    spread: float
    """Standard deviation of the natural logarithm; NaN for fewer than two people."""


@dataclass
class EvaluationReport:
    """Results of an evaluation."""

    settings: dict[str, object]
    clips: dict[str, dict[str, Scores]] = field(default_factory=dict)
    """Scores by row and clip."""
    skipped: dict[str, str] = field(default_factory=dict)
    """Reason for each clip that was skipped."""
    fid: dict[str, float] = field(default_factory=dict)
    """FID by row."""
    missing: dict[str, str] = field(default_factory=dict)
    """Reason for each score that was not measured."""
    people: dict[str, str] = field(default_factory=dict)
    """The person in each clip; clips that are not listed are people of their own."""
    subset: tuple[str, ...] = ()
    """Clips whose means the summary gives as well."""
    earlier: EvaluationReport | None = None
    """Evaluation that the summary compares with this one."""

    @property
    def means(self) -> dict[str, Scores]:
        """Mean over clips for each row; FID is NaN until all clips are scored.

        Percentages of the real value are ratios of means over clips, NaN without the row ``ground_truth``.
        """
        unknown = None if "fid" in self.missing else float("nan")
        means = {row: average_scores(by_clip.values()) for row, by_clip in self.clips.items() if by_clip}
        return {
            row: replace(mean, fid=self.fid.get(row, unknown), **self._measure_percentages(row))
            for row, mean in means.items()
        }

    @property
    def gains(self) -> dict[str, GainSummary]:
        """Lip gain by the plain mesh, over people, for each row."""
        return {row: self._summarize_gains(by_clip) for row, by_clip in self.clips.items() if by_clip}

    def restrict(self, chosen: Sequence[str]) -> EvaluationReport:
        """Return the results of some clips. FID is of all clips and is left out."""
        clips = {
            row: {clip: scores for clip, scores in by_clip.items() if clip in chosen}
            for row, by_clip in self.clips.items()
        }
        return replace(self, clips=clips, fid={}, skipped={}, subset=())

    def compare(self) -> list[ComparedScore]:
        """Compare with the earlier evaluation; empty without one."""
        if self.earlier is None:
            return []
        return compare_scores(self.earlier.clips, self.clips, {clip: self._person(clip) for clip in self._list_clips()})

    def format_table(self) -> str:
        """Return the means as a Markdown table, without details and scores that no row has."""
        return format_markdown_table(self.means, "mean over clips", choose_columns(self.means.values()))

    def format_gains(self) -> str:
        """Return a line for each row with mean and spread of the lip gain, and the gain of each clip of our row."""
        lines = []
        for row, gains in self.gains.items():
            line = (
                f"- {ROW_TITLES.get(row, row)}: {format_score(gains.mean, 2)}, spread {format_score(gains.spread, 2)}"
            )
            if row == COMPARED_ROW:
                values = {clip: scores.lip_gain_plain for clip, scores in self.clips[row].items()}
                line += "; by clip: " + ", ".join(f"{clip} {format_score(gain, 2)}" for clip, gain in values.items())
            lines.append(f"{line}.")
        heading = (
            "Lip gain by the plain mesh, geometric mean over people and spread (standard deviation over people of its "
            "natural logarithm):"
        )
        return "\n".join([heading, "", *lines])

    def format_summary(self) -> str:
        """Return the table of means, lip gains and comparison as Markdown, then the same of the subset."""
        parts = self._list_parts()
        some = self.restrict(self.subset)
        if self.subset and any(some.clips.values()):
            people = dict.fromkeys(map(self._person, next(iter(some.clips.values()))))
            parts += [f"Of these people alone: {', '.join(people)}.", *some._list_parts()]
        return "\n\n".join(parts)

    def format_missing(self) -> str:
        """Return a line for each score that was not measured, with the reason."""
        return "\n".join(f"not measured: {line}" for line in list_missing(self.missing))

    def save(self, out: Path) -> None:
        """Write OUT/table.md, OUT/table.csv and OUT/report.json."""
        means = self.means
        texts = (
            format_markdown(means, self.clips, [*self._list_notes(), self.format_summary()]),
            format_csv(means, self.clips),
            self._format_json(),
        )
        for name, text in zip(REPORT_FILES, texts, strict=True):
            with atomic_write(out / name) as temporary:
                temporary.write_text(text, "utf-8")

    def _format_json(self) -> str:
        """Return settings, means, scores by row and clip, reasons of what is missing, and meanings, as JSON.

        NaN and infinity become null, since JSON has neither; so do scores that were not measured.
        """
        tree: dict[str, object] = {
            "settings": self.settings,
            **self._describe_means(),
            "clips": {row: jsonable_table(by_clip) for row, by_clip in self.clips.items()},
            "people": {clip: self._person(clip) for clip in self._list_clips()},
            "skipped": self.skipped,
            "missing": self.missing,
            "meanings": {column.name: column.meaning for column in COLUMNS},
        }
        if self.subset:
            tree["subset"] = {"clips": self.subset, **self.restrict(self.subset)._describe_means()}
        return json.dumps(tree, indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    def _describe_means(self) -> dict[str, object]:
        gains = {
            row: {"geometric_mean": _finite_or_none(one.mean), "spread": _finite_or_none(one.spread)}
            for row, one in self.gains.items()
        }
        compared = {
            one.heading: {
                "earlier": _finite_or_none(one.earlier),
                "this": _finite_or_none(one.later),
                "interval": [*map(_finite_or_none, one.interval)],
            }
            for one in self.compare()
        }
        described: dict[str, object] = {"means": jsonable_table(self.means), "gains": gains}
        return described | ({"comparison": compared} if compared else {})

    def _measure_percentages(self, row: str) -> dict[str, float]:
        real = self.clips.get(REAL_ROW, {})
        clips = [clip for clip in self.clips[row] if clip in real]
        percentages = {}
        for percentage, name in OF_REAL.items():
            pairs = [(getattr(self.clips[row][clip], name), getattr(real[clip], name)) for clip in clips]
            ours, theirs = np.array(pairs, np.float64).reshape(-1, 2).T
            percentages[percentage] = 100.0 * float(measure_ratio_of_means(ours, theirs))
        return percentages

    def _summarize_gains(self, by_clip: Mapping[str, Scores]) -> GainSummary:
        gains = np.array([scores.lip_gain_plain for scores in by_clip.values()], np.float64)
        people = [self._person(clip) for clip in by_clip]
        return GainSummary(float(measure_geometric_mean(gains, people)), float(measure_log_spread(gains, people)))

    def _person(self, clip: str) -> str:
        return self.people.get(clip, clip)

    def _list_clips(self) -> list[str]:
        return list(dict.fromkeys(clip for by_clip in self.clips.values() for clip in by_clip))

    def _list_parts(self) -> list[str]:
        parts = [self.format_table(), self.format_gains()]
        if self.earlier is not None:
            parts += self._describe_comparison(self.earlier)
        return parts

    def _describe_comparison(self, earlier: EvaluationReport) -> list[str]:
        clips = find_common_clips(earlier.clips, self.clips)
        if not clips:
            return [f"No clip of {earlier.settings.get('out')} can be compared with this evaluation."]
        people = len(set(map(self._person, clips)))
        text = f"Compared with {earlier.settings.get('out')} on {len(clips)} clips of {people} people"
        different = [
            f"{name} {earlier.settings.get(name)} and {self.settings.get(name)}"
            for name in COMPARED_SETTINGS
            if earlier.settings.get(name) != self.settings.get(name)
        ]
        if different:
            text += f"; other settings then and now: {', '.join(different)}"
        left_out = len(self.clips.get(COMPARED_ROW, {})) - len(clips)
        if left_out:
            text += f"; {left_out} clips were not in it"
        text += ". The interval is that of the difference, by bootstrap over people."
        return [text, format_comparison(self.compare())]

    def _list_notes(self) -> list[str]:
        given = ", ".join(f"{name} {value}" for name, value in self.settings.items() if value is not None)
        notes = [f"First frame, own sound and tracked head poses given. Settings: {given}."]
        if self.skipped:
            reasons = [f"- {clip}: {reason}" for clip, reason in self.skipped.items()]
            notes.append("Skipped:\n\n" + "\n".join(reasons))
        if self.missing:
            notes.append("Not measured:\n\n" + "\n".join(f"- {line}" for line in list_missing(self.missing)))
        return notes


def load_report(folder: str | Path) -> EvaluationReport:
    """Load the scores of an evaluation from its output folder, also if an older version wrote it.

    Raises:
        UserError: there is no report, it is broken, or it lacks the row ``ours``.
    """
    path = Path(folder) / "report.json"
    try:
        tree = json.loads(path.read_text("utf-8"))
        clips = {
            row: {clip: restore_scores(numbers) for clip, numbers in by_clip.items()}
            for row, by_clip in tree["clips"].items()
        }
        settings, people = {**tree["settings"], "out": str(folder)}, dict(tree.get("people", {}))
        fid = {row: mean["fid"] for row, mean in tree["means"].items() if mean["fid"] is not None}
        missing = dict(tree["missing"])
    except OSError as error:
        hint = "Name the output folder of an earlier evaluation."
        raise UserError(path, f"cannot be read ({first_line(error)})", hint) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"is not the report of an evaluation ({first_line(error)})"
        raise UserError(path, reason, "Evaluate again.") from error
    if not clips.get(COMPARED_ROW):
        raise UserError(path, f"has no scores of the row {COMPARED_ROW}", "Evaluate with that row.")
    return EvaluationReport(settings, clips, fid=fid, missing=missing, people=people)


def _finite_or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None
