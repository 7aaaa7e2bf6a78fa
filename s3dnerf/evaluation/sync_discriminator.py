"""Audio-visual synchronization of videos, measured by our lip-sync discriminator, and the accuracy of the latter.

These scores are not SyncNet's LSE-C and LSE-D: the network and its embedding space are different, and so are the
numbers.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor
from tqdm import tqdm

from s3dnerf.data.clip import Clip
from s3dnerf.data.clips import open_clips
from s3dnerf.data.frames import interpolate_frames
from s3dnerf.errors import UserError
from s3dnerf.evaluation.tracking import FaceTrack
from s3dnerf.face.camera import fit_head_pose, smooth_head_pose
from s3dnerf.face.crop import apply_crop, choose_crop, crop_pose
from s3dnerf.face.landmarks import to_pixels
from s3dnerf.face.registration import TRACKED_SIGMA
from s3dnerf.media.audio import measure_level, speech_gain
from s3dnerf.media.image import resize_image
from s3dnerf.models.clip_offset import MAX_CLIP_OFFSET, find_clip_offset
from s3dnerf.models.sync_discriminator import (
    CROPPED_SIDE,
    SyncDiscriminator,
    TwoWay,
    embed_moments,
    embed_video,
    mark_distant,
    measure_two_way,
    score_offsets,
)
from s3dnerf.structures import Camera

MAX_OFFSET = 15
"""Largest offset in frames that is searched, to either side."""
SEGMENT_FRAMES = 50
"""Frames of the segments whose offset is recovered: two seconds."""
SEGMENT_STRIDE = 25
"""Frames between the starts of two segments."""
NEGATIVE_DISTANCE = 6
"""Distance in frames from which speech counts as out of sync."""
EXPLANATION = f"""Two-way accuracy: five frames of lips are more similar to their own speech than to speech that is
{NEGATIVE_DISTANCE} or more frames away in the clip; chance is 0.5. Own offset: constant delay of the clip's audio in
frames, up to {MAX_CLIP_OFFSET}; accuracy in step: accuracy after correction for it. Last columns: segments of two
seconds whose offset, searched over {MAX_OFFSET} frames to either side, is within one frame of 0, and of the clip's
own."""


@dataclass(frozen=True)
class SyncScores:
    """How well lips and audio of a video match."""

    confidence: float
    """Best mean cosine similarity over the offsets minus their median, as in SyncNet's confidence."""
    distance: float
    """One minus the mean cosine similarity at the best offset, 0 to 2."""
    offset: int
    """Delay of the audio in frames; negative if it is early."""
    in_sync: float
    """Mean cosine similarity at offset 0."""


def measure_sync(
    model: SyncDiscriminator,
    frames: Iterable[np.ndarray],
    camera: Camera,
    speech: np.ndarray,
    max_offset: int = MAX_OFFSET,
) -> SyncScores:
    """Score a whole video.

    Args:
        model: the discriminator, from ``load_discriminator``.
        frames: T frames ``uint8 [S, S, 3]``.
        camera: T head poses.
        speech: 16 kHz speech at the normal level, ``[samples]``.
        max_offset: largest offset in frames that is searched.

    Raises:
        ValueError: the numbers of frames and poses differ, or the video is shorter than twice ``max_offset``.
    """
    similarities = compute_similarities(model, frames, camera, speech)
    if len(similarities) < 2 * max_offset:
        raise ValueError(f"{len(similarities)} moments are too few to look {max_offset} frames to either side")
    scores = score_offsets(similarities, max_offset)
    best = scores.max()
    return SyncScores(
        confidence=(best - scores.median()).item(),
        distance=(1.0 - best).item(),
        offset=int(scores.argmax()) - max_offset,
        in_sync=scores[max_offset].item(),
    )


def score_tracked_video(
    model: SyncDiscriminator, frames: Iterable[np.ndarray], track: FaceTrack, speech: np.ndarray
) -> SyncScores | None:
    """Score a video whose face is tracked, cropped as prepared clips are.

    Args:
        model: the discriminator.
        frames: the video, ``uint8 [H, W, 3]`` each.
        track: of the same video.
        speech: its 16 kHz audio, ``[samples]``.

    Returns:
        The scores, or None if no face is visible or the video is too short.
    """
    if not track.found.any() or len(track) < 2 * MAX_OFFSET + model.config.frames:
        return None
    points = to_pixels(track.filled, track.size)
    pose = fit_head_pose(points)
    box = choose_crop(pose, track.size)
    camera = Camera.from_numpy(smooth_head_pose(crop_pose(pose, box), TRACKED_SIGMA))
    crops = (apply_crop(resize_image(frame, track.size), box, CROPPED_SIDE) for frame in frames)
    return measure_sync(model, crops, camera, speech * np.float32(speech_gain(measure_level([speech]))))


def compute_similarities(
    model: SyncDiscriminator, frames: Iterable[np.ndarray], camera: Camera, speech: np.ndarray
) -> Tensor:
    """Compute the cosine similarity of every five consecutive frames (rows) with the speech around each (columns).

    Takes the arguments of :func:`measure_sync`. Returns ``[W, W]`` with ``W = T - 4``; row and column i belong to
    frame ``i + 2``.
    """
    lips = embed_video(model, frames, camera)
    return lips @ embed_moments(model, speech, model.config.frames // 2 + np.arange(len(lips))).T


@dataclass(frozen=True)
class ClipReport:
    """Results of the discriminator on one real clip."""

    clip: Clip
    two_way: TwoWay
    """Lips with their own speech against speech at other times of the clip."""
    offset: int
    """Constant offset of the clip in frames."""
    corrected: TwoWay
    """As ``two_way``, after correction for the offset."""
    segments: tuple[int, ...]
    """Offset found in each segment of two seconds."""

    def count_hits(self, about: int = 0) -> int:
        """Count the segments whose offset is within one frame of ``about``."""
        return sum(abs(offset - about) <= 1 for offset in self.segments)


def evaluate_discriminator(model: SyncDiscriminator, root: str | Path, split: str) -> list[ClipReport]:
    """Evaluate the discriminator on the clips of a split that are known to be in sync.

    Raises:
        UserError: no such clip is two seconds long.
    """
    clips = open_clips(root, split)
    rows = clips.find_speaking(SEGMENT_FRAMES)
    if not len(rows):
        raise UserError(root, f"split '{split}' has no clip with speech in step", "prepare clips with sound")
    reports = []
    for row in tqdm(rows.tolist(), desc="clips", leave=False):
        track = clips.load_track(row)
        assert track.speech is not None, "silent clips are left out"
        frames = np.arange(track.clip.frames)
        camera = Camera.from_numpy(interpolate_frames(track, frames.astype(float)))
        similarities = compute_similarities(model, track.clip.read_frames(frames), camera, track.speech)
        reports.append(report_clip(track.clip, similarities))
    return reports


def report_clip(clip: Clip, similarities: Tensor) -> ClipReport:
    """Measure the accuracy, the constant offset of the clip, and the offset of each segment."""
    rows = SEGMENT_FRAMES - 4
    starts = range(0, max(len(similarities) - rows, 0) + 1, SEGMENT_STRIDE)
    scores = (score_offsets(similarities[start : start + rows], MAX_OFFSET, start) for start in starts)
    found = tuple(int(one.argmax()) - MAX_OFFSET for one in scores)
    offset, _ = find_clip_offset(similarities)
    corrected = align_similarities(similarities, offset)
    two_way, at_offset = (
        measure_two_way(one, mark_distant(len(one), NEGATIVE_DISTANCE)) for one in (similarities, corrected)
    )
    return ClipReport(clip, two_way, offset, at_offset, found)


def align_similarities(similarities: Tensor, offset: int) -> Tensor:
    """Return the square part of ``[T, T]`` similarities whose diagonal pairs lips at t with speech at t + offset."""
    count = len(similarities) - abs(offset)
    return similarities[max(-offset, 0) :, max(offset, 0) :][:count, :count]


def format_reports(reports: list[ClipReport]) -> str:
    """Return a Markdown table: one line per clip, then means over people and the shares of all segments."""
    lines = [
        "| clip | sync | two-way accuracy | separation | own offset | accuracy in step | ±1 of 0 | ±1 of own offset |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for one in reports:
        count = len(one.segments)
        hits = f"{one.count_hits()}/{count} | {one.count_hits(one.offset)}/{count}"
        scores = f"{one.two_way.accuracy:.3f} | {one.two_way.separation:.3f} | {one.offset:+d}"
        lines.append(f"| {one.clip.id} | {one.clip.sync} | {scores} | {one.corrected.accuracy:.3f} | {hits} |")
    for title, kept in (("ok", [one for one in reports if one.clip.sync == "ok"]), ("all", reports)):
        if kept:
            lines.append(_format_mean(title, kept))
    lines += ["", EXPLANATION]
    return "\n".join(lines)


def _format_mean(title: str, reports: list[ClipReport]) -> str:
    """Format the means over people of the means over their clips, and the shares of all segments."""
    people: dict[str, list[tuple[float, float, float]]] = defaultdict(list)
    for one in reports:
        people[one.clip.person].append((one.two_way.accuracy, one.two_way.separation, one.corrected.accuracy))
    accuracy, separation, corrected = np.mean([np.mean(scores, axis=0) for scores in people.values()], axis=0)
    count = sum(len(one.segments) for one in reports)
    hits, own = sum(one.count_hits() for one in reports), sum(one.count_hits(one.offset) for one in reports)
    shares = f"{hits / count:.1%} of {count} | {own / count:.1%}"
    return f"| mean of people | {title} | {accuracy:.3f} | {separation:.3f} | | {corrected:.3f} | {shares} |"
