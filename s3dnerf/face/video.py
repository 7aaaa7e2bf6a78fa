"""Head tracking of a whole video: landmarks, one crop, and the head pose of every frame in that crop."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from s3dnerf.errors import UserError
from s3dnerf.face.camera import HeadPose, fit_head_pose
from s3dnerf.face.crop import CropBox, apply_crop, choose_crop, crop_landmarks
from s3dnerf.face.landmarks import to_pixels
from s3dnerf.face.registration import REGISTRATION_SIZE, register_head_poses
from s3dnerf.face.tracker import FaceTracker
from s3dnerf.media.video import probe_video, stream_frames

MAX_GAP = 5
"""Longest run of frames without a face that still counts as valid after interpolation."""
MIN_FACE_RATIO = 0.5
"""Smallest ratio of frames that must show a face."""


@dataclass(frozen=True)
class LandmarkTrack:
    """Landmarks of a video without gaps."""

    landmarks: np.ndarray
    """``float32 [T, 478, 3]`` pixels of the source video."""
    valid: np.ndarray
    """``bool [T]``: a face was detected, or a gap of at most ``MAX_GAP`` frames was interpolated."""


@dataclass(frozen=True)
class HeadLocation:
    """Where the head is in a video."""

    landmarks: np.ndarray
    """``float32 [T, 478, 3]`` pixels of the source video, without gaps."""
    valid: np.ndarray
    """``bool [T]``: a face was detected, or a gap of at most ``MAX_GAP`` frames was interpolated."""
    crop: CropBox
    """Square around the head, the same for all frames, in pixels of the source video."""
    frame_size: tuple[int, int]
    """Height and width of the source video."""

    def __len__(self) -> int:
        return len(self.landmarks)

    @property
    def cropped_landmarks(self) -> np.ndarray:
        """The landmarks, crop-normalized (u, v, d)."""
        return crop_landmarks(self.landmarks, self.crop)

    def crop_frames(self, frames: Iterable[np.ndarray], size: int) -> Iterator[np.ndarray]:
        """Yield the crops ``uint8 [size, size, 3]`` of the first T frames ``uint8 [H, W, 3]`` of the video."""
        return (apply_crop(frame, self.crop, size) for frame in islice(frames, len(self)))

    def register_poses(self, open_crops: Callable[[], Iterator[np.ndarray]]) -> HeadTrack:
        """Add the head poses.

        Args:
            open_crops: starts reading the T crops, ``REGISTRATION_SIZE`` pixels a side; called twice.
        """
        pose = register_head_poses(open_crops, self.cropped_landmarks)
        return HeadTrack(self.landmarks, self.valid, self.crop, self.frame_size, pose)


@dataclass(frozen=True)
class HeadTrack(HeadLocation):
    """A head followed through a video."""

    pose: HeadPose
    """T registered and smoothed poses, crop-normalized."""


def track_head(path: str | Path, *, landmarks: np.ndarray | None = None, max_frames: int | None = None) -> HeadTrack:
    """Track the head of a video at 25 frames per second.

    Locates the head and registers its poses by optical flow within the crop.

    Args:
        path: the video.
        landmarks: ``[T, 478, 3]`` in normalized image coordinates (u, v, d) if they are known; all frames count as
            valid. By default they are tracked.
        max_frames: number of leading frames to use; all by default.

    Raises:
        UserError: the video cannot be read, or fewer than half of its frames show a face.
    """
    location = locate_head(path, landmarks=landmarks, max_frames=max_frames)
    return location.register_poses(lambda: location.crop_frames(stream_frames(path), REGISTRATION_SIZE))


def locate_head(
    path: str | Path,
    frames: Iterable[np.ndarray] | None = None,
    *,
    landmarks: np.ndarray | None = None,
    max_frames: int | None = None,
    min_crop_side: float = 0.0,
) -> HeadLocation:
    """Detect the landmarks of a video and choose one crop that holds the head in all valid frames.

    Args:
        path: the video.
        frames: its frames ``uint8 [H, W, 3]``, if they are decoded already.
        landmarks: as for :func:`track_head`.
        max_frames: as for :func:`track_head`.
        min_crop_side: smallest side of the crop, pixels of the source video.

    Raises:
        UserError: the video cannot be read, fewer than half of its frames show a face, or the crop is too small.
    """
    info = probe_video(path)
    frame_size = (info.height, info.width)
    if landmarks is None:
        track = track_landmarks(path, frame_size, frames)
    else:
        track = LandmarkTrack(to_pixels(landmarks, frame_size), np.ones(len(landmarks), bool))
    points, valid = track.landmarks[:max_frames], track.valid[:max_frames]
    # Landmarks before the first face repeat those of the first face, so they can stand in for valid frames.
    visible = valid if valid.any() else np.ones_like(valid)
    crop = choose_crop(fit_head_pose(points)[visible], frame_size)
    if crop.side < min_crop_side:
        reason = f"the head is too small: its crop has {crop.side:.0f} of at least {min_crop_side:.0f} pixels"
        raise UserError(path, reason, "Use a video of higher resolution, or cut it to the head.")
    return HeadLocation(points, valid, crop, frame_size)


def track_landmarks(
    path: str | Path, frame_size: tuple[int, int], frames: Iterable[np.ndarray] | None = None
) -> LandmarkTrack:
    """Track the face of a video at 25 frames per second.

    Args:
        path: the video.
        frame_size: its height and width.
        frames: its frames ``uint8 [H, W, 3]``, if they are decoded already.

    Raises:
        UserError: the video cannot be read, or fewer than half of its frames show a face.
    """
    detections = [
        None if landmarks is None else to_pixels(landmarks, frame_size)
        for landmarks in FaceTracker().track(stream_frames(path) if frames is None else frames)
    ]
    track = interpolate_landmarks(detections)
    if track is None or track.valid.mean() < MIN_FACE_RATIO:
        raise too_few_faces(path, detections, "Leave it out, or cut it to the part that shows a face.")
    return track


def interpolate_landmarks(detections: Sequence[np.ndarray | None]) -> LandmarkTrack | None:
    """Interpolate landmarks ``[478, 3]`` linearly over frames without a face.

    Gaps of at most ``MAX_GAP`` frames count as valid. Before the first and after the last face, the nearest landmarks
    are repeated and do not count as valid. Returns None if no frame shows a face.
    """
    detected = np.flatnonzero([landmarks is not None for landmarks in detections])
    if not len(detected):
        return None
    known = np.stack([landmarks for landmarks in detections if landmarks is not None])
    frames = np.arange(len(detections))
    after = np.clip(np.searchsorted(detected, frames), 0, len(detected) - 1)
    before = np.clip(np.searchsorted(detected, frames, side="right") - 1, 0, len(detected) - 1)
    span = np.maximum(detected[after] - detected[before], 1)
    weight = np.clip((frames - detected[before]) / span, 0, 1)[:, None, None]
    filled = known[before] * (1 - weight) + known[after] * weight
    inside = (frames >= detected[0]) & (frames <= detected[-1])
    valid = inside & (detected[after] - detected[before] - 1 <= MAX_GAP)
    return LandmarkTrack(filled.astype(np.float32), valid)


def too_few_faces(path: str | Path, detections: Sequence[np.ndarray | None], hint: str) -> UserError:
    """Return the error for a video in which too few frames show a face."""
    count = sum(landmarks is not None for landmarks in detections)
    return UserError(path, f"a face is seen in only {count} of {len(detections)} frames", hint)
