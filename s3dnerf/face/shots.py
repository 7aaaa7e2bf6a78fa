"""Shots of a video: cuts between them, and head motion that goes on across the cuts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import cv2
import numpy as np
from scipy.interpolate import PchipInterpolator
from scipy.ndimage import median_filter
from scipy.spatial.transform import Rotation

from s3dnerf.face.camera import HeadPose

THUMBNAIL = 32
"""Side of the pictures, in pixels, that are compared."""
NEIGHBORS = 13
"""Changes of the picture, in frames around one, whose median is the usual change there."""
LEAST_CHANGE = 6.0
LEAST_RATIO = 4.0
"""A change of the picture that may be a cut: mean difference of thumbnails in grey levels, and how many times the usual
one. Of 60 tracked people without a cut, the largest ratio is 5.0, at a change of 12; between the frames of 60 pairs of
them the smallest change is 28."""
CERTAIN_CHANGE, CERTAIN_RATIO = 20.0, 8.0
"""A change that is a cut even if the head jumps little."""
USUAL_NOISE = 0.5
"""Grey levels by which pictures without motion differ."""
HEAD_STEP = (np.radians(10.0), 0.25, 0.1)
"""Turn, shift in head units and logarithm of the size between neighboring frames: faster than heads move."""
SMALL_STEP = 0.2
"""Share of that step from which a certain change of the picture is a cut; below, there is nothing to bridge."""


@dataclass(frozen=True)
class PictureChange:
    """A change of picture that may be a cut: the first frame after it, and whether the picture alone settles it."""

    frame: int
    certain: bool


def measure_changes(frames: Iterable[np.ndarray]) -> np.ndarray:
    """Return the mean difference of the thumbnails of neighboring frames, grey levels [T - 1], for T frames."""
    changes, before = [], None
    for frame in frames:
        small = cv2.resize(frame, (THUMBNAIL, THUMBNAIL), interpolation=cv2.INTER_AREA)
        small = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY).astype(np.float32)
        if before is not None:
            changes.append(float(np.abs(small - before).mean()))
        before = small
    return np.array(changes, np.float64)


def find_picture_changes(changes: np.ndarray) -> list[PictureChange]:
    """Find changes [T - 1] of the picture that stand out from those around them."""
    if not len(changes):
        return []
    usual = median_filter(changes, min(NEIGHBORS, 2 * len(changes) - 1), mode="nearest") + USUAL_NOISE
    ratios = changes / usual
    found = np.flatnonzero((changes >= LEAST_CHANGE) & (ratios >= LEAST_RATIO))
    certain = (changes >= CERTAIN_CHANGE) & (ratios >= CERTAIN_RATIO)
    return [PictureChange(int(index) + 1, bool(certain[index])) for index in found]


def measure_head_step(before: HeadPose, after: HeadPose) -> float:
    """Measure the step between two poses of one frame each, as a multiple of HEAD_STEP."""
    start, end = (pose.rotation[0].astype(np.float64) for pose in (before, after))
    turn = np.linalg.norm(Rotation.from_matrix(start.T @ end).as_rotvec())
    zoom = abs(float(np.log(after.scale[0] / before.scale[0])))
    size = float(np.sqrt(before.scale[0] * after.scale[0]))
    shift = float(np.linalg.norm(after.center[0] - before.center[0])) / size
    return float(np.linalg.norm(np.divide((turn, shift, zoom), HEAD_STEP)))


def find_cuts(candidates: list[PictureChange], pose: HeadPose, seen: np.ndarray) -> list[int]:
    """Choose the cuts among changes of the picture: those at which the head jumps as well, or comes or goes.

    Args:
        candidates: as from :func:`find_picture_changes`.
        pose: T poses in one unit; those of frames without a face are not read.
        seen: bool [T], frames that show a face.

    Returns the number of the first frame of each shot but the first.
    """
    cuts = []
    for change in candidates:
        before, after = seen[: change.frame], seen[change.frame :]
        if not (before[-1] and after[0]):
            if change.certain:
                cuts.append(change.frame)
            continue
        step = measure_head_step(pose[change.frame - 1 : change.frame], pose[change.frame : change.frame + 1])
        if step > (SMALL_STEP if change.certain else 1.0):
            cuts.append(change.frame)
    return cuts


def ease_gaps(pose: HeadPose, seen: np.ndarray) -> HeadPose:
    """Replace the poses [T] of frames without a face by monotone cubic curves between those with one.

    Before the first and after the last face, the nearest pose is held. ``seen`` is bool [T], not all false.
    """
    frames = np.flatnonzero(seen)
    if len(frames) == len(seen):
        return pose
    if len(frames) == 1:
        return pose[np.full(len(seen), frames[0])]
    middle = Rotation.from_matrix(pose.rotation[frames].astype(np.float64)).mean()
    turns = (middle.inv() * Rotation.from_matrix(pose.rotation[frames].astype(np.float64))).as_rotvec()
    known = np.concatenate([turns, np.log(pose.scale[frames, None]), pose.center[frames]], axis=1)
    missing = np.flatnonzero(~seen)
    eased = PchipInterpolator(frames, known.astype(np.float64))(np.clip(missing, frames[0], frames[-1]))
    rotation, scale, center = (part.copy() for part in (pose.rotation, pose.scale, pose.center))
    rotation[missing] = (middle * Rotation.from_rotvec(eased[:, :3])).as_matrix()
    scale[missing], center[missing] = np.exp(eased[:, 3]), eased[:, 4:]
    return HeadPose(rotation, scale, center)


def join_shots(shots: list[HeadPose]) -> HeadPose:
    """Join the head motion of shots into one track in which turn, place and size go on from shot to shot.

    The first pose of each shot takes on the last one before it, and the rest of the shot moves relative to that, about
    the head's own axes and in head sizes. Each shot may be in a unit of its own; the result is in that of the first.
    """
    joined = [shots[0]]
    for shot in shots[1:]:
        last = joined[-1][-1:]
        turns = np.swapaxes(shot.rotation[:1], -1, -2).astype(np.float64) @ shot.rotation
        rotation = last.rotation.astype(np.float64) @ turns
        size = last.scale / shot.scale[0]
        center = last.center + size * (shot.center - shot.center[:1])
        joined.append(HeadPose(*(part.astype(np.float32) for part in (rotation, shot.scale * size, center))))
    parts = zip(*((pose.rotation, pose.scale, pose.center) for pose in joined), strict=True)
    return HeadPose(*(np.concatenate(part) for part in parts))
