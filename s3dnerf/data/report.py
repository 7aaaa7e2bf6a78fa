"""Report of a preparation run: OUT/report.json, OUT/report.md and a summary of a few lines."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from s3dnerf.data.clip import IN_SYNC_LABELS, read_info, read_valid
from s3dnerf.data.config import DataConfig
from s3dnerf.data.tracks import has_continuous_face
from s3dnerf.errors import UserError
from s3dnerf.media.audio import FPS
from s3dnerf.media.files import atomic_write

REPORT_FILE, MARKDOWN_FILE = "report.json", "report.md"


@dataclass(frozen=True)
class Failure:
    """A video that could not be prepared; file size and modification time tell whether it was replaced since."""

    id: str
    video: str
    reason: str
    size: int = 0
    changed: float = 0.0


@dataclass(frozen=True)
class ClipRecord:
    """An existing clip as training sees it."""

    id: str
    sync: str
    """"ok", "corrected", "unclear" or "none"."""
    offset: int
    """Frames by which the source's audio lags, if measured."""
    confidence: float | None
    """Confidence of the offset; None if it was not measured."""
    seconds: float
    person: str
    bytes: int
    """Size of its files."""
    whole: bool
    """Whether every frame shows a face and the clip is long enough for a speech sequence."""

    @property
    def usable_for_speech(self) -> bool:
        """Whether training can learn speech from it."""
        return self.whole and self.sync in IN_SYNC_LABELS


@dataclass
class RunStatistics:
    """Work of one run."""

    frames: int = 0
    """Frames of the clips that it prepared."""
    core_seconds: float = 0.0
    """Processor time, including that of videos that failed."""
    seconds: float = 0.0
    """Duration."""

    @property
    def frames_per_core_second(self) -> float:
        """Speed of one core; 0 if nothing was prepared."""
        return self.frames / self.core_seconds if self.core_seconds else 0.0


@dataclass
class PrepareReport:
    """What a run did and which clips exist now."""

    prepared: list[str] = field(default_factory=list)
    """Clips made by this run."""
    present: list[str] = field(default_factory=list)
    """Clips that existed before."""
    measured: list[str] = field(default_factory=list)
    """Those of them, prepared by an earlier version, whose sync offset was measured by this run."""
    failed: list[Failure] = field(default_factory=list)
    """Videos that failed in this or an earlier run."""
    clips: list[ClipRecord] = field(default_factory=list)
    """All existing clips, sorted by id."""
    run: RunStatistics = field(default_factory=RunStatistics)


def record_clip(folder: Path) -> ClipRecord:
    """Create the record of a clip. Raises UserError if the clip is damaged."""
    info = read_info(folder)
    whole = has_continuous_face(info["frames"], read_valid(folder), DataConfig.sequence_frames)
    seconds = info["frames"] / FPS
    size = sum(path.stat().st_size for path in folder.iterdir())
    return ClipRecord(
        id=info["id"],
        sync=info["sync"],
        offset=info.get("offset", 0),
        confidence=info.get("confidence"),
        seconds=seconds,
        person=info["person"],
        bytes=size,
        whole=whole,
    )


def read_failures(out: Path) -> list[Failure]:
    """Read the failures of earlier runs. Raises UserError if the report was not written by this program."""
    path = out / REPORT_FILE
    if not path.is_file():
        return []
    try:
        return [Failure(**failure) for failure in json.loads(path.read_text(encoding="utf-8"))["failed"]]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(path, f"is not a report of this program ({error})", "Delete it.") from None


def write_report(out: Path, report: PrepareReport) -> None:
    """Write OUT/report.json and OUT/report.md."""
    content = {"statistics": summarize(report), **asdict(report)}
    for name, text in (
        (REPORT_FILE, json.dumps(content, indent=1, ensure_ascii=False)),
        (MARKDOWN_FILE, format_markdown(report)),
    ):
        with atomic_write(out / name) as path:
            path.write_text(f"{text}\n", encoding="utf-8")


def summarize(report: PrepareReport) -> dict[str, Any]:
    """Return the statistics of all existing clips, of the failures by reason, and of this run."""
    seconds = sum(clip.seconds for clip in report.clips)
    return {
        "clips": len(report.clips),
        "people": len({clip.person for clip in report.clips}),
        "hours": seconds / 3600,
        "hours_of_speech": sum(clip.seconds for clip in report.clips if clip.usable_for_speech) / 3600,
        "bytes_per_second": sum(clip.bytes for clip in report.clips) / seconds if seconds else 0.0,
        "failed": len(report.failed),
        "reasons": count_reasons(report.failed),
        "frames_of_this_run": report.run.frames,
        "frames_per_second": report.run.frames / report.run.seconds if report.run.seconds else 0.0,
        "frames_per_core_second": report.run.frames_per_core_second,
    }


def count_reasons(failures: list[Failure]) -> dict[str, int]:
    """Count failures by reason, the most frequent first; numbers in reasons do not tell them apart."""
    counts = Counter(re.sub(r"\d+(\.\d+)?", "N", failure.reason) for failure in failures)
    return dict(counts.most_common())


def format_markdown(report: PrepareReport) -> str:
    """Return the statistics as a page."""
    facts = summarize(report)
    rows = [
        ("clips", f"{facts['clips']:,}"),
        ("people", f"{facts['people']:,}"),
        ("hours", f"{facts['hours']:.2f}"),
        ("hours that teach speech", f"{facts['hours_of_speech']:.2f}"),
        ("kB per second of video", f"{facts['bytes_per_second'] / 1000:.1f}"),
        ("videos that failed", f"{facts['failed']:,}"),
        ("frames of this run", f"{facts['frames_of_this_run']:,}"),
        ("frames per second", f"{facts['frames_per_second']:.1f}"),
        ("frames per second of processor time", f"{facts['frames_per_core_second']:.1f}"),
    ]
    lines = ["# Preparation", "", "| | |", "| --- | ---: |", *(f"| {name} | {value} |" for name, value in rows)]
    if facts["reasons"]:
        lines += ["", "| reason of a failure | videos |", "| --- | ---: |"]
        lines += [f"| {_escape_cell(reason)} | {count:,} |" for reason, count in facts["reasons"].items()]
    return "\n".join(lines)


def _escape_cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def check_success(report: PrepareReport, out: Path) -> None:
    """Raise UserError if videos failed and there is no clip."""
    if report.failed and not report.clips:
        first = report.failed[0]
        reason = f"none of {len(report.failed)} videos could be prepared (the first, {first.video}: {first.reason})"
        raise UserError(out, reason, f"{out / REPORT_FILE} has the reason of each.")


def format_summary(report: PrepareReport, out: Path) -> str:
    """Return a few lines: what was done, how much of the clips can train speech and why the rest cannot, the speed."""
    measured = f" ({len(report.measured)} of them measured now)" if report.measured else ""
    done = (
        f"{len(report.prepared)} prepared, {len(report.present)} already there{measured}, {len(report.failed)} failed"
    )
    total = sum(clip.seconds for clip in report.clips)
    usable = sum(clip.seconds for clip in report.clips if clip.usable_for_speech)
    whole = Counter(clip.sync for clip in report.clips if clip.whole)
    names = (("ok", "ok"), ("corrected", "corrected"), ("unclear", "unclear"), ("none", "silent"))
    counts = [f"{whole[sync]} {name}" for sync, name in names if whole[sync]]
    broken = sum(not clip.whole for clip in report.clips)
    counts += [f"{broken} too short or with frames without a face"] if broken else []
    share = f" ({usable / total:.0%})" if total else ""
    teaches = f"of {format_duration(total)}, {format_duration(usable)}{share} can teach speech"
    lines = [f"{done}; see {out / MARKDOWN_FILE}", f"{teaches}: {', '.join(counts) or 'no clips'}"]
    if report.run.frames:
        lines.append(f"{report.run.frames_per_core_second:.1f} frames per second of processor time")
    return "\n".join(lines)


def format_duration(seconds: float) -> str:
    """Format seconds in a suitable unit."""
    if seconds >= 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.1f} s"
