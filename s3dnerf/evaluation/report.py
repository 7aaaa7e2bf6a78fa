"""Results of an evaluation, and the files they are written to."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from s3dnerf.evaluation.scores import Scores, average_scores
from s3dnerf.evaluation.tables import (
    ROW_TITLES,
    UNKNOWN,
    format_csv,
    format_json,
    format_markdown,
    format_markdown_table,
    list_missing,
)
from s3dnerf.media.files import atomic_write

REPORT_FILES = ("table.md", "table.csv", "report.json")


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

    @property
    def means(self) -> dict[str, Scores]:
        """Mean over clips for each row; FID is NaN until all clips are scored."""
        unknown = None if "fid" in self.missing else float("nan")
        means = {row: average_scores(by_clip.values()) for row, by_clip in self.clips.items() if by_clip}
        return {row: replace(mean, fid=self.fid.get(row, unknown)) for row, mean in means.items()}

    def format_table(self) -> str:
        """Return the means as a Markdown table."""
        return format_markdown_table(self.means, "mean over clips")

    def format_gain_spread(self) -> str:
        """Return one line with the spread of the lip gain over clips, for each row."""
        spreads = []
        for row, by_clip in self.clips.items():
            gains = np.array([scores.lip_gain_plain or np.nan for scores in by_clip.values()])
            logarithms = np.log(gains[gains > 0])
            if len(logarithms) > 1:
                spreads.append(f"{ROW_TITLES.get(row, row)} {logarithms.std(ddof=1):.2f}")
        return f"Standard deviation over clips of the logarithm of lip gain, plain: {'; '.join(spreads) or UNKNOWN}."

    def format_missing(self) -> str:
        """Return a line for each score that was not measured, with the reason."""
        return "\n".join(f"not measured: {line}" for line in list_missing(self.missing))

    def save(self, out: Path) -> None:
        """Write OUT/table.md, OUT/table.csv and OUT/report.json."""
        texts = (
            format_markdown(self.means, self.clips, self._list_notes()),
            format_csv(self.means, self.clips),
            format_json(self.means, self.clips, self.settings, self.skipped, self.missing),
        )
        for name, text in zip(REPORT_FILES, texts, strict=True):
            with atomic_write(out / name) as temporary:
                temporary.write_text(text, "utf-8")

    def _list_notes(self) -> list[str]:
        given = ", ".join(f"{name} {value}" for name, value in self.settings.items() if value is not None)
        notes = [f"First frame, own sound and tracked head poses given. Settings: {given}."]
        notes.append(self.format_gain_spread())
        if self.skipped:
            reasons = [f"- {clip}: {reason}" for clip, reason in self.skipped.items()]
            notes.append("Skipped:\n\n" + "\n".join(reasons))
        if self.missing:
            notes.append("Not measured:\n\n" + "\n".join(f"- {line}" for line in list_missing(self.missing)))
        return notes
