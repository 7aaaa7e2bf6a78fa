"""Driving videos: the motion of the head in a video, across cuts and through frames that show no face."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from s3dnerf.data.prepare import fill_gaps
from s3dnerf.errors import UserError
from s3dnerf.face.camera import HeadPose, fit_head_pose
from s3dnerf.face.crop import apply_crop, choose_crop, crop_landmarks
from s3dnerf.face.landmarks import FaceTracker, to_pixels
from s3dnerf.face.registration import SIDE, register_head
from s3dnerf.face.shots import PictureChange, ease_gaps, find_cuts, find_picture_changes, join_shots, measure_changes
from s3dnerf.media.audio import FPS
from s3dnerf.media.video import probe_video, stream_frames

LEAST_SEEN = 0.5
"""Share of the frames that must show a face."""


@dataclass(frozen=True)
class DrivingMotion:
    """Head motion of a video at 25 frames a second, joined across its cuts."""

    pose: HeadPose
    """[T], in a unit of its own."""
    cuts: tuple[int, ...]
    """First frame of each shot but the first."""
    unseen: int
    """Frames that show no face."""

    def describe(self) -> str:
        """Say what is bridged; empty when nothing is."""
        parts = []
        if self.cuts:
            seconds = ", ".join(f"{frame / FPS:.1f}" for frame in self.cuts)
            parts.append(f"motion goes on across {len(self.cuts)} cut{'s'[: len(self.cuts) > 1]} (at {seconds} s)")
        if self.unseen:
            parts.append(f"{self.unseen} of {len(self.pose)} frames show no face")
        if len(self.pose) == 1:
            parts.append("has only one frame, so the head keeps still")
        return ", ".join(parts)


class ForwardReader:
    """Reads ranges of frames of a video in order, decoding each frame at most once."""

    def __init__(self, path: Path) -> None:
        self._frames = stream_frames(path)
        self._position = 0

    def read(self, start: int, stop: int) -> Iterator[np.ndarray]:
        """Yield frames ``start`` up to ``stop``; ``start`` must not lie before what was read."""
        if start < self._position:
            raise ValueError(f"frame {start} was passed: {self._position} frames were read")
        for frame in self._frames:
            self._position += 1
            if self._position > start:
                yield frame
            if self._position >= stop:
                return


def read_driving_motion(path: str | Path) -> DrivingMotion:
    """Read the head motion of a video.

    Raises:
        UserError: the video cannot be read, or under half of its frames show a face.
    """
    path = Path(path)
    info = probe_video(path)
    frame_size = (info.height, info.width)
    candidates = find_picture_changes(measure_changes(stream_frames(path)))
    found = [
        None if landmarks is None else to_pixels(landmarks, frame_size) for landmarks in track_shots(path, candidates)
    ]
    seen = np.array([landmarks is not None for landmarks in found])
    if not len(seen) or seen.mean() < LEAST_SEEN:
        reason = f"a face is seen in only {int(seen.sum())} of {len(seen)} frames"
        raise UserError(path, reason, "Use a video of one person's face, or cut it to the part that shows one.")
    cuts = find_cuts(candidates, fit_head_pose(fill_gaps(found).landmarks), seen)
    return DrivingMotion(follow_shots(path, found, frame_size, cuts), tuple(cuts), int((~seen).sum()))


def track_shots(path: Path, candidates: list[PictureChange]) -> Iterator[np.ndarray | None]:
    """Track the face of a video, and look for it anew wherever the picture changes as it does at a cut."""
    starts = [change.frame for change in candidates]
    frames = stream_frames(path)
    with FaceTracker() as tracker:
        for start, stop in zip([0, *starts], [*starts, None], strict=True):
            yield from tracker.track(islice(frames, None if stop is None else stop - start))
            tracker.forget()


def follow_shots(path: Path, found: list[np.ndarray | None], frame_size: tuple[int, int], cuts: list[int]) -> HeadPose:
    """Find the head poses of each shot in a crop of its own, and join them; a shot without a face stands still.

    Args:
        found: landmarks in pixels, [478, 3] or None, of each of T frames.
        frame_size: height and width.
        cuts: first frame of each shot but the first.
    """
    # Registration reads a shot twice, from its beginning.
    readers = ForwardReader(path), ForwardReader(path)
    shots, resting = [], 0
    for start, stop in zip([0, *cuts], [*cuts, len(found)], strict=True):
        track = fill_gaps(found[start:stop])
        if track is None:
            if shots:
                shots.append(shots[-1][np.full(stop - start, -1)])
            else:
                resting += stop - start
            continue
        seen = np.array([landmarks is not None for landmarks in found[start:stop]])
        box = choose_crop(fit_head_pose(track.landmarks[seen]), frame_size)
        waiting = iter(readers)

        def stream(start: int = start, stop: int = stop, box=box, waiting=waiting) -> Iterator[np.ndarray]:
            return (apply_crop(frame, box, SIDE) for frame in next(waiting).read(start, stop))

        shots.append(ease_gaps(register_head(stream, crop_landmarks(track.landmarks, box)), seen))
    joined = join_shots(shots)
    return joined[np.maximum(np.arange(-resting, len(joined)), 0)]
