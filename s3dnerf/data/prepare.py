"""Preparation: a tree of videos becomes a folder of prepared clips (see clip.py)."""

from __future__ import annotations

import json
import multiprocessing
import signal
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import torch
from tqdm import tqdm

from s3dnerf.data.clip import INFO_FILE, Clip, save_clip
from s3dnerf.data.videos import VideoEntry, find_videos
from s3dnerf.errors import UserError
from s3dnerf.face.camera import HeadPose, align_depth, fit_head_pose
from s3dnerf.face.crop import CropBox, apply_crop, choose_crop, crop_landmarks
from s3dnerf.face.face_mesh import FaceMesh
from s3dnerf.face.landmarks import FaceTracker, load_mediapipe, to_pixels
from s3dnerf.face.lips import average_lips
from s3dnerf.face.points import KEPT_POINTS
from s3dnerf.face.regions import measure_eye_openness, measure_lip_opening
from s3dnerf.face.registration import SIDE, register_head
from s3dnerf.media.audio import SILENCE_RMS, measure_level, read_clean_speech
from s3dnerf.media.files import check_output, make_folder, refuse_inputs, replace_when_done
from s3dnerf.media.video import probe_video, stream_frames

LONGEST_GAP = 5
"""Frames without a face that are interpolated; longer gaps are marked as not valid."""
LEAST_VALID = 0.5
"""Share of the frames that must show a face."""
LEAST_SIDE = 64
"""Pixels of the source that the crop must have, at least."""
LOOKED_TOGETHER = 32
"""Frames in which the plain mesh looks at once."""
DIED = "the process that prepared it ended abruptly (out of memory?)"
REPORT_FILE = "report.json"


@dataclass(frozen=True)
class Failure:
    """A video that could not be prepared; size and time of change tell whether it was mended since."""

    id: str
    video: str
    reason: str
    size: int = 0
    changed: float = 0.0


@dataclass
class PrepareReport:
    """What a run did: clips made now, clips that were there before, videos that failed (now or before)."""

    prepared: list[str] = field(default_factory=list)
    present: list[str] = field(default_factory=list)
    failed: list[Failure] = field(default_factory=list)


def prepare_videos(
    videos: str | Path,
    out: str | Path,
    manifest: str | Path | None = None,
    size: int = 256,
    workers: int = 2,
) -> PrepareReport:
    """Prepare every video under `videos` into a clip folder under `out`.

    Clips that are there are left alone, and so are videos that failed before and have not changed. Every
    failure is listed with its reason in OUT/report.json and does not stop the others. size is the side of
    the prepared video in pixels. Raises UserError when there is no video, the manifest cannot be read, the
    face tracker is missing or `out` cannot be written.
    """
    out = Path(out)
    # Clips among the videos would be prepared again by the next run.
    for folder in (out, *out.resolve().parents):
        refuse_inputs(folder, [videos])
    check_output(out / REPORT_FILE, [manifest])
    entries = find_videos(Path(videos), None if manifest is None else Path(manifest))
    make_folder(out)
    report = PrepareReport()
    known = {failure.id: failure for failure in _read_failures(out) if failure.reason != DIED}
    todo = []
    for entry in entries:
        if (out / entry.id / INFO_FILE).is_file():
            report.present.append(entry.id)
        elif entry.id in known and known[entry.id] == _describe_failure(entry, known[entry.id].reason):
            report.failed.append(known[entry.id])
        else:
            todo.append(entry)
    if todo:
        load_mediapipe()  # when it is missing, that is not the videos' fault
    try:
        for entry, reason in tqdm(_run(todo, out, size, workers), total=len(todo), desc="prepare", unit="clip"):
            if reason is None:
                report.prepared.append(entry.id)
            else:
                report.failed.append(_describe_failure(entry, reason))
                _write_report(out, report)
    except OSError as error:
        raise UserError(out, f"cannot be written ({error.strerror})", "Free some space, then run again.") from error
    _write_report(out, report)
    return report


def _run(todo: list[VideoEntry], out: Path, size: int, workers: int) -> Iterator[tuple[VideoEntry, str | None]]:
    """Prepare entries in several processes; yields each with None or the reason why it failed."""
    waiting = deque(todo)
    while waiting:
        suspects = yield from _run_pool(waiting, out, size, workers)
        # A process died and took the others' work with it: alone, each shows whether it was the cause.
        for entry in suspects:
            if (yield from _run_pool(deque([entry]), out, size, 1)):
                yield entry, DIED


def _run_pool(
    waiting: deque[VideoEntry], out: Path, size: int, workers: int
) -> Generator[tuple[VideoEntry, str | None], None, list[VideoEntry]]:
    """Take entries from `waiting` until it is empty; returns those in work when a process died, else none."""
    jobs: dict[Future, VideoEntry] = {}
    # Fresh processes: the tracker's threads do not survive a fork.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(workers, len(waiting)), mp_context=context, initializer=_start_worker)
    try:
        while waiting or jobs:
            while waiting and len(jobs) < 2 * workers:
                jobs[pool.submit(_try_clip, waiting[0], out, size)] = waiting[0]
                waiting.popleft()
            for job in wait(jobs, return_when=FIRST_COMPLETED).done:
                reason = job.result()
                yield jobs.pop(job), reason
    except BrokenProcessPool:
        return list(jobs.values())
    finally:
        pool.shutdown(cancel_futures=True)
    return []


def _start_worker() -> None:
    # Ctrl-C stops the main process, which lets clips in work be finished. One thread each: the processes
    # already share the cores.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(1)
    torch.set_num_threads(1)


def _try_clip(entry: VideoEntry, out: Path, size: int) -> str | None:
    """Prepare a clip unless it is there; returns None or the reason why it failed."""
    if (out / entry.id / INFO_FILE).is_file():
        return None
    try:
        prepare_clip(entry, out, size)
    except UserError as error:
        return error.reason
    except (ValueError, RuntimeError, cv2.error) as error:
        # What the decoder, the tracker and OpenCV raise for a video that none of them understands.
        return f"cannot be prepared ({type(error).__name__}: {error})"
    return None


def prepare_clip(entry: VideoEntry, out: Path, size: int) -> None:
    """Prepare one video into out / entry.id. Raises UserError when it is broken or shows no usable face."""
    info = probe_video(entry.path)
    frame_size = (info.height, info.width)
    track = track_video(entry.path, frame_size)
    pose = fit_head_pose(track.landmarks)
    box = choose_crop(pose[track.valid], frame_size)
    if box.side < LEAST_SIDE:
        reason = f"the head is too small: its crop has {box.side:.0f} of at least {LEAST_SIDE} pixels"
        raise UserError(entry.path, reason, "Use a video of higher resolution, or cut it to the head.")
    speech = _find_speech(entry, info.has_audio)
    pose = follow_head(entry.path, track.landmarks, box)

    def stream() -> Iterator[np.ndarray]:
        return (apply_crop(frame, box, size) for frame in stream_frames(entry.path))

    landmarks = read_lips(stream(), crop_landmarks(track.landmarks, box))
    clip = _assemble_clip(entry, out, size, frame_size, landmarks, track.valid, pose, box, speech is not None)
    save_clip(clip, stream(), speech)


@dataclass(frozen=True)
class VideoTrack:
    """Landmarks in source pixels float32 [T, 478, 3], without gaps, and valid bool [T]."""

    landmarks: np.ndarray
    valid: np.ndarray


def track_video(path: Path, frame_size: tuple[int, int]) -> VideoTrack:
    """Track the face of a video at 25 fps. Raises UserError when under half of the frames show one."""
    with FaceTracker() as tracker:
        found = list(tracker.track(stream_frames(path)))
    seen = np.array([landmarks is not None for landmarks in found])
    track = fill_gaps([None if one is None else to_pixels(one, frame_size) for one in found])
    if track is None or track.valid.mean() < LEAST_VALID:
        reason = f"a face is seen in only {int(seen.sum())} of {len(seen)} frames"
        raise UserError(path, reason, "Leave it out, or cut it to the part that shows a face.")
    return track


def follow_head(path: str | Path, landmarks: np.ndarray, box: CropBox) -> HeadPose:
    """Find the head pose of a video's first T frames in a crop, from landmarks [T, 478, 3] in source pixels."""

    def stream() -> Iterator[np.ndarray]:
        return (apply_crop(frame, box, SIDE) for frame in islice(stream_frames(path), len(landmarks)))

    return register_head(stream, crop_landmarks(landmarks, box))


def read_lips(frames: Iterator[np.ndarray], landmarks: np.ndarray) -> np.ndarray:
    """Average the lips in crop-normalized landmarks [T, 478, 3] with what the plain mesh sees in as many crops."""
    mesh = FaceMesh()
    parts = (
        average_lips(mesh, np.stack(list(islice(frames, len(some)))), some)
        for some in np.split(landmarks, range(LOOKED_TOGETHER, len(landmarks), LOOKED_TOGETHER))
    )
    return np.concatenate(list(parts))


def fill_gaps(found: list[np.ndarray | None]) -> VideoTrack | None:
    """Interpolate landmarks linearly over frames without a face; None when there is no face at all.

    Gaps of at most LONGEST_GAP frames count as valid; before the first and after the last face the nearest
    one is held.
    """
    seen = np.flatnonzero([landmarks is not None for landmarks in found])
    if not len(seen):
        return None
    known = np.stack([found[index] for index in seen])
    frames = np.arange(len(found))
    after = np.clip(np.searchsorted(seen, frames), 0, len(seen) - 1)
    before = np.clip(np.searchsorted(seen, frames, side="right") - 1, 0, len(seen) - 1)
    span = np.maximum(seen[after] - seen[before], 1)
    weight = np.clip((frames - seen[before]) / span, 0, 1)[:, None, None]
    filled = known[before] * (1 - weight) + known[after] * weight
    inside = (frames >= seen[0]) & (frames <= seen[-1])
    valid = inside & (seen[after] - seen[before] - 1 <= LONGEST_GAP)
    return VideoTrack(filled.astype(np.float32), valid)


def _assemble_clip(
    entry: VideoEntry,
    out: Path,
    size: int,
    frame_size: tuple[int, int],
    landmarks: np.ndarray,
    valid: np.ndarray,
    pose: HeadPose,
    box: CropBox,
    has_speech: bool,
) -> Clip:
    landmarks = align_depth(landmarks, pose)
    return Clip(
        path=out / entry.id,
        id=entry.id,
        person=entry.person,
        split=entry.split,
        sync=entry.sync if has_speech else "none",
        frames=len(landmarks),
        size=size,
        crop=box,
        landmarks=landmarks[:, KEPT_POINTS],
        pose=pose,
        eye_openness=measure_eye_openness(landmarks),
        lip_opening=measure_lip_opening(landmarks, pose),
        valid=valid,
        has_speech=has_speech,
        source=entry.path.name,
        frame_size=frame_size,
        notes=entry.notes,
    )


def _find_speech(entry: VideoEntry, has_audio: bool) -> np.ndarray | None:
    """The lossless .wav beside the video, else the video's own sound; None when there is none but silence."""
    beside = entry.path.with_suffix(".wav")
    if entry.silent or not (has_audio or beside.is_file()):
        return None
    speech = read_clean_speech(beside if beside.is_file() else entry.path)
    level = measure_level([speech])
    return speech if level.active_rms > SILENCE_RMS else None


def _describe_failure(entry: VideoEntry, reason: str) -> Failure:
    state = entry.path.stat()
    return Failure(entry.id, str(entry.path), reason, state.st_size, state.st_mtime)


def _read_failures(out: Path) -> list[Failure]:
    path = out / REPORT_FILE
    if not path.is_file():
        return []
    try:
        return [Failure(**failure) for failure in json.loads(path.read_text(encoding="utf-8"))["failed"]]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(path, f"is not a report of this program ({error})", "Delete it.") from None


def _write_report(out: Path, report: PrepareReport) -> None:
    with replace_when_done(out / REPORT_FILE) as path:
        path.write_text(json.dumps(asdict(report), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
