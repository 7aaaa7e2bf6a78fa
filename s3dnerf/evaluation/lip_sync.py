"""How far lips and speech of a video are in step, by our own discriminator, and how far that can be trusted.

The scores are not SyncNet's LSE-C and LSE-D: another network, another space, other numbers.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from s3dnerf.data.clip import Clip, list_clips
from s3dnerf.data.config import OFFSET_MARGIN
from s3dnerf.data.frames import interpolate_frames
from s3dnerf.data.tracks import has_usable_speech, load_clip_track, load_sync_offsets
from s3dnerf.errors import UserError
from s3dnerf.evaluation.tracking import FaceTrack
from s3dnerf.face.camera import fit_head_pose, smooth_head_pose
from s3dnerf.face.crop import apply_crop, choose_crop, crop_pose
from s3dnerf.face.landmarks import to_pixels
from s3dnerf.face.registration import TRACKED_SIGMA
from s3dnerf.media.audio import measure_level, speech_gain
from s3dnerf.media.files import replace_when_done
from s3dnerf.media.image import resize_image
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
from s3dnerf.training.sync import SyncClip, SyncConfig, SyncTrainer, compare_clip, read_clips

REACH = 15
"""Offsets searched to either side, frames."""
OWN_REACH = 5
"""The same for the constant offset of a clip."""
STRETCH = 50
"""Frames of the stretches whose offset is recovered: two seconds."""
STRIDE = 25
"""Frames from one such stretch to the next."""
DISTANCE = 6
"""Frames away from which speech counts as out of step."""
EXPLANATION = f"""Two-way accuracy: five frames of lips are nearer to their own speech than to speech {DISTANCE} or more
frames away in the clip; chance is 0.5. Own offset: frames by which the clip's sound comes late throughout, up to
{OWN_REACH}; accuracy in step is what is reached once it is made up for. Last columns: stretches of two seconds whose
offset, searched over {REACH} frames to either side, is found within one frame of 0, and of the clip's own."""


@dataclass(frozen=True)
class SyncScores:
    """How well a video is in step."""

    confidence: float
    """Best mean cosine over the offsets, minus their median: how clearly one offset stands out (as SyncNet's)."""
    distance: float
    """One minus the mean cosine at the best offset, 0 to 2."""
    offset: int
    """Frames by which the sound comes late; negative when it comes early."""
    in_sync: float
    """Mean cosine without an offset."""


def measure_sync(
    model: SyncDiscriminator, frames: Iterable[np.ndarray], camera: Camera, speech: np.ndarray, reach: int = REACH
) -> SyncScores:
    """Score a whole video.

    Args:
        model: the discriminator, from ``load_discriminator``.
        frames: T frames ``uint8 [S, S, 3]``, one after the other.
        camera: T head poses.
        speech: 16 kHz sound at the normal level, ``[samples]``.
        reach: largest offset looked at, frames.

    Raises:
        ValueError: there are not as many frames as poses, or fewer than twice ``reach``.
    """
    cosines = compare_video(model, frames, camera, speech)
    if len(cosines) < 2 * reach:
        raise ValueError(f"{len(cosines)} moments are too few to look {reach} frames to either side")
    scores = score_offsets(cosines, reach)
    best = scores.max()
    return SyncScores(
        confidence=(best - scores.median()).item(),
        distance=(1.0 - best).item(),
        offset=int(scores.argmax()) - reach,
        in_sync=scores[reach].item(),
    )


def judge_sync(
    model: SyncDiscriminator, frames: Iterable[np.ndarray], track: FaceTrack, speech: np.ndarray
) -> SyncScores | None:
    """Score a video by its track, cropped as clips are in preparation; None where that cannot be done.

    Args:
        model: the discriminator.
        frames: the video, ``uint8 [H, W, 3]`` a frame.
        track: of the same video.
        speech: its 16 kHz sound, ``[samples]``.
    """
    if not track.found.any() or len(track) < 2 * REACH + model.config.frames:
        return None
    points = to_pixels(track.filled, track.size)
    pose = fit_head_pose(points)
    box = choose_crop(pose, track.size)
    camera = Camera.from_numpy(smooth_head_pose(crop_pose(pose, box), TRACKED_SIGMA))
    crops = (apply_crop(resize_image(frame, track.size), box, CROPPED_SIDE) for frame in frames)
    return measure_sync(model, crops, camera, speech * np.float32(speech_gain(measure_level([speech]))))


def compare_video(model: SyncDiscriminator, frames: Iterable[np.ndarray], camera: Camera, speech: np.ndarray) -> Tensor:
    """Cosines ``[W, W]`` of every five consecutive frames (rows) with the speech around each (columns).

    Arguments as of :func:`measure_sync`; ``W = T - 4``, and row and column i belong to frame ``i + 2``.
    """
    lips = embed_video(model, frames, camera)
    return lips @ embed_moments(model, speech, model.config.frames // 2 + np.arange(len(lips))).T


@dataclass(frozen=True)
class ClipReport:
    """What the discriminator makes of one real clip."""

    clip: Clip
    two_way: TwoWay
    """Lips with their own speech against that of other moments of the clip."""
    offset: int
    """Offset of the whole clip, frames."""
    corrected: TwoWay
    """The same as ``two_way``, once the clip is brought in step by its offset."""
    stretches: tuple[int, ...]
    """Offset found in each stretch of two seconds."""

    def count_hits(self, about: int = 0) -> int:
        """Stretches whose offset was found within one frame of ``about``."""
        return sum(abs(offset - about) <= 1 for offset in self.stretches)


def evaluate_discriminator(model: SyncDiscriminator, root: Path, split: str) -> list[ClipReport]:
    """Judge the discriminator on the clips of a split that are known to be in step.

    Raises:
        UserError: there is none as long as a stretch of two seconds.
    """
    tracks = [load_clip_track(folder) for folder in list_clips(root, split)]
    speaking = [track for track in tracks if has_usable_speech(track, STRETCH)]
    if not speaking:
        raise UserError(root, f"split '{split}' has no clip with speech in step", "prepare clips with sound")
    reports = []
    for track in tqdm(speaking, desc="clips", leave=False):
        frames = np.arange(track.clip.frames)
        camera = Camera.from_numpy(interpolate_frames(track, frames.astype(float)))
        cosines = compare_video(model, track.clip.read_frames(frames), camera, track.speech)
        reports.append(report_clip(track.clip, cosines))
    return reports


def report_clip(clip: Clip, cosines: Tensor) -> ClipReport:
    """Measure accuracy, the clip's own offset, and the offset found in each stretch."""
    rows = STRETCH - 4
    firsts = range(0, max(len(cosines) - rows, 0) + 1, STRIDE)
    found = [int(score_offsets(cosines[first : first + rows], REACH, first).argmax()) - REACH for first in firsts]
    offset, _ = find_own_offset(cosines)
    corrected = shift(cosines, offset)
    two_way, at_offset = (measure_two_way(one, mark_distant(len(one), DISTANCE)) for one in (cosines, corrected))
    return ClipReport(clip, two_way, offset, at_offset, tuple(found))


def shift(cosines: Tensor, offset: int) -> Tensor:
    """Return the square part of ``cosines [T, T]`` whose diagonal pairs lips at t with speech at ``t + offset``."""
    count = len(cosines) - abs(offset)
    return cosines[max(-offset, 0) :, max(offset, 0) :][:count, :count]


def find_own_offset(cosines: Tensor) -> tuple[int, float]:
    """Return a clip's constant offset, and by how much its mean cosine exceeds that of any not beside it."""
    scores = score_offsets(cosines, OWN_REACH)
    best = int(scores.argmax())
    others = (torch.arange(len(scores)) - best).abs() > 1
    return best - OWN_REACH, (scores[best] - scores[others].max()).item()


def format_reports(reports: list[ClipReport]) -> str:
    """Return a Markdown table: a line a clip, then means over people and the shares of all stretches."""
    lines = [
        "| clip | sync | two-way accuracy | separation | own offset | accuracy in step | ±1 of 0 | ±1 of own offset |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for one in reports:
        count = len(one.stretches)
        hits = f"{one.count_hits()}/{count} | {one.count_hits(one.offset)}/{count}"
        scores = f"{one.two_way.accuracy:.3f} | {one.two_way.separation:.3f} | {one.offset:+d}"
        lines.append(f"| {one.clip.id} | {one.clip.sync} | {scores} | {one.corrected.accuracy:.3f} | {hits} |")
    for title, kept in (("ok", [one for one in reports if one.clip.sync == "ok"]), ("all", reports)):
        if kept:
            lines.append(_format_mean(title, kept))
    lines += ["", EXPLANATION]
    return "\n".join(lines)


def _format_mean(title: str, reports: list[ClipReport]) -> str:
    """Format means over people of the means over their clips, and the shares of all stretches."""
    people: dict[str, list[tuple[float, float, float]]] = defaultdict(list)
    for one in reports:
        people[one.clip.person].append((one.two_way.accuracy, one.two_way.separation, one.corrected.accuracy))
    accuracy, separation, corrected = np.mean([np.mean(scores, axis=0) for scores in people.values()], axis=0)
    count = sum(len(one.stretches) for one in reports)
    hits, own = sum(one.count_hits() for one in reports), sum(one.count_hits(one.offset) for one in reports)
    shares = f"{hits / count:.1%} of {count} | {own / count:.1%}"
    return f"| mean of people | {title} | {accuracy:.3f} | {separation:.3f} | | {corrected:.3f} | {shares} |"


def write_offsets(config: SyncConfig, run_dir: Path, path: Path) -> None:
    """Estimate the constant offset of each training clip by a discriminator that never saw its person.

    Two are trained, each on one half of the people. Writes a table with the columns id, offset (frames by which the
    sound comes late: the speech that fits the lips at t is at t + offset), margin (mean cosine at this offset minus
    that at the best one not beside it) and frames. Offsets that ``config.data.offsets`` corrected before are added.
    """
    clips = read_clips(config)
    known = load_sync_offsets(config.data.offsets, OFFSET_MARGIN)
    people = sort_by_frames(clips)
    rows = []
    for half in range(2):
        left_out = replace(config.data, left_out=tuple(people[half::2]))
        trainer = SyncTrainer(replace(config, data=left_out), run_dir / f"half_{half + 1}", clips)
        trainer.run()
        model = trainer.average.module.eval()
        for clip in trainer.watched:
            with torch.no_grad():
                offset, margin = find_own_offset(compare_clip(model, clip, trainer.device).cpu())
            name = clip.track.clip.id
            rows.append((name, offset + known.get(name, 0), f"{margin:.4f}", clip.track.clip.frames))
    with (
        replace_when_done(path, can_stream=True) as temporary,
        temporary.open("w", newline="", encoding="utf-8") as file,
    ):
        csv.writer(file).writerows([("id", "offset", "margin", "frames"), *sorted(rows)])


def sort_by_frames(clips: list[SyncClip]) -> list[str]:
    """Return the people, those with most frames first, so that every second one is a fair half."""
    frames: dict[str, int] = defaultdict(int)
    for clip in clips:
        frames[clip.track.clip.person] += clip.track.clip.frames
    return sorted(frames, key=lambda person: (-frames[person], person))
