"""Report of a comparison of motions: people-balanced scores of each row as Markdown, CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import dataclass, field
from pathlib import Path

from s3dnerf.evaluation.estimates import NAN, Estimate, estimate_mean, format_estimates, list_names, replace_nan
from s3dnerf.media.files import atomic_write


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
            row: {n: estimate_mean([s[n] for s in scores], self.people) for n in scores[0]}
            for row, scores in self.clips.items()
        }
        return {row: scores | self.sets.get(row, {}) for row, scores in means.items()}

    def format_markdown(self) -> str:
        """Return tables with a line for each metric and a column for each row, and the notes."""
        summary = self.summarize()
        rows = [row for row in summary if row not in self.details]
        parts = [format_estimates({row: summary[row] for row in rows})]
        if self.details:
            parts.append(format_estimates({row: summary[row] for row in (rows[0], *self.details)}))
        return "\n\n".join([*parts, "\n".join(f"- {note}" for note in self.notes)])

    def save(self, out: Path, stem: str = "motion") -> None:
        """Write OUT/<stem>.md, OUT/<stem>.csv (a line for each row and clip) and OUT/<stem>.json."""
        table = io.StringIO()
        names = list_names([scores[0] for scores in self.clips.values()])
        writer = csv.writer(table, lineterminator="\n")
        writer.writerow(["row", "person", *names])
        for row, scores in self.clips.items():
            for person, score in zip(self.people, scores, strict=True):
                writer.writerow([row, person, *(f"{score.get(name, NAN):.6g}" for name in names)])
        stored = {"people": self.people, "scores": self.summarize(), "notes": self.notes}
        report = json.dumps(replace_nan(stored), indent=1)
        for name, text in (("md", self.format_markdown()), ("csv", table.getvalue()), ("json", report)):
            with atomic_write(out / f"{stem}.{name}") as temporary:
                temporary.write_text(text + "\n" * (name != "csv"), "utf-8")
