"""Shots of a video: detection of cuts, and head motion that continues across them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import cv2
import numpy as np
from scipy.interpolate import PchipInterpolator
from scipy.ndimage import median_filter

from s3dnerf.face.camera import HeadPose
from s3dnerf.face.rotation import average_rotations, matrix_to_rotvec, rotvec_to_matrix

THUMBNAIL_SIZE = 32
"""Side in pixels of the thumbnails that are compared."""
MEDIAN_WINDOW = 13
"""Number of frame differences whose median is the typical difference at the middle one."""
MIN_DIFFERENCE = 6.0
MIN_DIFFERENCE_RATIO = 4.0
"""A cut candidate: mean difference of thumbnails in gray levels, and its ratio to the typical one. In videos of 60
tracked identities without a cut, the largest ratio is 5.0, at a difference of 12; between the frames of 60 pairs of
them the smallest difference is 28."""
CERTAIN_DIFFERENCE, CERTAIN_RATIO = 20.0, 8.0
"""A difference that is a cut even if the head jumps little."""
NOISE_FLOOR = 0.5
"""Difference in gray levels between frames without motion."""
MAX_HEAD_STEP = (np.radians(10.0), 0.25, 0.1)
"""Rotation, shift in head units and log scale change between neighboring frames: faster than heads move."""
MIN_CUT_STEP = 0.2
"""Multiple of ``MAX_HEAD_STEP`` from which a certain difference is a cut; below it, the motion has no visible jump."""


@dataclass(frozen=True)
class CutCandidate:
    """A possible cut."""

    frame: int
    """First frame after it."""
    certain: bool
    """Whether the image difference alone is sufficient evidence."""


def measure_frame_differences(frames: Iterable[np.ndarray]) -> np.ndarray:
    """Return the mean differences between the thumbnails of T neighboring frames in gray levels, ``[T - 1]``."""
    differences, previous = [], None
    for frame in frames:
        thumbnail = cv2.resize(frame, (THUMBNAIL_SIZE, THUMBNAIL_SIZE), interpolation=cv2.INTER_AREA)
        thumbnail = cv2.cvtColor(thumbnail, cv2.COLOR_RGB2GRAY).astype(np.float32)
        if previous is not None:
            differences.append(float(np.abs(thumbnail - previous).mean()))
        previous = thumbnail
    return np.array(differences, np.float64)


def find_cut_candidates(differences: np.ndarray) -> list[CutCandidate]:
    """Find frame differences ``[T - 1]`` that are much larger than those around them."""
    if not len(differences):
        return []
    window = min(MEDIAN_WINDOW, 2 * len(differences) - 1)
    typical = median_filter(differences, window, mode="nearest") + NOISE_FLOOR
    ratios = differences / typical
    found = np.flatnonzero((differences >= MIN_DIFFERENCE) & (ratios >= MIN_DIFFERENCE_RATIO))
    certain = (differences >= CERTAIN_DIFFERENCE) & (ratios >= CERTAIN_RATIO)
    return [CutCandidate(int(index) + 1, bool(certain[index])) for index in found]


def measure_head_step(before: HeadPose, after: HeadPose) -> float:
    """Return the step between two poses of one frame each, as a multiple of ``MAX_HEAD_STEP``."""
    start, end = (pose.rotation[0].astype(np.float64) for pose in (before, after))
    angle = float(np.linalg.norm(matrix_to_rotvec(start.T @ end)))
    zoom = abs(float(np.log(after.scale[0] / before.scale[0])))
    size = float(np.sqrt(before.scale[0] * after.scale[0]))
    shift = float(np.linalg.norm(after.center[0] - before.center[0])) / size
    return float(np.linalg.norm(np.divide((angle, shift, zoom), MAX_HEAD_STEP)))


def find_cuts(candidates: list[CutCandidate], pose: HeadPose, detected: np.ndarray) -> list[int]:
    """Select the cut candidates at which the head jumps as well, appears or disappears.

    Args:
        candidates: from :func:`find_cut_candidates`.
        pose: T poses in one unit; those of frames without a face are not used.
        detected: ``bool [T]``, frames that show a face.

    Returns:
        The first frame of each shot except the first.
    """
    cuts = []
    for candidate in candidates:
        before, after = detected[: candidate.frame], detected[candidate.frame :]
        if not (before[-1] and after[0]):
            if candidate.certain:
                cuts.append(candidate.frame)
            continue
        step = measure_head_step(
            pose[candidate.frame - 1 : candidate.frame], pose[candidate.frame : candidate.frame + 1]
        )
        if step > (MIN_CUT_STEP if candidate.certain else 1.0):
            cuts.append(candidate.frame)
    return cuts


def interpolate_pose_gaps(pose: HeadPose, detected: np.ndarray) -> HeadPose:
    """Replace the poses of frames without a face by monotone cubic curves between the others.

    Before the first and after the last face, the nearest pose is repeated.

    Args:
        pose: T poses.
        detected: ``bool [T]``, frames that show a face; not all False.
    """
    frames = np.flatnonzero(detected)
    if len(frames) == len(detected):
        return pose
    if len(frames) == 1:
        return pose[np.full(len(detected), frames[0])]
    mean = average_rotations(pose.rotation[frames])
    rotvecs = matrix_to_rotvec(mean.T @ pose.rotation[frames])
    known = np.concatenate([rotvecs, np.log(pose.scale[frames, None]), pose.center[frames]], axis=1)
    missing = np.flatnonzero(~detected)
    curves = PchipInterpolator(frames, known.astype(np.float64))
    values = curves(np.clip(missing, frames[0], frames[-1]))
    rotation, scale, center = (part.copy() for part in (pose.rotation, pose.scale, pose.center))
    rotation[missing] = mean @ rotvec_to_matrix(values[:, :3])
    scale[missing], center[missing] = np.exp(values[:, 3]), values[:, 4:]
    return HeadPose(rotation, scale, center)


def concatenate_shots(shots: list[HeadPose]) -> HeadPose:
    """Concatenate the head motion of shots such that rotation, position and size continue from shot to shot.

    The first pose of each shot becomes the last pose of the previous one, and the rest of the shot moves relative to
    it, about the head's own axes and in head sizes. Each shot may be in a unit of its own; the result is in that of the
    first.
    """
    joined = [shots[0]]
    for shot in shots[1:]:
        last = joined[-1][-1:]
        relative = np.swapaxes(shot.rotation[:1], -1, -2).astype(np.float64) @ shot.rotation
        rotation = last.rotation.astype(np.float64) @ relative
        size = last.scale / shot.scale[0]
        center = last.center + size * (shot.center - shot.center[:1])
        joined.append(HeadPose(*(part.astype(np.float32) for part in (rotation, shot.scale * size, center))))
    parts = zip(*((pose.rotation, pose.scale, pose.center) for pose in joined), strict=True)
    return HeadPose(*(np.concatenate(part) for part in parts))
