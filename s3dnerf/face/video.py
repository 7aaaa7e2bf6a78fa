"""Head tracking of a whole video: landmarks, one crop, and the head pose of every frame in that crop."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from s3dnerf.errors import UserError
from s3dnerf.face.camera import HeadPose, fit_head_pose
from s3dnerf.face.crop import CropBox, apply_crop, choose_crop, crop_landmarks
from s3dnerf.face.landmarks import FaceTracker, to_pixels
from s3dnerf.face.registration import REGISTRATION_SIZE, register_head_poses
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
class HeadTrack:
    """A head followed through a video."""

    landmarks: np.ndarray
    """``float32 [T, 478, 3]`` pixels of the source video, without gaps."""
    valid: np.ndarray
    """``bool [T]``: a face was detected, or a gap of at most ``MAX_GAP`` frames was interpolated."""
    crop: CropBox
    """Square around the head, the same for all frames, in pixels of the source video."""
    pose: HeadPose
    """T registered and smoothed poses, crop-normalized."""
    frame_size: tuple[int, int]
    """Height and width of the source video."""

    def __len__(self) -> int:
        return len(self.landmarks)

    @property
    def cropped_landmarks(self) -> np.ndarray:
        """The landmarks, crop-normalized (u, v, d)."""
        return crop_landmarks(self.landmarks, self.crop)

    def stream_crops(self, path: str | Path, size: int) -> Iterator[np.ndarray]:
        """Decode the video from its beginning and yield its T crops ``uint8 [size, size, 3]``."""
        return stream_crops(path, self.crop, size, len(self))


def track_head(
    path: str | Path,
    *,
    landmarks: np.ndarray | None = None,
    max_frames: int | None = None,
    min_crop_side: float = 0.0,
) -> HeadTrack:
    """Track the head of a video at 25 frames per second.

    Detects landmarks, fits head poses, chooses one crop that holds the head in all valid frames, and registers the
    poses by optical flow within that crop.

    Args:
        path: the video.
        landmarks: ``[T, 478, 3]`` in normalized image coordinates (u, v, d) if they are known; all frames count as
            valid. By default they are tracked.
        max_frames: number of leading frames to use; all by default.
        min_crop_side: smallest side of the crop, pixels of the source video.

    Raises:
        UserError: the video cannot be read, fewer than half of its frames show a face, or the crop is too small.
    """
    info = probe_video(path)
    frame_size = (info.height, info.width)
    if landmarks is None:
        track = track_landmarks(path, frame_size)
    else:
        track = LandmarkTrack(to_pixels(landmarks, frame_size), np.ones(len(landmarks), bool))
    points, valid = track.landmarks[:max_frames], track.valid[:max_frames]
    # Landmarks before the first face repeat those of the first face, so they can stand in for valid frames.
    visible = valid if valid.any() else np.ones_like(valid)
    crop = choose_crop(fit_head_pose(points)[visible], frame_size)
    if crop.side < min_crop_side:
        reason = f"the head is too small: its crop has {crop.side:.0f} of at least {min_crop_side:.0f} pixels"
        raise UserError(path, reason, "Use a video of higher resolution, or cut it to the head.")
    return HeadTrack(points, valid, crop, register_video_poses(path, points, crop), frame_size)


def track_landmarks(path: str | Path, frame_size: tuple[int, int]) -> LandmarkTrack:
    """Track the face of a video at 25 frames per second.

    Args:
        path: the video.
        frame_size: its height and width.

    Raises:
        UserError: the video cannot be read, or fewer than half of its frames show a face.
    """
    with FaceTracker() as tracker:
        detections = [
            None if landmarks is None else to_pixels(landmarks, frame_size)
            for landmarks in tracker.track(stream_frames(path))
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


def register_video_poses(path: str | Path, landmarks: np.ndarray, crop: CropBox) -> HeadPose:
    """Register the head poses of the first T frames of a video within a crop.

    Args:
        path: the video.
        landmarks: ``[T, 478, 3]`` in pixels of the video.
        crop: the square around the head.
    """
    return register_head_poses(
        lambda: stream_crops(path, crop, REGISTRATION_SIZE, len(landmarks)), crop_landmarks(landmarks, crop)
    )


def stream_crops(path: str | Path, crop: CropBox, size: int, frames: int | None = None) -> Iterator[np.ndarray]:
    """Decode a video and yield the crops ``uint8 [size, size, 3]`` of its first ``frames`` frames, or of all."""
    return (apply_crop(frame, crop, size) for frame in islice(stream_frames(path), frames))


def too_few_faces(path: str | Path, detections: Sequence[np.ndarray | None], hint: str) -> UserError:
    """Return the error for a video in which too few frames show a face."""
    count = sum(landmarks is not None for landmarks in detections)
    return UserError(path, f"a face is seen in only {count} of {len(detections)} frames", hint)
