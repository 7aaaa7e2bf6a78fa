"""Tables of scores in Markdown, CSV and JSON."""

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
    """Heading, number of decimals and meaning of one score."""

    name: str
    heading: str
    decimals: int
    meaning: str
    of_row: bool = False
    """Whether the score is of all clips of a row together, and left out of tables of single clips."""


COLUMNS = (
    Column("psnr", "PSNR (dB) ↑", 2, "mean over frames of 10 log10(255² / squared error)"),
    Column("ssim", "SSIM ↑", 3, "uniform 7 × 7 window, data range 255, mean over color channels"),
    Column("lpips", "LPIPS ↓", 3, "distance of AlexNet's features, version 0.1"),
    Column("lpips_vgg", "LPIPS-VGG ↓", 3, "the same of VGG-16's features"),
    Column(
        "fid",
        "FID ↓",
        1,
        "Fréchet distance of Inception's features of all frames of the row; compare only rows of one table",
        of_row=True,
    ),
    Column("csim", "CSIM ↑", 3, "cosine of ArcFace embeddings of the face and of the real one in the same frame"),
    Column(
        "cpbd",
        "CPBD ↑",
        3,
        "sharpness, the share of edges without visible blur; compare with ground truth's",
    ),
    Column(
        "mouth_detail",
        "mouth detail → 1",
        2,
        "root mean square gradient around the mouth over the real one; below 1 is soft",
    ),
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
    Column("lip_gain_plain", "lip gain, plain → 1", 2, "the same gain as the plain mesh sees it"),
    Column(
        "sync_confidence",
        "sync conf. ↑",
        3,
        "our lip-sync discriminator: cosine of lips and speech at the best offset, above the median of all offsets; "
        "not SyncNet's",
    ),
    Column("sync_distance", "sync dist. ↓", 3, "one minus that cosine"),
    Column(
        "lse_c",
        "LSE-C ↑",
        2,
        "SyncNet's confidence that lips and speech agree; faces cut by our mesh, not by S3FD",
    ),
    Column("lse_d", "LSE-D ↓", 2, "SyncNet's distance of lips and speech at the best offset"),
    Column("m_lmd_fine", "M-LMD fine (px) ↓", 2, "M-LMD by the mesh with refined lips, a sharper ruler"),
    Column(
        "jitter",
        "jitter (px/frame²)",
        2,
        "mean second difference of the landmarks; compare with ground truth's",
    ),
    Column(
        "blink_rate",
        "blinks/min",
        1,
        "eyes less than 0.65 as open as usual, then open again; compare with ground truth's",
    ),
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
NOT_MEASURED = "no weights"


def format_score(value: float | None, decimals: int) -> str:
    """Format a score for a table: a dash for NaN, a note for None, the sign for infinity."""
    if value is None:
        return NOT_MEASURED
    if math.isnan(value):
        return UNKNOWN
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    text = f"{value:.{decimals}f}"
    return text.lstrip("-") if float(text) == 0 else text


def format_markdown_table(rows: Mapping[str, Scores], first_heading: str = "", of_clips: bool = False) -> str:
    """Return a Markdown table with one line for each row or clip."""
    columns = [column for column in COLUMNS if not (of_clips and column.of_row)]
    lines = [
        "| " + " | ".join([first_heading, *(column.heading for column in columns)]) + " |",
        "|---|" + "---:|" * len(columns),
    ]
    for name, scores in rows.items():
        values = [format_score(getattr(scores, column.name), column.decimals) for column in columns]
        lines.append("| " + " | ".join([ROW_TITLES.get(name, name), *values]) + " |")
    return "\n".join(lines)


def format_markdown(
    means: Mapping[str, Scores], clips: Mapping[str, Mapping[str, Scores]], notes: Sequence[str]
) -> str:
    """Return the whole report: notes, means over clips by row, meanings of the columns, then a table for each row.

    Args:
        means: mean scores by row.
        clips: scores by row and clip.
        notes: paragraphs above the table.
    """
    meanings = [f"- {column.heading}: {column.meaning}." for column in COLUMNS]
    parts = [
        "# Self-reenactment",
        *notes,
        format_markdown_table(means, "mean over clips"),
        "\n".join(meanings),
    ]
    for row, scores in clips.items():
        parts += [f"## {ROW_TITLES.get(row, row)}", format_markdown_table(scores, "clip", of_clips=True)]
    return "\n\n".join(parts) + "\n"


def format_csv(means: Mapping[str, Scores], clips: Mapping[str, Mapping[str, Scores]]) -> str:
    """Return lines ``row, clip, scores...`` in full precision; the clip of the means is called ``mean``.

    NaN and None are empty.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["row", "clip", *(column.name for column in COLUMNS)])
    for row, mean in means.items():
        for clip, scores in [*clips[row].items(), ("mean", mean)]:
            numbers = [getattr(scores, column.name) for column in COLUMNS]
            writer.writerow([row, clip, *map(write_number, numbers)])
    return text.getvalue()


def format_json(
    means: Mapping[str, Scores],
    clips: Mapping[str, Mapping[str, Scores]],
    settings: Mapping[str, object],
    skipped: Mapping[str, str],
    missing: Mapping[str, str],
) -> str:
    """Return a JSON object with settings, means, scores by row and clip, reasons of what is missing, and meanings.

    NaN and infinity become null, since JSON has neither; so do scores that were not measured.
    """
    tree = {
        "settings": dict(settings),
        "means": {row: jsonable_scores(scores) for row, scores in means.items()},
        "clips": {
            row: {clip: jsonable_scores(scores) for clip, scores in by_clip.items()} for row, by_clip in clips.items()
        },
        "skipped": dict(skipped),
        "missing": dict(missing),
        "meanings": {column.name: column.meaning for column in COLUMNS},
    }
    return json.dumps(tree, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def jsonable_scores(scores: Scores) -> dict[str, float | None]:
    """Return the scores by name, with None for NaN and infinity, which JSON does not have."""
    numbers = scores.as_dict()
    return {name: None if value is None or not math.isfinite(value) else value for name, value in numbers.items()}


def write_number(number: float | None) -> str:
    """Format a number for CSV in full precision; empty for NaN and None."""
    return "" if number is None or math.isnan(number) else repr(number)


def list_missing(missing: Mapping[str, str]) -> list[str]:
    """Return lines ``heading: reason`` of the scores that were not measured, in the order of the columns."""
    return [f"{column.heading}: {missing[column.name]}." for column in COLUMNS if column.name in missing]
