"""Evaluation of videos for which only the first frame and the audio of a clip are given.

Nothing else is taken from the clip, so frames cannot be compared pixel by pixel. What is compared is the opening of the
lips over time, which follows from the audio, and the agreement of lips and audio.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from tqdm import tqdm

from s3dnerf import limits
from s3dnerf.constants import FPS, SAMPLES_PER_FRAME
from s3dnerf.errors import UserError
from s3dnerf.evaluation.clip_list import find_clips, find_people
from s3dnerf.evaluation.contact_sheet import draw_row_sheet
from s3dnerf.evaluation.estimates import NAN
from s3dnerf.evaluation.motion_report import MotionReport
from s3dnerf.evaluation.rows import require_sound, seed_clip
from s3dnerf.evaluation.scores import SpeechTiming, compare_tracks
from s3dnerf.evaluation.tracking import FaceTrack, FaceTrackRecorder
from s3dnerf.media.audio import read_clean_speech, read_speech, write_wav
from s3dnerf.media.files import atomic_write, check_output, refuse_inputs
from s3dnerf.media.image import write_image
from s3dnerf.media.video import VideoWriter, stream_frames

if TYPE_CHECKING:
    from s3dnerf.models.sync_discriminator import SyncDiscriminator

REAL = "real"
BASELINE = "idle"
"""The row that lip correlations are compared with."""
REPORT_STEM = "audio_driven"
SCORES = {
    "lip_correlation": "lip correlation",
    "lip_correlation_at_offset": "at own offset",
    "lip_gain": "lip gain",
    "lip_slope": "lip slope",
    "closure_f1": "closures F1",
    "closure_f1_at_offset": "closures F1 at own offset",
    "blink_rate": "blinks/min",
    "found": "face found",
}
"""Scores of ``compare_tracks`` that need no common head motion, and their headings."""
SHEET_COLUMNS = 10
MIN_FRAMES = limits.MAX_FRAMES.minimum
"""Minimum number of frames of a clip; motion cannot be measured on fewer."""


@dataclass(frozen=True)
class AudioDrivenRow:
    """How a row is rendered."""

    pose: str
    method: str = "s3dnerf"
    next_seed: int = 0
    """Added to the seed of the evaluation, from which a clip has its own."""


AUDIO_DRIVEN_ROWS = {
    "static": AudioDrivenRow("static"),
    BASELINE: AudioDrivenRow("idle"),
    "speech": AudioDrivenRow("speech"),
    "speech_next_seed": AudioDrivenRow("speech", next_seed=1),
    "fd2talk": AudioDrivenRow("speech", "fd2talk"),
}
"""Options of ``render`` by row."""


class Animator(Protocol):
    """The part of ``TalkingHeadPipeline`` that this evaluation uses."""

    def __call__(
        self, image: Path, audio: Path, *, pose: str, method: str, seed: int, framing: str
    ) -> Iterable[np.ndarray]:
        """Return frames ``uint8 [H, W, 3]`` of the size of the image, 25 per second."""


@dataclass(frozen=True)
class EvaluatedVideos:
    """Which clips are evaluated, as by :func:`~s3dnerf.evaluation.evaluate.evaluate_clips`."""

    clips: Path
    """Folder of the mp4 files. A ``.wav`` next to a clip replaces the audio track of the clip."""
    manifest: Path | None = None
    """CSV file with the columns ``file``, ``split`` and ``identity``."""
    split: str | None = None
    """Only the clips of this split."""
    max_frames: int | None = None
    """Only so many frames of each clip."""
    only: Sequence[str] = ()
    """Only these clips or people; all if empty."""


def evaluate_audio_driven(
    videos: EvaluatedVideos,
    out: Path,
    pipeline: Animator,
    lip_sync: SyncDiscriminator,
    rows: Sequence[str] = tuple(AUDIO_DRIVEN_ROWS),
    seed: int = 0,
    checkpoint: str | None = None,
) -> MotionReport:
    """Render every clip from its first frame and its audio alone, and score lips and blinks.

    Writes OUT/rows/<row>/<clip>.mp4, OUT/side_by_side/<clip>.mp4 (all rows and the clip), OUT/sheets/<clip>.png, and
    OUT/audio_driven.md, .csv and .json, which are updated after each clip. Clips whose scores are in OUT/scores, made
    with the same settings, are not rendered again, so an interrupted evaluation continues.

    Args:
        videos: the clips.
        out: output folder.
        pipeline: renders.
        lip_sync: the lip-sync discriminator.
        rows: which of :data:`AUDIO_DRIVEN_ROWS` to render.
        seed: of motion and blinks; each clip has its own, which depends on it.
        checkpoint: name of the weights of the pipeline, by which scores of other weights are told apart.

    Raises:
        UserError: no clip can be evaluated, or an argument is invalid.
    """
    rows = tuple(dict.fromkeys(rows))
    _check_settings(videos, out, rows, seed)
    files = find_clips(videos.clips, videos.manifest, videos.split, videos.only)
    people = find_people(files, videos.manifest)
    report = MotionReport([], {row: [] for row in (REAL, *rows)}, {})
    skipped: dict[str, str] = {}
    frames = 0
    settings = {"max_frames": videos.max_frames, "seed_of_clips": seed, "checkpoint": checkpoint}
    for video in tqdm(files, desc="clips", unit="clip"):
        job = AudioDrivenJob(video, out, videos.max_frames, seed, pipeline, lip_sync)
        stored = out / "scores" / f"{video.stem}.json"
        try:
            scores, count = read_scores(stored, settings, rows) or job.run(rows)
        except UserError as error:
            skipped[video.stem] = f"{error.reason}. {error.hint}"
            continue
        write_scores(stored, settings, scores, count)
        frames += count
        report.people.append(people[video.stem])
        for row, found in scores.items():
            report.clips[row].append(found)
        report.notes = _describe(report, frames, seed, skipped)
        report.save(out, REPORT_STEM)
    if not report.people:
        reasons = "; ".join(f"{clip}: {reason}" for clip, reason in skipped.items())
        raise UserError(videos.clips, f"no clip could be evaluated ({reasons})", "Use videos of one person speaking.")
    report.notes = _describe(report, frames, seed, skipped)
    report.save(out, REPORT_STEM)
    return report


@dataclass(frozen=True)
class AudioDrivenJob:
    """Renders and scores the rows of one clip."""

    video: Path
    out: Path
    max_frames: int | None
    seed: int
    pipeline: Animator
    lip_sync: SyncDiscriminator

    def run(self, rows: Sequence[str]) -> tuple[dict[str, dict[str, float]], int]:
        """Render the rows and return their scores, those of the real clip first, and the number of frames.

        Raises UserError if the clip cannot be used.
        """
        # Imported here because scores of landmarks do not need torch.
        from s3dnerf.evaluation.sync_discriminator import find_sound_offset

        recording = read_speech(require_sound(self.video))
        count = self._count_frames(len(recording))
        sound = self.out / "sources" / f"{self.video.stem}.wav"
        write_wav(sound, recording[: count * SAMPLES_PER_FRAME])
        speech = read_clean_speech(sound)
        target = self._track(self._stream_target(count), REAL)
        if not target.found[0]:
            raise UserError(self.video, "its first frame shows no face", "Start the clip where the face is seen.")
        offset = find_sound_offset(self.lip_sync, self._stream_target(count), target, speech)
        timing = SpeechTiming(np.zeros(count, bool), offset)
        source = sound.with_suffix(".png")
        write_image(source, next(self._stream_target(count)))
        files = {REAL: self.video}
        # Lips of the real clip are as late as the sound: compared with themselves, they need no correction.
        scores = {REAL: self._score(self.video, target, target, SpeechTiming(timing.is_pause, 0), speech)}
        for row in rows:
            files[row] = self.out / "rows" / row / f"{self.video.stem}.mp4"
            self._render(files[row], row, source, sound, count)
            track = self._track(stream_frames(files[row], FPS), row)
            scores[row] = self._score(files[row], target, track, timing, speech)
        if BASELINE in scores:
            for row in rows:
                change = scores[row][SCORES["lip_correlation"]] - scores[BASELINE][SCORES["lip_correlation"]]
                scores[row][f"lip correlation minus that of {BASELINE}"] = change
        self._show(files, sound, count)
        return scores, count

    def _count_frames(self, samples: int) -> int:
        """Return the number of frames that have both picture and sound, at most ``max_frames``."""
        shown = sum(1 for _ in islice(stream_frames(self.video, FPS), self.max_frames))
        count = min(shown, samples // SAMPLES_PER_FRAME)
        if count < MIN_FRAMES:
            raise UserError(self.video, f"has only {count} frames with sound", f"Use clips of {MIN_FRAMES} or more.")
        return count

    def _stream_target(self, count: int) -> Iterator[np.ndarray]:
        return islice(stream_frames(self.video, FPS), count)

    def _track(self, frames: Iterable[np.ndarray], row: str) -> FaceTrack:
        recorder = FaceTrackRecorder()
        for frame in tqdm(frames, desc=f"{self.video.stem}: tracking {row}", unit="frame", leave=False):
            recorder.add(frame)
        return recorder.finish()

    def _render(self, path: Path, row: str, source: Path, sound: Path, count: int) -> None:
        how = AUDIO_DRIVEN_ROWS[row]
        seed = seed_clip(self.seed + how.next_seed, self.video.stem)
        frames = self.pipeline(source, sound, pose=how.pose, method=how.method, seed=seed, framing="picture")
        write_video(path, islice(frames, count), sound, f"{self.video.stem}: {row}")

    def _score(
        self, video: Path, target: FaceTrack, track: FaceTrack, timing: SpeechTiming, speech: np.ndarray
    ) -> dict[str, float]:
        from s3dnerf.evaluation.sync_discriminator import score_tracked_video

        compared = compare_tracks(target, track, timing)
        frames = islice(stream_frames(video, FPS), len(track))
        sync = score_tracked_video(self.lip_sync, frames, track, speech)
        scores = {heading: compared[name] for name, heading in SCORES.items()}
        return scores | {"sync confidence": sync.confidence if sync else NAN}

    def _show(self, files: Mapping[str, Path], sound: Path, count: int) -> None:
        """Write the side-by-side video and the sheet of all rows."""
        ordered = {row: files[row] for row in (*[row for row in files if row != REAL], REAL)}
        path = self.out / "side_by_side" / f"{self.video.stem}.mp4"
        streams = [islice(stream_frames(file, FPS), count) for file in ordered.values()]
        height, width = next(stream_frames(self.video, FPS)).shape[:2]
        together = (
            np.concatenate([frame[:height, :width] for frame in frames], axis=1)
            for frames in zip(*streams, strict=True)
        )
        write_video(path, together, sound, f"{self.video.stem}: side by side")
        moments = np.linspace(0, count - 1, min(SHEET_COLUMNS, count)).round().astype(int)
        wanted = set(moments.tolist())
        sampled = {
            row: [frame for index, frame in enumerate(islice(stream_frames(file, FPS), count)) if index in wanted]
            for row, file in ordered.items()
        }
        write_image(self.out / "sheets" / f"{self.video.stem}.png", draw_row_sheet(sampled, moments, self.video.stem))


def write_scores(
    path: Path, settings: Mapping[str, object], scores: Mapping[str, Mapping[str, float]], frames: int
) -> None:
    """Write the scores of a clip by row, its number of frames, and the settings that they were made with."""
    finite = {row: {n: v if np.isfinite(v) else None for n, v in found.items()} for row, found in scores.items()}
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps({"settings": settings, "frames": frames, "scores": finite}, indent=1), "utf-8")


def read_scores(
    path: Path, settings: Mapping[str, object], rows: Sequence[str]
) -> tuple[dict[str, dict[str, float]], int] | None:
    """Read scores of rows and of the real clip; None if the file is missing, lacks a row, or is of other settings."""
    if not path.is_file():
        return None
    try:
        tree = json.loads(path.read_text("utf-8"))
        if tree["settings"] != settings or not set(rows) <= set(tree["scores"]):
            return None
        scores = {
            row: {n: NAN if v is None else float(v) for n, v in tree["scores"][row].items()} for row in (REAL, *rows)
        }
        return scores, int(tree["frames"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(path, f"is broken ({error})", "Delete it; the clip will be rendered again.") from error


def write_video(path: Path, frames: Iterable[np.ndarray], sound: Path, description: str) -> None:
    """Write frames, at least one, with a sound."""
    frames = iter(frames)
    first = next(frames)
    height, width = first.shape[:2]
    with VideoWriter(path, (width, height), FPS, audio=sound) as writer:
        for frame in tqdm(chain([first], frames), desc=description, unit="frame", leave=False):
            writer.write(frame)


def _describe(report: MotionReport, frames: int, seed: int, skipped: Mapping[str, str]) -> list[str]:
    notes = [
        f"{len(report.people)} clips of {len(set(report.people))} people, {frames / FPS:.0f} s, seed {seed}. First "
        "frame and audio given, nothing else. People weigh the same; intervals are 95 % bootstrap intervals over "
        "people.",
        "At own offset: corrected for the sound offset of the real clip, which the lip-sync discriminator finds.",
    ]
    return [*notes, *(f"Skipped: {clip}: {reason}" for clip, reason in skipped.items())]


def _check_settings(videos: EvaluatedVideos, out: Path, rows: Sequence[str], seed: int) -> None:
    unknown = [row for row in rows if row not in AUDIO_DRIVEN_ROWS]
    if unknown or not rows:
        question = limits.suggest(unknown[0], AUDIO_DRIVEN_ROWS) if unknown else ""
        reason = f"no row {', '.join(unknown)}" if unknown else "none given"
        raise UserError("--rows", reason, f"{question}Choose from: {', '.join(AUDIO_DRIVEN_ROWS)}.")
    if videos.max_frames is not None:
        limits.MAX_FRAMES.require("--max-frames", videos.max_frames)
    limits.SEED.require("--seed", seed)
    for suffix in ("md", "csv", "json"):
        check_output(out / f"{REPORT_STEM}.{suffix}", [videos.manifest])
    for folder in (out, *(out / "rows" / row for row in rows), out / "side_by_side"):
        refuse_inputs(folder, [videos.clips])
