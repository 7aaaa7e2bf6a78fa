"""Preparation: a tree of videos becomes a folder of prepared clips (see clip.py)."""

from __future__ import annotations

import multiprocessing
import signal
from collections import Counter, deque
from collections.abc import Generator, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import torch
from tqdm import tqdm

from s3dnerf.data.clip import INFO_FILE, VIDEO_FILE, Clip, load_clip, read_info, save_clip, update_sync
from s3dnerf.data.report import REPORT_FILE, Failure, PrepareReport, read_failures, record_clip, write_report
from s3dnerf.data.sync_offset import Sync, find_sync, shift_speech
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
from s3dnerf.media.files import check_output, make_folder, refuse_inputs
from s3dnerf.media.video import probe_video, stream_frames
from s3dnerf.models.sync_discriminator import CROPPED_SIDE

LONGEST_GAP = 5
"""Frames without a face that are interpolated; longer gaps are marked as not valid."""
LEAST_VALID = 0.5
"""Share of the frames that must show a face."""
LEAST_SIDE = 64
"""Pixels of the source that the crop must have, at least."""
SIZES = (64, 2048)
"""Smallest and largest side of the prepared video, pixels."""
LOOKED_TOGETHER = 32
"""Frames in which the plain mesh looks at once."""
DIED = "the process that prepared it ended abruptly (out of memory?)"


def prepare_videos(
    videos: str | Path,
    out: str | Path,
    manifest: str | Path | None = None,
    size: int = 256,
    workers: int = 2,
) -> PrepareReport:
    """Prepare every video under ``videos`` into a clip folder under ``out``.

    Clips that are there are left alone, and so are videos that failed before and have not changed. Clips of an
    earlier version whose sound offset was not measured are measured. Every failure is listed with its reason in
    OUT/report.json and does not stop the others.

    Args:
        videos: folder with the videos.
        out: folder for the clips.
        manifest: table of the clips, see ``find_videos``.
        size: side of the prepared video in pixels, an even number from 64 to 2048.
        workers: processes at work at once.

    Raises:
        UserError: a setting is out of range, there is no video, the manifest cannot be read, the face tracker is
            missing, ``out`` cannot be written or holds these clips in another size.
    """
    check_settings(size, workers)
    out = Path(out)
    # Clips among the videos would be prepared again by the next run.
    for folder in (out, *out.resolve().parents):
        refuse_inputs(folder, [videos])
    check_output(out / REPORT_FILE, [manifest])
    entries = find_videos(Path(videos), None if manifest is None else Path(manifest))
    report = PrepareReport()
    try:
        make_folder(out)
        todo = _sort_entries(entries, out, size, report, split_is_chosen=manifest is None)
        if todo:
            load_mediapipe()  # when it is missing, that is not the videos' fault
        there = set(report.present)
        for entry, reason in tqdm(_run(todo, out, size, workers), total=len(todo), desc="prepare", unit="clip"):
            if reason is not None:
                report.failed.append(_describe_failure(entry, reason))
                write_report(out, report)
            elif entry.id in there:
                report.measured.append(entry.id)
            else:
                report.prepared.append(entry.id)
    except OSError as error:
        raise UserError(out, f"cannot be written ({error.strerror})", "Free some space, then run again.") from error
    _record_clips(entries, out, report)
    write_report(out, report)
    return report


def _record_clips(entries: list[VideoEntry], out: Path, report: PrepareReport) -> None:
    """Put down all clips that are there; those that are damaged count as failed."""
    there = {*report.prepared, *report.present} - {failure.id for failure in report.failed}
    for entry in entries:
        if entry.id in there:
            try:
                report.clips.append(record_clip(out / entry.id))
            except UserError as error:
                report.failed.append(_describe_failure(entry, f"{error.reason}. {error.cure}"))


def check_settings(size: int, workers: int) -> None:
    """Raise UserError unless clips of this size can be made, by at least one process."""
    low, high = SIZES
    if not low <= size <= high or size % 2:
        raise UserError("size", f"{size} is not an even number from {low} to {high}", "256 and 512 are usual.")
    if workers < 1:
        raise UserError("workers", f"{workers} is less than one process", "Give the number of processor cores.")


def _sort_entries(
    entries: list[VideoEntry], out: Path, size: int, report: PrepareReport, split_is_chosen: bool
) -> list[VideoEntry]:
    """Return the entries that have to be prepared or measured; the others are put down in the report."""
    known = {failure.id: failure for failure in read_failures(out) if failure.reason != DIED}
    there: dict[str, dict] = {}
    for entry in entries:
        if (out / entry.id / INFO_FILE).is_file():
            try:
                there[entry.id] = read_info(out / entry.id)
            except UserError as error:
                report.failed.append(_describe_failure(entry, f"{error.reason}. {error.cure}"))
    check_sizes(Counter(info["size"] for info in there.values()), size, out)
    broken = {failure.id for failure in report.failed}
    # A person stays in one split, also when new people change which are chosen for validation.
    splits = {info["person"]: info["split"] for info in there.values()} if split_is_chosen else {}
    todo = []
    for entry in entries:
        if entry.id in there:
            report.present.append(entry.id)
            if _lacks_sync(entry, there[entry.id]):
                todo.append(entry)
        elif entry.id in broken:
            continue
        elif entry.id in known and known[entry.id] == _describe_failure(entry, known[entry.id].reason):
            report.failed.append(known[entry.id])
        else:
            split = splits.get(entry.person, entry.split)
            todo.append(entry if split == entry.split else replace(entry, split=split))
    return todo


def check_sizes(sizes: Counter[int], size: int, out: Path) -> None:
    """Raise UserError when these clips are there in another size: they would be kept, and ``size`` ignored."""
    if sizes and size not in sizes:
        other, count = sizes.most_common(1)[0]
        reason = f"holds {count} of these clips in {other} x {other} pixels, and --size is {size}"
        cure = f"Name another --out for {size} x {size}, or --size {other} to go on in this folder."
        raise UserError(out, reason, cure)


def _lacks_sync(entry: VideoEntry, info: dict) -> bool:
    """Tell whether a clip that is there is still to be measured: an earlier version did not."""
    return not entry.sync and info["has_speech"] and info["sync"] == "unclear" and info.get("confidence") is None


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
    """Prepare a clip, or measure it if it is there; returns None or the reason why it failed."""
    try:
        if not (out / entry.id / INFO_FILE).is_file():
            prepare_clip(entry, out, size)
        elif _lacks_sync(entry, read_info(out / entry.id)):
            measure_clip(out / entry.id)
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

    def stream(side: int = size) -> Iterator[np.ndarray]:
        return (apply_crop(frame, box, side) for frame in stream_frames(entry.path))

    landmarks = read_lips(stream(), crop_landmarks(track.landmarks, box))
    sync = find_sync(entry.sync, speech, lambda: stream(CROPPED_SIDE), pose, track.valid)
    clip = _assemble_clip(entry, out, size, frame_size, landmarks, track.valid, pose, box, sync, speech is not None)
    save_clip(clip, stream(), None if speech is None else shift_speech(speech, sync.moves))


def measure_clip(folder: Path) -> None:
    """Measure the sound offset of a clip that is there, and make up for it. Raises UserError when it is damaged."""
    clip = load_clip(folder)
    speech = clip.read_speech()
    sync = find_sync("", speech, lambda: stream_frames(folder / VIDEO_FILE), clip.pose, clip.valid)
    clip = replace(clip, sync=sync.label, offset=sync.offset, confidence=sync.confidence)
    update_sync(clip, shift_speech(speech, sync.moves) if sync.moves else None)


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
    sync: Sync,
    has_speech: bool,
) -> Clip:
    landmarks = align_depth(landmarks, pose)
    return Clip(
        path=out / entry.id,
        id=entry.id,
        person=entry.person,
        split=entry.split,
        sync=sync.label,
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
        offset=sync.offset,
        confidence=sync.confidence,
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
