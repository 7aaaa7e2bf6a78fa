"""Scoring of the videos of one real clip by all methods, in a process of its own, with results kept on disk."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

import s3dnerf
from s3dnerf.constants import FPS, SAMPLE_RATE
from s3dnerf.errors import UserError, first_line
from s3dnerf.evaluation.contact_sheet import draw_clip_sheet, select_sheet_frames
from s3dnerf.evaluation.estimates import replace_nan
from s3dnerf.evaluation.frame_measures import FrameMeasures
from s3dnerf.evaluation.framing import FramedVideo, frame_generated, frame_real
from s3dnerf.evaluation.measures import OF_VIDEO, ScoredPair, choose_measures, measure_pair
from s3dnerf.evaluation.scorer import MIN_FRAMES, Scorer, Target, find_sound, find_speech_pauses, load_scorer
from s3dnerf.evaluation.scores import Measurement, SpeechTiming, mean_ignoring_nan
from s3dnerf.evaluation.tracking import FaceTrack
from s3dnerf.evaluation.weights_folder import find_weights
from s3dnerf.face.landmarks import to_pixels
from s3dnerf.media.audio import SILENCE_RMS, measure_level, read_clean_speech
from s3dnerf.media.files import atomic_write
from s3dnerf.media.image import write_image
from s3dnerf.media.video import probe_video
from s3dnerf.metrics.face_descriptor import FaceDescriptor, has_face_descriptor, measure_identity_distance

REAL_METHOD = "real"
"""Name of the real clips among the methods."""
SHORT_SECONDS, SHORT_SHARE = 0.5, 0.02
"""A video may be shorter than its real clip by half a second or 2%, whichever is more."""


@dataclass(frozen=True)
class ScoreSettings:
    """How videos are scored."""

    task: str = "self"
    """Of ``measures.TASKS``."""
    crop: str = "frame"
    """Of ``framing.CROPS``."""
    max_frames: int | None = None
    weights_folder: str | None = None
    """Folder with the weights of public networks."""
    device: str = "cpu"


@dataclass(frozen=True)
class ScoreJob:
    """A real clip and its videos."""

    clip: str
    real: Path
    generated: Mapping[str, Path]
    """The video of each method that has one."""
    out: Path


@dataclass(frozen=True)
class VideoResult:
    """What became of one video."""

    scores: dict[str, float | None] = field(default_factory=dict)
    """Measures by name: None was not measured, NaN is undefined."""
    reason: str | None = None
    """Why the video was not scored; None if it was."""
    notes: tuple[str, ...] = ()
    """What the reader of its scores should know."""
    video: dict[str, Any] = field(default_factory=dict)
    """Size, frame rate and number of scored frames."""
    core_seconds: float = 0.0
    """Processor time of scoring; that of tracking the real clip counts for the real clip."""


def run_job(job: ScoreJob, settings: ScoreSettings) -> dict[str, VideoResult]:
    """Score the videos of a real clip, and the clip itself; results by method.

    Results of earlier runs are used again if files and settings are the same.
    """
    stores = {method: ResultStore(job, method, settings) for method in (REAL_METHOD, *job.generated)}
    results = {method: result for method, store in stores.items() if (result := store.load())}
    if len(results) == len(stores):
        return results
    scorer = load_once(settings.weights_folder, settings.device)
    started = time.process_time()
    try:
        real = frame_real(job.real, settings.crop, settings.max_frames)
        speech, notes = read_sound(job.real)
        target = scorer.read_target(job.real, real, speech, show_progress=False)
        if REAL_METHOD not in results:
            scores = score_real(scorer, target, settings.task)
            seconds = time.process_time() - started
            results[REAL_METHOD] = VideoResult(scores, None, notes, describe_video(job.real, len(target)), seconds)
            stores[REAL_METHOD].save(results[REAL_METHOD])
    except OSError:
        raise
    except Exception as error:
        reason = f"its real clip cannot be used: {describe_error(error)}"
        return {method: VideoResult(reason=reason) for method in stores}
    show = cache(partial(show_real, target))
    for method in job.generated:
        if method not in results:
            results[method] = score_video(scorer, target, real, show, job, method, settings)
            if results[method].reason is None:
                stores[method].save(results[method])
    return results


def score_video(
    scorer: Scorer,
    target: Target,
    real: FramedVideo,
    show: Callable[[int], ShownReal],
    job: ScoreJob,
    method: str,
    settings: ScoreSettings,
) -> VideoResult:
    """Score one video and draw its contact sheet; what is wrong with the video alone becomes its result.

    ``show`` is :func:`show_real` of the target.
    """
    started, path = time.process_time(), job.generated[method]
    try:
        video = frame_generated(path, settings.crop, real)
        frames, notes = match_length(path, video, len(target), settings.task)
        target, video = target.cut(frames), video.cut(frames)
        speech, sound_notes = read_sound(path, frames)
        timing = None
        if speech is not None:
            offset = None if target.timing is None else target.timing.offset
            timing = SpeechTiming(find_speech_pauses(speech, frames), offset)
        shown = show(frames)
        moments = shown.moments
        measurement = scorer.score(target, video, speech, timing, moments.tolist(), FrameMeasures())
        others = measurement.of_frames | measure_identity(shown, measurement)
        pair = ScoredPair(target.track, measurement.track, target.speech, speech)
        scores = measure_pair(measurement.scores, pair, settings.task, others)
        if not measurement.track.found.any():
            notes.append("no frame shows a face: only its pictures are scored")
        sheet = draw_clip_sheet(shown.frames, measurement.sampled, target.track, moments, job.clip, method)
        write_image(job.out / "sheets" / method / f"{job.clip}.png", sheet)
        features_path(job.out, method, job.clip).unlink(missing_ok=True)
        if measurement.features is not None:
            save_features(job.out, method, job.clip, measurement.features, target)
        info = describe_video(path, frames)
    except OSError:
        # The disk is full, or the output folder is gone: that concerns all clips.
        raise
    except Exception as error:
        return VideoResult(reason=describe_error(error))
    return VideoResult(scores, None, (*notes, *sound_notes), info, time.process_time() - started)


def match_length(path: Path, video: FramedVideo, real_frames: int, task: str) -> tuple[int, list[str]]:
    """Return the number of frames that a video and its real clip share, and notes.

    Raises:
        UserError: the video is broken or too short.
    """
    count = sum(1 for _ in video())
    seconds = max(SHORT_SECONDS, SHORT_SHARE * real_frames / FPS)
    is_short = task != "cross" and count < real_frames - seconds * FPS
    if count < MIN_FRAMES or is_short:
        reason = f"has {count} frames at {FPS} a second, its real clip {real_frames}"
        raise UserError(path, reason, "Generate the whole clip, or score fewer frames with --max-frames.")
    notes = [f"{real_frames - count} frames shorter than its real clip"] if count < real_frames else []
    return min(count, real_frames), notes


def read_sound(path: Path, frames: int = 0) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """Return the 16 kHz sound ``[samples]`` of a video, None without sound, and notes.

    Raises:
        UserError: the sound is broken.
    """
    sound = find_sound(path)
    if sound is None:
        return None, ("has no sound: not scored by its sound",)
    speech = read_clean_speech(sound)
    if measure_level([speech]).active_rms < SILENCE_RMS:
        return None, ("its sound is silent: not scored by its sound",)
    missing = frames / FPS - len(speech) / SAMPLE_RATE
    return speech, (f"its sound ends {missing:.1f} s before its frames",) if missing > SHORT_SECONDS else ()


def score_real(scorer: Scorer, target: Target, task: str) -> dict[str, float | None]:
    """Return the measures of the real clip that need no other video."""
    pair = ScoredPair(target.track, target.track, target.speech, target.speech)
    names = [measure.name for measure in choose_measures(task) if measure.reads in OF_VIDEO]
    frame_measures = FrameMeasures()
    scores = measure_pair(scorer.score_real(target, frame_measures), pair, task, frame_measures.finish())
    return {name: scores[name] for name in names}


@dataclass(frozen=True)
class ShownReal:
    """The frames of a real clip that its contact sheets show."""

    moments: np.ndarray
    """Their numbers, see ``select_sheet_frames``."""
    frames: list[np.ndarray]
    descriptors: np.ndarray | None
    """Of the faces in every other one; None without dlib's network."""


def show_real(target: Target, frames: int) -> ShownReal:
    """Choose the frames of the contact sheets of videos that share the first ``frames`` frames of a real clip."""
    target = target.cut(frames)
    moments = select_sheet_frames(target.track)
    shown = target.keep_frames(moments.tolist())
    return ShownReal(moments, shown, describe_faces(shown, target.track, moments) if has_face_descriptor() else None)


def measure_identity(shown: ShownReal, measurement: Measurement) -> dict[str, float]:
    """Measure the identity distance in every other frame of the contact sheet; empty without dlib's network."""
    if shown.descriptors is None:
        return {}
    generated = describe_faces(measurement.sampled, measurement.track, shown.moments)
    return {"identity_distance": mean_ignoring_nan(measure_identity_distance(shown.descriptors, generated))}


def describe_faces(frames: Sequence[np.ndarray], track: FaceTrack, moments: np.ndarray) -> np.ndarray:
    """Return dlib's descriptors of the faces in every other frame of the contact sheet."""
    chosen = slice(None, None, 2)
    points = to_pixels(track.fine[moments[chosen]], track.size)[..., :2]
    return load_descriptor().embed_frames(np.stack(frames[chosen]), points)


@cache
def load_descriptor() -> FaceDescriptor:
    """Load dlib's face descriptor once per process."""
    return FaceDescriptor()


def describe_video(path: Path, frames: int) -> dict[str, Any]:
    """Return size, frame rate and number of scored frames of a video."""
    info = probe_video(path)
    return {"width": info.width, "height": info.height, "fps": round(info.fps, 3), "scored_frames": frames}


def describe_error(error: Exception) -> str:
    """Return what is wrong with a video, in one line."""
    if isinstance(error, UserError):
        return f"{error.reason}. {error.hint}"
    return f"cannot be scored ({type(error).__name__}: {first_line(error)})"


@cache
def load_once(weights_folder: str | None, device: str) -> Scorer:
    """Load the networks once per process."""
    return load_scorer(find_weights(weights_folder), device)


def save_features(out: Path, method: str, clip: str, features: np.ndarray, target: Target) -> None:
    """Keep the Inception features ``[T - 1, 2048]`` of a video and of its real clip, for FID."""
    assert target.features is not None and target.features.features.features is not None, "scored by Inception"
    with atomic_write(features_path(out, method, clip)) as part, part.open("wb") as file:
        np.save(file, np.stack([target.features.features.features, features]), allow_pickle=False)


def features_path(out: Path, method: str, clip: str) -> Path:
    """Return the file of the features of a real clip and a video, ``float32 [2, T - 1, 2048]``."""
    return out / "clips" / method / f"{clip}.npy"


class ResultStore:
    """The result of a video in OUT/clips/<method>/<clip>.json, valid for the same files and settings."""

    def __init__(self, job: ScoreJob, method: str, settings: ScoreSettings) -> None:
        self.path = job.out / "clips" / method / f"{job.clip}.json"
        files = [job.real] if method == REAL_METHOD else [job.real, job.generated[method]]
        files += [path for file in files if (path := file.with_suffix(".wav")).is_file()]
        measures = [measure.name for measure in choose_measures(settings.task)]
        self.key = {
            "version": s3dnerf.__version__,
            "settings": asdict(settings),
            "files": [_describe_file(path) for path in files],
            "measures": measures,
            "face_descriptor": has_face_descriptor(),
        }

    def load(self) -> VideoResult | None:
        """Return the result; None if there is none, or of other files or settings."""
        try:
            tree = json.loads(self.path.read_text("utf-8"))
            if tree["key"] != self.key or (tree["has_features"] and not self.path.with_suffix(".npy").is_file()):
                return None
            # JSON has null both for NaN and for measures without a value; the latter are listed.
            unmeasured = set(tree["unmeasured"])
            scores = {
                name: float("nan") if value is None and name not in unmeasured else value
                for name, value in tree["scores"].items()
            }
            return VideoResult(scores, None, tuple(tree["notes"]), tree["video"], tree["core_seconds"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def save(self, result: VideoResult) -> None:
        """Write the result."""
        unmeasured = [name for name, value in result.scores.items() if value is None]
        has_features = self.path.with_suffix(".npy").is_file()
        tree = {"key": self.key, "unmeasured": unmeasured, "has_features": has_features, **replace_nan(asdict(result))}
        with atomic_write(self.path) as part:
            part.write_text(json.dumps(tree, indent=1) + "\n", "utf-8")


def _describe_file(path: Path) -> list[str | int]:
    state = path.stat()
    return [str(path), state.st_size, state.st_mtime_ns]
