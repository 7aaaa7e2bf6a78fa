"""Self-reenactment: a clip's first frame is the portrait, its own sound the speech, its poses the motion.

Every row of the table is a video on disk, made from the same clip, and is measured from that file:

- `ours`: the model, given the first frame, the sound and the tracked head poses, nothing else.
- `frozen_mouth`: the same with speech kept from the lips; what the given poses alone are worth.
- `frozen_pose`: the same with the head held still; what the lips alone are worth.
- `unmoved_portrait`: the first frame, repeated.
- `ground_truth`: the real frames, written by the same video writer; the ceiling that any row can reach.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Protocol

import numpy as np
from tqdm import tqdm

from s3dnerf.errors import UserError
from s3dnerf.evaluation.contact_sheet import (
    FACE_SIDE,
    OVERVIEW_SIDE,
    choose_moments,
    draw_clip_sheet,
    stack_sheets,
)
from s3dnerf.evaluation.scores import Measurement, Scores, average_scores, measure_clip
from s3dnerf.evaluation.tables import (
    ROW_TITLES,
    format_csv,
    format_json,
    format_markdown,
    format_markdown_table,
)
from s3dnerf.evaluation.tracking import FaceRuler, FaceTrack
from s3dnerf.media.audio import FPS
from s3dnerf.media.files import replace_when_done
from s3dnerf.media.image import write_image
from s3dnerf.media.video import VideoWriter, probe_video, stream_frames

ROWS = ("ours", "frozen_mouth", "frozen_pose", "unmoved_portrait", "ground_truth")
MODEL_ROWS = ("ours", "frozen_mouth", "frozen_pose")
MIN_FRAMES = 5


class Reenactor(Protocol):
    """The part of `TalkingHeadPipeline` that evaluation needs."""

    def reenact(
        self,
        video: Path,
        audio: Path | None,
        freeze_mouth: bool = False,
        freeze_pose: bool = False,
        max_frames: int | None = None,
        seed: int = 0,
        landmarks: np.ndarray | None = None,
    ) -> Iterator[np.ndarray]:
        """Yield uint8 [H, W, 3] in the video's framing and size, one for each frame at 25 a second."""


@dataclass
class EvaluationReport:
    """What an evaluation found. clips: row -> clip -> scores; skipped: clip -> reason."""

    settings: dict[str, object]
    clips: dict[str, dict[str, Scores]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)

    @property
    def means(self) -> dict[str, Scores]:
        """Mean over clips for each row."""
        return {row: average_scores(by_clip.values()) for row, by_clip in self.clips.items() if by_clip}

    def format_table(self) -> str:
        """The Markdown table of the means."""
        return format_markdown_table(self.means, "mean over clips")

    def save(self, out: Path) -> None:
        """Write OUT/table.md, OUT/table.csv and OUT/report.json."""
        texts = {
            "table.md": format_markdown(self.means, self.clips, self._list_notes()),
            "table.csv": format_csv(self.means, self.clips),
            "report.json": format_json(self.means, self.clips, self.settings, self.skipped),
        }
        for name, text in texts.items():
            with replace_when_done(out / name) as temporary:
                temporary.write_text(text, "utf-8")

    def _list_notes(self) -> list[str]:
        given = ", ".join(f"{name} {value}" for name, value in self.settings.items() if value is not None)
        notes = [f"First frame, own sound and tracked head poses given. Settings: {given}."]
        if self.skipped:
            reasons = [f"- {clip}: {reason}" for clip, reason in self.skipped.items()]
            notes.append("Skipped:\n\n" + "\n".join(reasons))
        return notes


def evaluate_clips(
    clips: str | Path,
    out: str | Path,
    checkpoint: str | Path | None = None,
    manifest: str | Path | None = None,
    split: str | None = None,
    max_frames: int | None = None,
    device: str = "cpu",
    rows: Sequence[str] = ROWS,
    seed: int = 0,
    pipeline: Reenactor | None = None,
) -> EvaluationReport:
    """Reenact every mp4 in the folder `clips` and compare it with the original, frame by frame.

    Writes OUT/<clip>.mp4 (row `ours`), OUT/rows/<row>/<clip>.mp4 (the other rows), OUT/sheets/<clip>.png
    and OUT/contact_sheet.png (real above ours), and OUT/table.md, table.csv, report.json, brought up to
    date after each clip. A `.wav` beside a clip is preferred to the sound inside it.

    manifest, split: a CSV with the columns `file` and `split`; only clips of that split are taken.
    max_frames: take that many frames of each clip at 25 a second. checkpoint: a folder or hub id, None for
    the weights that ship with the package. pipeline: used instead of loading the checkpoint. Clips that
    cannot be used (no face, no sound, broken) are listed with a reason. Raises UserError if none is left or
    a setting is wrong.
    """
    clips, out, rows = Path(clips), Path(out), tuple(rows)
    _check_settings(clips, out, rows, max_frames)
    videos = find_clips(clips, manifest, split)
    if pipeline is None and set(rows) & set(MODEL_ROWS):
        pipeline = _load_pipeline(checkpoint, device)
    settings = {"clips": str(clips), "checkpoint": str(checkpoint) if checkpoint else None, "split": split}
    report = EvaluationReport(settings | {"max_frames": max_frames, "seed": seed}, {row: {} for row in rows})
    overview: list[np.ndarray] = []
    for video in tqdm(videos, desc="clips", unit="clip"):
        job = _ClipJob(video, out, max_frames, seed, pipeline)
        try:
            result = job.run(rows)
        except UserError as error:
            report.skipped[video.stem] = f"{error.reason}. {error.cure}"
            continue
        for row, measurement in result.rows.items():
            report.clips[row][video.stem] = measurement.scores
        overview.append(result.draw_sheet(OVERVIEW_SIDE))
        write_image(out / "sheets" / f"{video.stem}.png", result.draw_sheet())
        write_image(out / "contact_sheet.png", stack_sheets(overview))
        report.save(out)
    if not overview:
        reasons = "; ".join(f"{clip}: {reason}" for clip, reason in report.skipped.items())
        raise UserError(
            clips, f"no clip could be evaluated ({reasons})", "Use videos of one person speaking."
        )
    report.save(out)
    return report


def find_clips(clips: Path, manifest: str | Path | None = None, split: str | None = None) -> list[Path]:
    """The mp4 files in folder `clips`, sorted; with a manifest only those that it lists under `split`.

    Raises UserError for a missing folder, a manifest without the columns `file` and `split`, or an empty
    choice.
    """
    if not clips.is_dir():
        raise UserError(clips, "no such folder", "Name the folder that holds the mp4 files.")
    videos = sorted(clips.glob("*.mp4"))
    if manifest is None:
        if split is not None:
            raise UserError(
                f"split {split}", "no manifest tells which clips are in it", "Add --manifest FILE.csv."
            )
    else:
        listed = _read_manifest(Path(manifest), split)
        videos = [video for video in videos if video.stem in listed]
    if not videos:
        wanted = "no mp4 file" if split is None else f"no mp4 file of split {split}"
        raise UserError(clips, f"holds {wanted}", "Choose another folder or split.")
    return videos


@dataclass(frozen=True)
class _ClipResult:
    title: str
    track: FaceTrack
    moments: np.ndarray
    real: list[np.ndarray]
    rows: dict[str, Measurement]

    def draw_sheet(self, side: int = FACE_SIDE) -> np.ndarray:
        """Contact sheet of the first row made."""
        row, measurement = next(iter(self.rows.items()))
        label = ROW_TITLES[row].split(",")[0]
        return draw_clip_sheet(
            self.real, measurement.picks, self.track, self.moments, self.title, label, side
        )


@dataclass(frozen=True)
class _ClipJob:
    """Makes and measures all rows of one clip."""

    video: Path
    out: Path
    max_frames: int | None
    seed: int
    pipeline: Reenactor | None

    def run(self, rows: Sequence[str]) -> _ClipResult:
        sound = _find_sound(self.video)
        track = self._track_real()
        moments = choose_moments(track)
        real = [frame for index, frame in enumerate(self._stream_real()) if index in set(moments.tolist())]
        measured: dict[str, Measurement] = {}
        for row in rows:
            made = self.out / (
                f"{self.video.stem}.mp4" if row == "ours" else f"rows/{row}/{self.video.stem}.mp4"
            )
            self._write(made, self._make_frames(row, sound, track), sound, len(track), row)
            measured[row] = measure_clip(
                self._stream_real(), stream_frames(made, FPS), track, moments.tolist()
            )
        return _ClipResult(self.video.stem, track, moments, real, measured)

    def _stream_real(self) -> Iterator[np.ndarray]:
        return islice(stream_frames(self.video, FPS), self.max_frames)

    def _track_real(self) -> FaceTrack:
        with FaceRuler() as ruler:
            for frame in self._stream_real():
                ruler.add(frame)
            track = ruler.finish()
        if len(track) < MIN_FRAMES:
            raise UserError(
                self.video, f"has only {len(track)} frames", f"Use clips of {MIN_FRAMES} or more."
            )
        if not track.found[0]:
            raise UserError(
                self.video, "its first frame shows no face", "Start the clip where the face is seen."
            )
        return track

    def _make_frames(self, row: str, sound: Path, track: FaceTrack) -> Iterable[np.ndarray]:
        if row == "ground_truth":
            return self._stream_real()
        if row == "unmoved_portrait":
            return repeat(next(self._stream_real()), len(track))
        return self.pipeline.reenact(
            self.video,
            sound,
            freeze_mouth=row == "frozen_mouth",
            freeze_pose=row == "frozen_pose",
            max_frames=self.max_frames,
            seed=self.seed,
            landmarks=track.filled,
        )

    def _write(self, path: Path, frames: Iterable[np.ndarray], sound: Path, count: int, row: str) -> None:
        frames = iter(frames)
        first = next(frames)
        height, width = first.shape[:2]
        progress = tqdm(total=count, desc=f"{self.video.stem}: {row}", unit="frame", leave=False)
        with progress, VideoWriter(path, (width, height), FPS, audio=sound) as writer:
            for frame in chain([first], frames):
                writer.write(frame)
                progress.update()
            if writer.frames != count:
                raise ValueError(f"{row} made {writer.frames} frames of {self.video}, which has {count}")


def _check_settings(clips: Path, out: Path, rows: Sequence[str], max_frames: int | None) -> None:
    unknown = [row for row in rows if row not in ROWS]
    if unknown or not rows:
        raise UserError("rows", f"{', '.join(unknown) or 'none given'}", f"Choose from: {', '.join(ROWS)}.")
    if max_frames is not None and max_frames < MIN_FRAMES:
        raise UserError("max-frames", f"{max_frames} is too few", f"Use {MIN_FRAMES} or more.")
    if out.resolve() == clips.resolve():
        raise UserError(
            out, "is the folder of the clips, which would be overwritten", "Choose another --out."
        )


def _load_pipeline(checkpoint: str | Path | None, device: str) -> Reenactor:
    # Imported late: measuring rows that need no model needs no torch either.
    from s3dnerf.pipeline import TalkingHeadPipeline

    return TalkingHeadPipeline.from_pretrained(checkpoint, device=device)


def _find_sound(video: Path) -> Path:
    beside = video.with_suffix(".wav")
    if beside.is_file():
        return beside
    if not probe_video(video).has_audio:
        raise UserError(video, "has no sound", "Put a .wav of the same name beside it.")
    return video


def _read_manifest(path: Path, split: str | None) -> set[str]:
    """Names (without suffix) of the files that a manifest lists, of one split if given."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            missing = {"file", *(["split"] if split else [])} - set(reader.fieldnames or ())
            if missing:
                reason = f"has no column {' and no column '.join(sorted(missing))}"
                raise UserError(path, reason, "The first line must name the columns.")
            entries = list(reader)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(path, f"cannot be read ({error})", "Name a CSV file.") from error
    return {Path(entry["file"]).stem for entry in entries if split is None or entry["split"] == split}
