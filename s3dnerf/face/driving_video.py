"""Head motion of a driving video, across cuts and through frames without a face."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from s3dnerf.face.camera import HeadPose, fit_head_pose
from s3dnerf.face.crop import CropBox, apply_crop, choose_crop, crop_landmarks
from s3dnerf.face.landmarks import to_pixels
from s3dnerf.face.registration import REGISTRATION_SIZE, register_head_poses
from s3dnerf.face.shots import (
    CutCandidate,
    concatenate_shots,
    find_cut_candidates,
    find_cuts,
    interpolate_pose_gaps,
    measure_frame_differences,
)
from s3dnerf.face.tracker import FaceTracker
from s3dnerf.face.video import MIN_FACE_RATIO, interpolate_landmarks, too_few_faces
from s3dnerf.media.audio import FPS
from s3dnerf.media.video import probe_video, stream_frames


@dataclass(frozen=True)
class DrivingMotion:
    """Head motion of a video at 25 frames per second, joined across its cuts."""

    pose: HeadPose
    """T poses, in an arbitrary unit."""
    cuts: tuple[int, ...]
    """First frame of each shot except the first."""
    missing_faces: int
    """Number of frames without a face."""

    def describe(self) -> str:
        """Describe the cuts and gaps that were bridged; empty if there are none."""
        parts = []
        if self.cuts:
            seconds = ", ".join(f"{frame / FPS:.1f}" for frame in self.cuts)
            parts.append(f"motion goes on across {len(self.cuts)} cut{'s'[: len(self.cuts) > 1]} (at {seconds} s)")
        if self.missing_faces:
            parts.append(f"{self.missing_faces} of {len(self.pose)} frames show no face")
        if len(self.pose) == 1:
            parts.append("has only one frame, so the head keeps still")
        return ", ".join(parts)


class ForwardReader:
    """Reads ranges of frames of a video in order and decodes each frame at most once."""

    def __init__(self, path: Path) -> None:
        self._frames = stream_frames(path)
        self._position = 0

    def read(self, start: int, stop: int) -> Iterator[np.ndarray]:
        """Yield frames ``start`` up to ``stop``.

        Raises:
            ValueError: ``start`` lies before the frames that were read already.
        """
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
        UserError: the video cannot be read, or fewer than half of its frames show a face.
    """
    path = Path(path)
    info = probe_video(path)
    frame_size = (info.height, info.width)
    candidates = find_cut_candidates(measure_frame_differences(stream_frames(path)))
    detections = [
        None if landmarks is None else to_pixels(landmarks, frame_size) for landmarks in track_shots(path, candidates)
    ]
    detected = np.array([landmarks is not None for landmarks in detections])
    track = interpolate_landmarks(detections)
    if track is None or detected.mean() < MIN_FACE_RATIO:
        hint = "Use a video of one person's face, or cut it to the part that shows one."
        raise too_few_faces(path, detections, hint)
    cuts = find_cuts(candidates, fit_head_pose(track.landmarks), detected)
    pose = estimate_shot_poses(path, detections, frame_size, cuts)
    return DrivingMotion(pose, tuple(cuts), int((~detected).sum()))


def track_shots(path: Path, candidates: list[CutCandidate]) -> Iterator[np.ndarray | None]:
    """Track the face of a video and restart the tracker at each possible cut."""
    starts = [candidate.frame for candidate in candidates]
    frames = stream_frames(path)
    tracker = FaceTracker()
    for start, stop in zip([0, *starts], [*starts, None], strict=True):
        yield from tracker.track(islice(frames, None if stop is None else stop - start))
        tracker.reset()


def estimate_shot_poses(
    path: Path, detections: list[np.ndarray | None], frame_size: tuple[int, int], cuts: list[int]
) -> HeadPose:
    """Estimate the head poses of each shot in a crop of its own and join the shots.

    The head keeps still in shots without a face.

    Args:
        path: the video.
        detections: landmarks ``[478, 3]`` in pixels, or None, of each of T frames.
        frame_size: height and width.
        cuts: first frame of each shot except the first.
    """
    # Registration reads each shot twice from its beginning.
    readers = ForwardReader(path), ForwardReader(path)
    shots: list[HeadPose] = []
    leading_frames = 0
    for start, stop in zip([0, *cuts], [*cuts, len(detections)], strict=True):
        track = interpolate_landmarks(detections[start:stop])
        if track is None:
            if shots:
                shots.append(shots[-1][np.full(stop - start, -1)])
            else:
                leading_frames += stop - start
            continue
        detected = np.array([landmarks is not None for landmarks in detections[start:stop]])
        crop = choose_crop(fit_head_pose(track.landmarks[detected]), frame_size)
        unused = iter(readers)

        def open_crops(
            start: int = start,
            stop: int = stop,
            crop: CropBox = crop,
            unused: Iterator[ForwardReader] = unused,
        ) -> Iterator[np.ndarray]:
            return (apply_crop(frame, crop, REGISTRATION_SIZE) for frame in next(unused).read(start, stop))

        pose = register_head_poses(open_crops, crop_landmarks(track.landmarks, crop))
        shots.append(interpolate_pose_gaps(pose, detected))
    joined = concatenate_shots(shots)
    return joined[np.maximum(np.arange(-leading_frames, len(joined)), 0)]
