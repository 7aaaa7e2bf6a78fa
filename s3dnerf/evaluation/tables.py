"""Scores as Markdown, CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from s3dnerf.evaluation.scores import Scores


@dataclass(frozen=True)
class Column:
    """How one score is headed, how many decimals it gets, and what it means."""

    name: str
    heading: str
    decimals: int
    meaning: str


COLUMNS = (
    Column("psnr", "PSNR (dB) ↑", 2, "mean over frames of 10 log10(255² / squared error)"),
    Column("ssim", "SSIM ↑", 3, "uniform 7 × 7 window, data range 255, mean over color channels"),
    Column("f_lmd", "F-LMD (px) ↓", 2, "mean distance of 468 face landmarks, not aligned"),
    Column("m_lmd", "M-LMD (px) ↓", 2, "mean distance of 40 lip landmarks, each mouth moved to its own mean"),
    Column("lip_correlation", "lip corr. ↑", 3, "Pearson correlation of the lip opening with the real one"),
    Column("lip_gain", "lip gain → 1", 2, "standard deviation of the lip opening over the real one"),
    Column(
        "lip_slope",
        "lip slope → 1",
        2,
        "correlation × gain: the part of the real movement made at its moment",
    ),
    Column("m_lmd_fine", "M-LMD fine (px) ↓", 2, "M-LMD by the mesh with refined lips, a sharper ruler"),
    Column(
        "jitter",
        "jitter (px/frame²)",
        2,
        "mean second difference of the landmarks; compare with ground truth's",
    ),
    Column("blink_rate", "blinks/min", 1, "compare with ground truth's"),
    Column("found", "face found", 3, "share of frames in which a face was seen; others have no landmark scores"),
)

ROW_TITLES = {
    "ours": "ours",
    "frozen_mouth": "ours, frozen mouth",
    "frozen_pose": "ours, frozen pose",
    "unmoved_portrait": "unmoved portrait",
    "ground_truth": "ground truth, re-encoded",
}
UNKNOWN = "–"


def format_score(value: float, decimals: int) -> str:
    """A number for a table; what is unknown becomes a dash, infinity its sign."""
    if math.isnan(value):
        return UNKNOWN
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    text = f"{value:.{decimals}f}"
    return text.lstrip("-") if float(text) == 0 else text


def format_markdown_table(rows: Mapping[str, Scores], first_heading: str = "") -> str:
    """A Markdown table with one line for each named row."""
    lines = [
        "| " + " | ".join([first_heading, *(column.heading for column in COLUMNS)]) + " |",
        "|---|" + "---:|" * len(COLUMNS),
    ]
    for name, scores in rows.items():
        values = [format_score(getattr(scores, column.name), column.decimals) for column in COLUMNS]
        lines.append("| " + " | ".join([ROW_TITLES.get(name, name), *values]) + " |")
    return "\n".join(lines)


def format_markdown(
    means: Mapping[str, Scores], clips: Mapping[str, Mapping[str, Scores]], notes: Sequence[str]
) -> str:
    """The whole report: means over clips by row, notes, meanings of the columns, then a table for each row.

    clips: row -> clip -> scores.
    """
    meanings = [f"- {column.heading}: {column.meaning}." for column in COLUMNS]
    parts = [
        "# Self-reenactment",
        *notes,
        format_markdown_table(means, "mean over clips"),
        "\n".join(meanings),
    ]
    for row, scores in clips.items():
        parts += [f"## {ROW_TITLES.get(row, row)}", format_markdown_table(scores, "clip")]
    return "\n\n".join(parts) + "\n"


def format_csv(means: Mapping[str, Scores], clips: Mapping[str, Mapping[str, Scores]]) -> str:
    """Lines `row, clip, scores...` in full precision; means have the clip name `mean`. Unknown is empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["row", "clip", *(column.name for column in COLUMNS)])
    for row, mean in means.items():
        for clip, scores in [*clips[row].items(), ("mean", mean)]:
            numbers = [getattr(scores, column.name) for column in COLUMNS]
            writer.writerow([row, clip, *("" if math.isnan(number) else repr(number) for number in numbers)])
    return text.getvalue()


def format_json(
    means: Mapping[str, Scores],
    clips: Mapping[str, Mapping[str, Scores]],
    settings: Mapping[str, object],
    skipped: Mapping[str, str],
) -> str:
    """One JSON object: settings, means by row, scores by row and clip, skipped clips with reasons, meanings.

    Unknown and infinite numbers become null, since JSON has neither.
    """
    tree = {
        "settings": dict(settings),
        "means": {row: _json_scores(scores) for row, scores in means.items()},
        "clips": {
            row: {clip: _json_scores(scores) for clip, scores in by_clip.items()} for row, by_clip in clips.items()
        },
        "skipped": dict(skipped),
        "meanings": {column.name: column.meaning for column in COLUMNS},
    }
    return json.dumps(tree, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _json_scores(scores: Scores) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in scores.as_dict().items()}
