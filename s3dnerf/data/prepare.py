"""Dataset preparation: turns a tree of videos into a folder of prepared clips (see ``clip.py``)."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from s3dnerf.data.clip import INFO_FILE, VIDEO_FILE, Clip, load_clip, read_info, save_clip, update_sync
from s3dnerf.data.engines import WorkerDied, run_in_processes, run_on_ray
from s3dnerf.data.report import REPORT_FILE, Failure, PrepareReport, read_failures, record_clip, write_report
from s3dnerf.data.sync_offset import Sync, SyncEmbedder, determine_sync, shift_speech
from s3dnerf.data.videos import VideoEntry, find_videos
from s3dnerf.errors import UserError
from s3dnerf.face.camera import align_depth
from s3dnerf.face.lips import fuse_video_lips
from s3dnerf.face.points import KEPT_POINTS
from s3dnerf.face.regions import measure_eye_openness, measure_lip_opening
from s3dnerf.face.registration import REGISTRATION_SIZE
from s3dnerf.face.video import HeadLocation, HeadTrack, locate_head
from s3dnerf.media.audio import SILENCE_RMS, measure_level, read_clean_speech
from s3dnerf.media.files import check_output, make_folder, refuse_inputs
from s3dnerf.media.video import FrameCache, probe_video, stream_frames

MIN_CROP_SIDE = 64
"""Smallest side of the crop in pixels of the source video."""
MEASURED_SIZE = REGISTRATION_SIZE
"""Side in pixels of the head crops that poses and sync are measured on."""
CACHE_BYTES = 256 * 2**20
"""Largest size of the frames of a clip that are kept in memory, and of its crops. Longer ones are decoded again by
every step; at 256 x 256 pixels this is 52 seconds."""
SIZE_RANGE = (64, 2048)
"""Smallest and largest side of the prepared video in pixels."""
WORKER_DIED = "the process that prepared it ended abruptly (out of memory?)"
OUT_OF_MEMORY = "does not fit into memory"
RETRIED = (WORKER_DIED, OUT_OF_MEMORY)
"""Reasons that may lie with the machine: such videos are tried again by the next run."""
REPORT_SECONDS = 60.0
"""Time between two writings of the report during a run."""


@dataclass(frozen=True)
class ClipJob:
    """Settings of a run that its worker processes need."""

    out: Path
    size: int
    load_embedder: Callable[[], SyncEmbedder]
    folder: Path
    """Folder at which relative paths start; the processes of a cluster run elsewhere."""


@dataclass(frozen=True)
class ClipOutcome:
    """What became of a video."""

    reason: str | None = None
    """Why it could not be prepared; None if it was."""
    frames: int = 0
    """Frames of the new clip."""
    core_seconds: float = 0.0
    """Processor time."""


def prepare_videos(
    videos: str | Path,
    out: str | Path,
    manifest: str | Path | None = None,
    size: int = 256,
    workers: int = 2,
    *,
    ray: str | None = None,
    load_embedder: Callable[[], SyncEmbedder],
) -> PrepareReport:
    """Prepare every video under ``videos`` into a clip folder under ``out``.

    Existing clips are kept, and videos that failed before are skipped unless they have changed. The sync offset is
    measured for existing clips of earlier versions that lack it. A failure does not stop the run; it is listed with
    its reason in OUT/report.json. OUT/report.md has the statistics.

    Args:
        videos: folder with the videos.
        out: folder for the clips.
        manifest: table of the clips, see ``find_videos``.
        size: side of the prepared video in pixels, an even number from 64 to 2048.
        workers: number of processes.
        ray: address of a Ray cluster whose processors are used in place of processes of this machine, or "local".
        load_embedder: loads the discriminator that measures sync offsets; called in the worker processes, so it must
            be picklable.

    Raises:
        UserError: a setting is out of range, there is no video, the manifest cannot be read, ``out`` cannot be
            written or holds these clips in another size, or Ray cannot be used.
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
        todo = _select_entries(entries, out, size, report, has_default_split=manifest is None)
        _run(todo, ClipJob(Path.cwd() / out, size, load_embedder, Path.cwd()), report, workers, ray)
    except OSError as error:
        raise UserError(out, f"cannot be written ({error.strerror})", "Free some space, then run again.") from error
    _record_clips(entries, out, report)
    write_report(out, report)
    return report


def _run(todo: list[VideoEntry], job: ClipJob, report: PrepareReport, workers: int, ray: str | None) -> None:
    """Prepare entries and add what became of them to the report."""
    present, started, written = set(report.present), time.monotonic(), time.monotonic()
    run = report.run
    with tqdm(total=len(todo), desc="prepare", unit="clip") as bar:
        for entry, outcome in run_jobs(todo, job, workers, ray):
            if outcome.reason is not None:
                report.failed.append(_describe_failure(entry, outcome.reason))
            elif entry.id in present:
                report.measured.append(entry.id)
            else:
                report.prepared.append(entry.id)
            run.frames += outcome.frames
            run.core_seconds += outcome.core_seconds
            run.seconds = time.monotonic() - started
            bar.set_postfix_str(f"{run.frames / run.seconds:.1f} frames/s, {len(report.failed)} failed", refresh=False)
            bar.update()
            if time.monotonic() - written > REPORT_SECONDS:
                write_report(job.out, report)
                written = time.monotonic()


def _record_clips(entries: list[VideoEntry], out: Path, report: PrepareReport) -> None:
    """Add all existing clips to the report; damaged ones count as failed."""
    existing = {*report.prepared, *report.present} - {failure.id for failure in report.failed}
    for entry in entries:
        if entry.id in existing:
            try:
                report.clips.append(record_clip(out / entry.id))
            except UserError as error:
                report.failed.append(_describe_failure(entry, f"{error.reason}. {error.hint}"))


def check_settings(size: int, workers: int) -> None:
    """Raise UserError unless clips of this size can be made with this number of processes."""
    low, high = SIZE_RANGE
    if not low <= size <= high or size % 2:
        raise UserError("size", f"{size} is not an even number from {low} to {high}", "256 and 512 are usual.")
    if workers < 1:
        raise UserError("workers", f"{workers} is less than one process", "Give the number of processor cores.")


def _select_entries(
    entries: list[VideoEntry], out: Path, size: int, report: PrepareReport, has_default_split: bool
) -> list[VideoEntry]:
    """Return the entries to prepare or measure and record the others in the report."""
    known = {failure.id: failure for failure in read_failures(out) if failure.reason not in RETRIED}
    existing: dict[str, dict[str, Any]] = {}
    for entry in entries:
        if (out / entry.id / INFO_FILE).is_file():
            try:
                existing[entry.id] = read_info(out / entry.id)
            except UserError as error:
                report.failed.append(_describe_failure(entry, f"{error.reason}. {error.hint}"))
    check_sizes(Counter(info["size"] for info in existing.values()), size, out)
    broken = {failure.id for failure in report.failed}
    # An identity stays in its split even if new ones change which are chosen for validation.
    splits = {info["person"]: info["split"] for info in existing.values()} if has_default_split else {}
    todo = []
    for entry in entries:
        if entry.id in existing:
            report.present.append(entry.id)
            if _lacks_sync(entry, existing[entry.id]):
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
    """Raise UserError if these clips exist in another size: they would be kept and ``size`` ignored."""
    if sizes and size not in sizes:
        other, count = sizes.most_common(1)[0]
        reason = f"holds {count} of these clips in {other} x {other} pixels, and --size is {size}"
        hint = f"Name another --out for {size} x {size}, or --size {other} to go on in this folder."
        raise UserError(out, reason, hint)


def _lacks_sync(entry: VideoEntry, info: dict[str, Any]) -> bool:
    """Return whether the offset of an existing clip was never measured, as in earlier versions."""
    return not entry.sync and info["has_speech"] and info["sync"] == "unclear" and info.get("confidence") is None


def run_jobs(
    todo: list[VideoEntry], job: ClipJob, workers: int, ray: str | None = None
) -> Iterator[tuple[VideoEntry, ClipOutcome]]:
    """Prepare entries in several processes, of this machine or of a Ray cluster, and yield each with its outcome."""
    function = partial(prepare_entry, job=job)
    results = run_in_processes(function, todo, workers) if ray is None else run_on_ray(function, todo, ray, workers)
    for entry, result in results:
        yield entry, ClipOutcome(WORKER_DIED) if isinstance(result, WorkerDied) else result


def prepare_entry(entry: VideoEntry, job: ClipJob) -> ClipOutcome:
    """Prepare a clip, or measure the offset of an existing one. Errors of this video alone become its outcome."""
    folder, started, frames = job.out / entry.id, time.process_time(), 0
    reason = None
    try:
        if not (folder / INFO_FILE).is_file():
            entry = replace(entry, path=job.folder / entry.path)
            frames = prepare_clip(entry, job.out, job.size, job.load_embedder)
        elif _lacks_sync(entry, read_info(folder)):
            measure_clip_sync(folder, job.load_embedder)
    except UserError as error:
        reason = error.reason
    except MemoryError:
        reason = OUT_OF_MEMORY
    except OSError:
        # The disk is full, or the output folder is gone: that concerns all clips.
        raise
    except Exception as error:
        # The decoder, the tracker or OpenCV could not handle this video.
        reason = f"cannot be prepared ({type(error).__name__}: {error})"
    return ClipOutcome(reason, frames, time.process_time() - started)


@cache
def _load_once(load_embedder: Callable[[], SyncEmbedder]) -> SyncEmbedder:
    """Load the discriminator once per process, because loading takes as long as measuring a short clip."""
    return load_embedder()


def prepare_clip(entry: VideoEntry, out: Path, size: int, load_embedder: Callable[[], SyncEmbedder]) -> int:
    """Prepare one video into ``out / entry.id`` and return its number of frames.

    Args:
        entry: the video.
        out: folder for the clips.
        size: side of the prepared video in pixels.
        load_embedder: loads the discriminator that measures the sync offset.

    Raises:
        UserError: the video is broken or shows no usable face.
    """
    has_audio = probe_video(entry.path).has_audio
    frames = FrameCache(partial(stream_frames, entry.path), CACHE_BYTES)
    head = locate_head(entry.path, frames, min_crop_side=MIN_CROP_SIDE)
    crops, small_crops = make_crop_caches(head, frames, size)
    track = head.register_poses(small_crops.__iter__)
    speech = _find_speech(entry, has_audio)
    landmarks = fuse_video_lips(crops, track.cropped_landmarks)
    load_once = partial(_load_once, load_embedder)
    sync = determine_sync(entry.sync, speech, small_crops.__iter__, track.pose, track.valid, load_once)
    clip = _assemble_clip(entry, out, size, track, landmarks, sync, speech is not None)
    stored_speech = None if speech is None else shift_speech(speech, sync.shift_frames)
    save_clip(clip, crops, stored_speech)
    return clip.frames


def make_crop_caches(head: HeadLocation, frames: FrameCache, size: int) -> tuple[FrameCache, FrameCache]:
    """Return the crops ``[size, size, 3]`` to store, and those ``[256, 256, 3]`` to measure poses and sync on."""
    crops = FrameCache(lambda: head.crop_frames(frames, size), CACHE_BYTES)
    if size == MEASURED_SIZE:
        return crops, crops
    return crops, FrameCache(lambda: head.crop_frames(frames, MEASURED_SIZE), CACHE_BYTES)


def measure_clip_sync(folder: Path, load_embedder: Callable[[], SyncEmbedder]) -> None:
    """Measure and correct the sync offset of an existing clip. Raises UserError if the clip is damaged."""
    clip = load_clip(folder)
    speech = clip.read_speech()
    open_frames = partial(stream_frames, folder / VIDEO_FILE)
    sync = determine_sync("", speech, open_frames, clip.pose, clip.valid, partial(_load_once, load_embedder))
    clip = replace(clip, sync=sync.label, offset=sync.offset, confidence=sync.confidence)
    update_sync(clip, shift_speech(speech, sync.shift_frames) if sync.shift_frames else None)


def _assemble_clip(
    entry: VideoEntry, out: Path, size: int, track: HeadTrack, landmarks: np.ndarray, sync: Sync, has_speech: bool
) -> Clip:
    landmarks = align_depth(landmarks, track.pose)
    return Clip(
        path=out / entry.id,
        id=entry.id,
        person=entry.person,
        split=entry.split,
        sync=sync.label,
        frames=len(landmarks),
        size=size,
        crop=track.crop,
        landmarks=landmarks[:, KEPT_POINTS],
        pose=track.pose,
        eye_openness=measure_eye_openness(landmarks),
        lip_opening=measure_lip_opening(landmarks, track.pose),
        valid=track.valid,
        has_speech=has_speech,
        source=entry.path.name,
        frame_size=track.frame_size,
        notes=entry.notes,
        offset=sync.offset,
        confidence=sync.confidence,
    )


def _find_speech(entry: VideoEntry, has_audio: bool) -> np.ndarray | None:
    """Return the audio of the lossless .wav beside the video, or of the video itself; None if there is only silence."""
    wav = entry.path.with_suffix(".wav")
    if entry.silent or not (has_audio or wav.is_file()):
        return None
    speech = read_clean_speech(wav if wav.is_file() else entry.path)
    level = measure_level([speech])
    return speech if level.active_rms > SILENCE_RMS else None


def _describe_failure(entry: VideoEntry, reason: str) -> Failure:
    try:
        state = entry.path.stat()
    except OSError:
        # It was removed during the run.
        return Failure(entry.id, str(entry.path), reason)
    return Failure(entry.id, str(entry.path), reason, state.st_size, state.st_mtime)
