"""What preparation did: OUT/report.json, and its summary in a few lines."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path

from s3dnerf.data.clip import IN_STEP, read_info, read_valid
from s3dnerf.data.dataset import DataConfig, is_whole
from s3dnerf.errors import UserError
from s3dnerf.media.audio import FPS
from s3dnerf.media.files import replace_when_done

REPORT_FILE = "report.json"


@dataclass(frozen=True)
class Failure:
    """A video that could not be prepared; size and time of change tell whether it was replaced since."""

    id: str
    video: str
    reason: str
    size: int = 0
    changed: float = 0.0


@dataclass(frozen=True)
class ClipRecord:
    """A clip that is there, as training will see it."""

    id: str
    sync: str
    """"ok", "corrected", "unclear" or "none"."""
    offset: int
    """Frames by which the source's sound comes late, where it was measured."""
    confidence: float | None
    """Of the offset; None where it was not measured."""
    seconds: float
    whole: bool
    """Whether the face is seen throughout and the clip is long enough for a stretch of speech."""

    @property
    def teaches_speech(self) -> bool:
        """Whether training learns speech from it."""
        return self.whole and self.sync in IN_STEP


@dataclass
class PrepareReport:
    """What a run did, and what is there now."""

    prepared: list[str] = field(default_factory=list)
    """Clips made by this run."""
    present: list[str] = field(default_factory=list)
    """Clips that were there before."""
    measured: list[str] = field(default_factory=list)
    """Those of them, prepared by an earlier version, whose sound offset was measured by this run."""
    failed: list[Failure] = field(default_factory=list)
    """Videos that failed, now or before."""
    clips: list[ClipRecord] = field(default_factory=list)
    """All clips that are there, sorted by id."""


def record_clip(folder: Path) -> ClipRecord:
    """Read what the report says of a clip. Raises UserError when it is damaged."""
    info = read_info(folder)
    whole = is_whole(info["frames"], read_valid(folder), DataConfig.sequence_frames)
    seconds = info["frames"] / FPS
    return ClipRecord(info["id"], info["sync"], info.get("offset", 0), info.get("confidence"), seconds, whole)


def read_failures(out: Path) -> list[Failure]:
    """Read the failures of earlier runs. Raises UserError when the report is none of this program."""
    path = out / REPORT_FILE
    if not path.is_file():
        return []
    try:
        return [Failure(**failure) for failure in json.loads(path.read_text(encoding="utf-8"))["failed"]]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(path, f"is not a report of this program ({error})", "Delete it.") from None


def write_report(out: Path, report: PrepareReport) -> None:
    """Write OUT/report.json."""
    with replace_when_done(out / REPORT_FILE) as path:
        path.write_text(json.dumps(asdict(report), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def check_success(report: PrepareReport, out: Path) -> None:
    """Raise UserError when videos failed and no clip is there."""
    if report.failed and not report.clips:
        first = report.failed[0]
        reason = f"none of {len(report.failed)} videos could be prepared (the first, {first.video}: {first.reason})"
        raise UserError(out, reason, f"{out / REPORT_FILE} has the reason of each.")


def format_summary(report: PrepareReport, out: Path) -> str:
    """Return two lines: what was done, and what share of the clips can teach speech and why the rest cannot."""
    measured = f" ({len(report.measured)} of them measured now)" if report.measured else ""
    done = (
        f"{len(report.prepared)} prepared, {len(report.present)} already there{measured}, {len(report.failed)} failed"
    )
    total = sum(clip.seconds for clip in report.clips)
    teaching = sum(clip.seconds for clip in report.clips if clip.teaches_speech)
    whole = Counter(clip.sync for clip in report.clips if clip.whole)
    names = (("ok", "ok"), ("corrected", "corrected"), ("unclear", "unclear"), ("none", "silent"))
    counts = [f"{whole[sync]} {name}" for sync, name in names if whole[sync]]
    broken = sum(not clip.whole for clip in report.clips)
    counts += [f"{broken} too short or with frames without a face"] if broken else []
    share = f" ({teaching / total:.0%})" if total else ""
    teaches = f"of {format_duration(total)}, {format_duration(teaching)}{share} can teach speech"
    return f"{done}; see {out / REPORT_FILE}\n{teaches}: {', '.join(counts) or 'no clips'}"


def format_duration(seconds: float) -> str:
    """Return seconds in the unit that suits them."""
    if seconds >= 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.1f} s"
