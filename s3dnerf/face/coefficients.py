"""Motion of a face in a few numbers per frame: expression, head pose, eye openness and gaze.

Expression coefficients belong to a linear basis (:mod:`s3dnerf.face.expression_basis`). They take the place of 3DMM
coefficients, whose bases may not be shipped. Head motion is a change from a source frame, so it can be transferred to
any head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from s3dnerf.face.camera import HeadPose
from s3dnerf.face.expression_basis import (
    CHANNEL_COUNT,
    ExpressionBasis,
    load_shipped_basis,
    mirror_eye_state,
)
from s3dnerf.face.regions import measure_gaze
from s3dnerf.face.rotation import average_rotations, matrix_to_rotvec, rotvec_to_matrix

CHANNELS = {"expression": slice(0, 24), "pose": slice(24, 30), "eyes": slice(30, 32), "gaze": slice(32, 34)}
"""Columns of :meth:`MotionCoefficients.flatten`."""
POSE_MIRROR = np.array([1, -1, -1, -1, 1, 1], np.float32)
"""Signs of pitch, yaw, roll, shift to the right and up, and log scale in the mirror."""
MIN_USUAL_OPENNESS = 0.15
"""Least openness that counts as usual: that of closed eyes, so that a person who sleeps has finite coefficients."""
BLINK_RATIO = 0.6
"""Openness relative to the usual below which irises are hidden and gaze is interpolated."""


@dataclass(frozen=True)
class MotionCoefficients:
    """Motion of one face over T frames at 25 frames per second, all ``float32`` arrays.

    "Left" and "right" are the viewer's.
    """

    expression: np.ndarray
    """``[T, 24]`` coefficients of the expression basis, relative to the person's mean face. Blinks and gaze are not
    part of them."""
    pose: np.ndarray
    """``[T, 6]`` change from the source frame: rotation vector about the source head's own axes x (pitch, down), y
    (yaw, to the right) and z (roll, counterclockwise) in radians, shift to the right and up in units of the source
    head, and change of log scale. All 0 in the source frame."""
    eyes: np.ndarray
    """``[T, 2]`` openness of the left and right eye relative to the person's usual openness; 1 is usual, 0 closed."""
    gaze: np.ndarray
    """``[T, 2]`` position of the irises to the right and up relative to the person's usual gaze, in eye widths of the
    canonical face."""

    def __post_init__(self) -> None:
        for name, columns in CHANNELS.items():
            array = getattr(self, name)
            width = columns.stop - columns.start
            if array.ndim != 2 or array.shape != (len(self.pose), width):
                raise ValueError(f"{name} must have shape [{len(self.pose)}, {width}], got {list(array.shape)}")

    def __len__(self) -> int:
        return len(self.pose)

    def __getitem__(self, frames: slice | np.ndarray) -> MotionCoefficients:
        return MotionCoefficients(*(getattr(self, name)[frames] for name in CHANNELS))

    def flatten(self) -> np.ndarray:
        """Return all channels side by side, ``float32 [T, 34]``, in the order of ``CHANNELS``."""
        return np.concatenate([getattr(self, name) for name in CHANNELS], axis=1).astype(np.float32)

    @classmethod
    def unflatten(cls, values: np.ndarray) -> MotionCoefficients:
        """Split ``[T, 34]`` into channels; the inverse of :meth:`flatten`.

        Raises:
            ValueError: ``values`` has another shape.
        """
        values = np.asarray(values, np.float32)
        if values.ndim != 2 or values.shape[1] != CHANNEL_COUNT:
            raise ValueError(f"motion coefficients must have shape [T, {CHANNEL_COUNT}], got {list(values.shape)}")
        return cls(*(values[:, columns] for columns in CHANNELS.values()))

    def mirror(self, basis: ExpressionBasis | None = None) -> MotionCoefficients:
        """Return the coefficients of the mirrored face, of the same basis (default: the shipped one)."""
        basis = basis or load_shipped_basis()
        eye_state = mirror_eye_state(np.concatenate([self.eyes, self.gaze], axis=1))
        return MotionCoefficients(
            self.expression @ basis.mirror, self.pose * POSE_MIRROR, eye_state[:, :2], eye_state[:, 2:]
        )


class ClipLike(Protocol):
    """What is used of a prepared clip (:class:`s3dnerf.data.clip.Clip`)."""

    @property
    def eye_openness(self) -> np.ndarray:
        """``[T, 2]``."""

    @property
    def lip_opening(self) -> np.ndarray:
        """``[T]`` in head units."""


class TrackLike(Protocol):
    """What is used of the track of a clip (:class:`s3dnerf.data.tracks.ClipTrack`)."""

    @property
    def clip(self) -> ClipLike:
        """The clip."""

    @property
    def pose(self) -> HeadPose:
        """T poses."""

    @property
    def landmarks(self) -> np.ndarray:
        """``[T, P, 3]`` in head space."""

    @property
    def frames(self) -> np.ndarray:
        """Numbers of the frames in which a face was found."""


@dataclass(frozen=True)
class FaceReference:
    """What the coefficients of a person are relative to, except the pose of the source frame."""

    rest_face: np.ndarray
    """``[P, 3]`` in head space: the mean face with eyes as open as usual, looking as usual."""
    usual_openness: np.ndarray
    """``[2]`` median openness of the left and right eye."""
    usual_gaze: np.ndarray
    """``[2]`` median position of the irises, see :func:`~s3dnerf.face.regions.measure_gaze`."""


def measure_reference(track: TrackLike, basis: ExpressionBasis | None = None) -> FaceReference:
    """Measure the rest face, usual openness and usual gaze of a clip, over the frames in which a face was found."""
    basis = basis or load_shipped_basis()
    frames = track.frames
    openness = np.median(track.clip.eye_openness[frames], axis=0).astype(np.float32)
    openness = np.maximum(openness, np.float32(MIN_USUAL_OPENNESS))
    is_open = _find_open_eyes(track, openness)[frames]
    gaze = measure_gaze(track.landmarks[frames])
    usual_gaze = np.median(gaze[is_open] if is_open.any() else gaze, axis=0).astype(np.float32)
    eyes, gaze = _measure_eyes(track, openness, usual_gaze)
    state = _join_eye_state(eyes[frames], gaze[frames]).mean(axis=0)
    rest_face = track.landmarks[frames].mean(axis=0) - np.tensordot(state, basis.eye_motion, axes=1)
    return FaceReference(rest_face.astype(np.float32), openness, usual_gaze)


def compute_coefficients(
    track: TrackLike, source_frame: int = 0, basis: ExpressionBasis | None = None
) -> MotionCoefficients:
    """Compute the motion coefficients of a prepared clip.

    Head poses are those of the clip, registered by optical flow, without the mouth's leak and low-passed
    (:func:`clean_pose`). Expression coefficients and gaze are not smoothed. Frames without a face hold what the clip
    holds there.

    Args:
        track: T frames.
        source_frame: number of the frame from which ``pose`` is a change.
        basis: of the expression; the shipped one by default.

    Raises:
        IndexError: there is no such frame.
    """
    basis = basis or load_shipped_basis()
    reference = measure_reference(track, basis)
    eyes, gaze = _measure_eyes(track, reference.usual_openness, reference.usual_gaze)
    expression = basis.project(track.landmarks - reference.rest_face, _join_eye_state(eyes, gaze))
    pose = measure_pose_change(clean_pose(track.pose, track.clip.lip_opening), source_frame)
    return MotionCoefficients(expression, pose, eyes, gaze)


def clean_pose(pose: HeadPose, lip_opening: np.ndarray) -> HeadPose:
    """Remove the mouth's leak from the pitch of T poses, and motion above 4 Hz (:mod:`s3dnerf.face.pose_cleaning`).

    Args:
        pose: T poses of one clip.
        lip_opening: ``[T]`` in head units.
    """
    # Only training data is cleaned, and scipy.signal takes long to import.
    from s3dnerf.face.pose_cleaning import low_pass, remove_mouth_leak

    mean = average_rotations(pose.rotation)
    # About the axes of the head in its mean pose.
    rotvec = matrix_to_rotvec(mean.T @ pose.rotation)
    rotvec[:, 0] = remove_mouth_leak(rotvec[:, 0], lip_opening)
    series = low_pass(np.concatenate([rotvec, np.log(pose.scale.astype(np.float64))[:, None], pose.center], axis=1))
    rotation = mean @ rotvec_to_matrix(series[:, :3])
    return HeadPose(*(part.astype(np.float32) for part in (rotation, np.exp(series[:, 3]), series[:, 4:])))


def measure_pose_change(pose: HeadPose, source_frame: int = 0) -> np.ndarray:
    """Return the change of T poses from one of them as in :attr:`MotionCoefficients.pose`, ``float32 [T, 6]``.

    Raises:
        IndexError: there is no such frame.
    """
    if not 0 <= source_frame < len(pose):
        raise IndexError(f"the source frame must be 0 to {len(pose) - 1}, got {source_frame}")
    rotation, scale = pose.rotation.astype(np.float64), pose.scale.astype(np.float64)
    rotvec = matrix_to_rotvec(rotation[source_frame].T @ rotation)
    shift = (pose.center - pose.center[source_frame]) / scale[source_frame] * np.array([1.0, -1.0])
    zoom = np.log(scale / scale[source_frame])
    change = np.concatenate([rotvec, shift, zoom[:, None]], axis=1).astype(np.float32)
    change[source_frame] = 0.0
    return change


def to_head_pose(coefficients: MotionCoefficients, source: HeadPose) -> HeadPose:
    """Return T poses of a head that moves as the coefficients say, from the pose ``source`` (one frame).

    The inverse of :func:`measure_pose_change`.

    Raises:
        ValueError: ``source`` is not one frame.
    """
    if len(source) != 1:
        raise ValueError(f"expected the pose of one frame, got {len(source)}")
    change = coefficients.pose.astype(np.float64)
    rotation = source.rotation[0].astype(np.float64) @ rotvec_to_matrix(change[:, :3])
    scale = source.scale * np.exp(change[:, 5])
    center = source.center + source.scale * change[:, 3:5] * np.array([1.0, -1.0])
    return HeadPose(*(part.astype(np.float32) for part in (rotation, scale, center)))


def to_landmarks(
    coefficients: MotionCoefficients, reference: FaceReference, basis: ExpressionBasis | None = None
) -> np.ndarray:
    """Return the landmarks of a person with these coefficients in head space, ``float32 [T, P, 3]``.

    ``project(to_landmarks(...), to_head_pose(...))`` gives them in the image.
    """
    basis = basis or load_shipped_basis()
    state = _join_eye_state(coefficients.eyes, coefficients.gaze)
    return reference.rest_face + basis.displace(coefficients.expression, state)


def to_eye_openness(coefficients: MotionCoefficients, usual_openness: np.ndarray) -> np.ndarray:
    """Return the openness of the eyes ``float32 [T, 2]`` of a person with this usual openness ``[2]``."""
    return (coefficients.eyes * usual_openness).astype(np.float32)


def _find_open_eyes(track: TrackLike, usual_openness: np.ndarray) -> np.ndarray:
    return track.clip.eye_openness.min(axis=1) >= BLINK_RATIO * usual_openness.min()


def _measure_eyes(
    track: TrackLike, usual_openness: np.ndarray, usual_gaze: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return openness ``[T, 2]`` and gaze ``[T, 2]`` relative to the usual; gaze is interpolated across blinks."""
    gaze = measure_gaze(track.landmarks) - usual_gaze
    seen = np.flatnonzero(_find_open_eyes(track, usual_openness))
    frames = np.arange(len(gaze))
    if len(seen):
        gaze = np.stack([np.interp(frames, seen, axis) for axis in gaze[seen].T], axis=1)
    else:
        gaze = np.zeros_like(gaze)
    return (track.clip.eye_openness / usual_openness).astype(np.float32), gaze.astype(np.float32)


def _join_eye_state(eyes: np.ndarray, gaze: np.ndarray) -> np.ndarray:
    return np.concatenate([eyes - 1.0, gaze], axis=1)
