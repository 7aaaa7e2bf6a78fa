"""Tables of scores in Markdown, CSV and JSON."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Any

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
    is_detail: bool = False
    """Whether the score is left out of the printed table of means."""


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
    Column("f_lmd", "F-LMD (px) ↓", 2, "mean distance of 468 face landmarks, not aligned"),
    Column("m_lmd", "M-LMD (px) ↓", 2, "mean distance of 40 lip landmarks, each mouth moved to its own mean"),
    Column(
        "m_lmd_fine", "M-LMD fine (px) ↓", 2, "M-LMD by the mesh with refined lips, a sharper ruler", is_detail=True
    ),
    Column(
        "lip_correlation", "lip corr. ↑", 3, "Pearson correlation of the lip opening with the real one, as recorded"
    ),
    Column(
        "lip_correlation_at_offset",
        "at own offset ↑",
        3,
        "the same after correction for the sound offset of the clip, for rows that follow the sound",
    ),
    Column(
        "sound_offset",
        "sound offset (frames)",
        1,
        "how late the sound of the real clip is, by the lip-sync discriminator, which sees no generated frame; 0 if no "
        "offset stands out, and for rows that do not follow the sound",
        is_detail=True,
    ),
    Column(
        "closure_f1",
        "closures F1 ↑",
        2,
        "frames with closed lips (lowest quarter of the range from the 5th to the 95th percentile of each video's own "
        "opening) that lie within two frames of a closed frame of the other video: F1 of precision and recall",
    ),
    Column(
        "closure_chance",
        "F1 by chance",
        2,
        "mean of closures F1 over all circular shifts of the opening by 12 frames or more",
    ),
    Column(
        "closure_f1_at_offset",
        "closures F1 at own offset ↑",
        2,
        "closures F1 after the same correction",
        is_detail=True,
    ),
    Column("lip_gain", "lip gain → 1", 2, "standard deviation of the lip opening over the real one"),
    Column(
        "lip_gain_plain",
        "lip gain, plain → 1",
        2,
        "lip gain by the plain mesh",
        is_detail=True,
    ),
    Column(
        "lip_slope",
        "lip slope → 1",
        2,
        "correlation × gain: the part of the real movement made at its moment",
    ),
    Column(
        "silent_opening",
        "silent lips → real",
        2,
        "mean lip opening in pauses of the speech of 0.4 s and longer; 0 and 1 are the 5th and 95th percentile of the "
        "real opening in the clip; compare with ground truth's",
    ),
    Column(
        "sync_confidence",
        "sync conf. ↑",
        3,
        "our lip-sync discriminator: cosine of lips and speech at the best offset, above the median of all offsets; "
        "not SyncNet's",
    ),
    Column("sync_of_real", "sync conf. (% of real)", 0, "sync conf. over ground truth's", of_row=True),
    Column("sync_distance", "sync dist. ↓", 3, "one minus that cosine", is_detail=True),
    Column(
        "sync_in_step",
        "sync in step ↑",
        3,
        "our lip-sync discriminator: cosine of lips and speech as recorded, without a search for the best offset",
        is_detail=True,
    ),
    Column(
        "lse_c",
        "LSE-C ↑",
        2,
        "SyncNet's confidence that lips and speech agree; faces cut by our mesh, not by S3FD",
    ),
    Column("lse_d", "LSE-D ↓", 2, "SyncNet's distance of lips and speech at the best offset"),
    Column(
        "cpbd",
        "CPBD ↑",
        3,
        "sharpness, the share of edges without visible blur; compare with ground truth's",
    ),
    Column("cpbd_of_real", "CPBD (% of real)", 0, "CPBD over ground truth's", of_row=True),
    Column(
        "mouth_detail",
        "mouth detail → 1",
        2,
        "root mean square gradient around the mouth over the real one; below 1 is soft",
        is_detail=True,
    ),
    Column(
        "jitter",
        "jitter (px/frame²)",
        2,
        "mean second difference of the landmarks; compare with ground truth's",
        is_detail=True,
    ),
    Column("jitter_of_real", "jitter (% of real)", 0, "jitter over ground truth's", of_row=True),
    Column("eye_openness", "eye openness → 1", 2, "mean openness of eyes over that of the real ones", is_detail=True),
    Column("eye_psnr", "eyes, PSNR (dB) ↑", 2, "PSNR within boxes around the eyes", is_detail=True),
    Column(
        "blink_rate",
        "blinks/min",
        1,
        "eyes less than 0.65 as open as usual, then open again; compare with ground truth's",
    ),
    Column(
        "found",
        "face found",
        3,
        "share of frames in which a face was seen; others have no landmark scores",
        is_detail=True,
    ),
)

ROW_TITLES = {
    "ours": "ours",
    "fd2talk": "FD2Talk, by the radiance field",
    "fd2talk_diffusion": "FD2Talk, by diffusion",
    "refined": "ours, refined by diffusion",
    "two_images": "ours, two images",
    "closed_eyes": "ours, from closed eyes",
    "closed_mouth": "ours, from a closed mouth",
    "open_mouth": "ours, from an open mouth",
    "turned": "ours, from a turned head",
    "open_mouth_two_images": "ours, from an open mouth, two images",
    "enlarged": "ours, only enlarged",
    "tracked_motion": "ours, tracked motion",
    "tracked_source": "ours, tracked motion and source",
    "frozen_mouth": "ours, frozen mouth",
    "frozen_pose": "ours, frozen pose",
    "unmoved_portrait": "unmoved portrait",
    "ground_truth": "ground truth, re-encoded",
}
UNKNOWN = "–"
NOT_MEASURED = "not measured"


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


def format_markdown_table(
    rows: Mapping[str, Scores], first_heading: str = "", columns: Sequence[Column] = COLUMNS
) -> str:
    """Return a Markdown table with one line for each row or clip."""
    lines = [
        "| " + " | ".join([first_heading, *(column.heading for column in columns)]) + " |",
        "|---|" + "---:|" * len(columns),
    ]
    for name, scores in rows.items():
        values = [format_score(getattr(scores, column.name), column.decimals) for column in columns]
        lines.append("| " + " | ".join([ROW_TITLES.get(name, name), *values]) + " |")
    return "\n".join(lines)


def choose_columns(rows: Iterable[Scores]) -> list[Column]:
    """Return the columns of the printed table: no details, and only scores that some row has."""
    entries = [scores.as_dict() for scores in rows]
    known = {name for entry in entries for name, value in entry.items() if is_known(value)}
    return [column for column in COLUMNS if column.name in known and not column.is_detail]


def is_known(value: float | None) -> bool:
    """Whether a score was measured and is defined."""
    return value is not None and not math.isnan(value)


def format_markdown(
    means: Mapping[str, Scores], clips: Mapping[str, Mapping[str, Scores]], parts: Sequence[str]
) -> str:
    """Return the whole report: a summary, means of all scores, meanings of the columns, and a table for each row.

    Args:
        means: mean scores by row.
        clips: scores by row and clip.
        parts: paragraphs and tables of the summary.
    """
    meanings = [f"- {column.heading}: {column.meaning}." for column in COLUMNS]
    texts = [
        "# Self-reenactment",
        *parts,
        "## All scores",
        format_markdown_table(means, "mean over clips"),
        "\n".join(meanings),
    ]
    of_clips = [column for column in COLUMNS if not column.of_row]
    for row, scores in clips.items():
        texts += [f"## {ROW_TITLES.get(row, row)}", format_markdown_table(scores, "clip", of_clips)]
    return "\n\n".join(texts) + "\n"


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


def jsonable_table(table: Mapping[str, Scores]) -> dict[str, dict[str, float | None]]:
    """Return scores by row or clip for JSON."""
    return {name: jsonable_scores(scores) for name, scores in table.items()}


def jsonable_scores(scores: Scores) -> dict[str, float | None]:
    """Return the scores by name, with None for NaN and infinity, which JSON does not have."""
    numbers = scores.as_dict()
    return {name: None if value is None or not math.isfinite(value) else value for name, value in numbers.items()}


def restore_scores(numbers: Mapping[str, float | None]) -> Scores:
    """Return the scores that were written by :func:`jsonable_scores`, also by an older version with fewer scores.

    Raises:
        TypeError: a score is missing that every version measured, or one is unknown.
    """
    # JSON has null both for NaN and for scores that were not measured; only the latter are optional.
    optional = {part.name for part in fields(Scores) if part.default is not MISSING}
    known: dict[str, Any] = {**numbers}
    known |= {name: math.nan for name, value in numbers.items() if value is None and name not in optional}
    return Scores(**known)


def write_number(number: float | None) -> str:
    """Format a number for CSV in full precision; empty for NaN and None."""
    return "" if number is None or math.isnan(number) else repr(number)


def list_missing(missing: Mapping[str, str]) -> list[str]:
    """Return lines ``heading: reason`` of the scores that were not measured, in the order of the columns."""
    return [f"{column.heading}: {missing[column.name]}." for column in COLUMNS if column.name in missing]
