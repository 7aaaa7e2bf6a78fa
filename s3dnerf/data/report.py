"""Report of a preparation run: OUT/report.json and a summary of a few lines."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path

from s3dnerf.data.clip import IN_SYNC_LABELS, read_info, read_valid
from s3dnerf.data.config import DataConfig
from s3dnerf.data.tracks import has_continuous_face
from s3dnerf.errors import UserError
from s3dnerf.media.audio import FPS
from s3dnerf.media.files import atomic_write

REPORT_FILE = "report.json"


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
    whole: bool
    """Whether every frame shows a face and the clip is long enough for a speech sequence."""

    @property
    def usable_for_speech(self) -> bool:
        """Whether training can learn speech from it."""
        return self.whole and self.sync in IN_SYNC_LABELS


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


def record_clip(folder: Path) -> ClipRecord:
    """Create the record of a clip. Raises UserError if the clip is damaged."""
    info = read_info(folder)
    whole = has_continuous_face(info["frames"], read_valid(folder), DataConfig.sequence_frames)
    seconds = info["frames"] / FPS
    return ClipRecord(info["id"], info["sync"], info.get("offset", 0), info.get("confidence"), seconds, whole)


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
    """Write OUT/report.json."""
    with atomic_write(out / REPORT_FILE) as path:
        path.write_text(json.dumps(asdict(report), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def check_success(report: PrepareReport, out: Path) -> None:
    """Raise UserError if videos failed and there is no clip."""
    if report.failed and not report.clips:
        first = report.failed[0]
        reason = f"none of {len(report.failed)} videos could be prepared (the first, {first.video}: {first.reason})"
        raise UserError(out, reason, f"{out / REPORT_FILE} has the reason of each.")


def format_summary(report: PrepareReport, out: Path) -> str:
    """Return two lines: what was done, and how much of the clips can train speech and why the rest cannot."""
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
    return f"{done}; see {out / REPORT_FILE}\n{teaches}: {', '.join(counts) or 'no clips'}"


def format_duration(seconds: float) -> str:
    """Format seconds in a suitable unit."""
    if seconds >= 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.1f} s"
