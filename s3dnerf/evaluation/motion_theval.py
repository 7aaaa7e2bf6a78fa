"""THEval's measures of head and brows for motion that is not rendered.

Motion is put on the face and the first pose of its clip, and the landmarks are projected into the crop of the clip at
256 pixels. Real motion is that of the coefficients as well: its head poses are without tracking noise, its expression
is not smoothed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from s3dnerf.data.tracks import ClipTrack
from s3dnerf.face.camera import HeadPose, project
from s3dnerf.face.coefficients import MotionCoefficients, clean_pose, measure_reference, to_head_pose, to_landmarks
from s3dnerf.face.landmarks import to_pixels
from s3dnerf.face.points import spread_points
from s3dnerf.face.rotation import matrix_to_rotvec
from s3dnerf.metrics import (
    bootstrap_interval,
    measure_box_center,
    measure_brow_dynamics,
    measure_closeness,
    measure_head_dynamics,
)

SIDE = 256
HEAD, BROWS = "THEval head (px)", "THEval brows (eye distances)"
CLOSENESS = {HEAD: "THEval head, closeness to real", BROWS: "THEval brows, closeness to real"}
"""Names of :func:`~s3dnerf.metrics.measure_closeness` of both."""


def measure_theval_motion(motion: MotionCoefficients, track: ClipTrack) -> dict[str, float]:
    """Compute the dynamics of head and brows of motion on the face of a clip."""
    source = clean_pose(track.pose, track.clip.lip_opening)[:1]
    pose = to_head_pose(motion, source)
    return _measure(project(to_landmarks(motion, measure_reference(track)), pose), pose)


def measure_theval_track(track: ClipTrack) -> dict[str, float]:
    """Compute the dynamics of head and brows of the tracked landmarks of a clip, in the frames with a face."""
    return _measure(track.clip.landmarks[track.frames], track.pose[track.frames])


def compare_with_real(
    scores: Mapping[str, Sequence[Mapping[str, float]]], people: Sequence[str], real: str = "real"
) -> dict[str, dict[str, tuple[float, float, float]]]:
    """Compute how close the people-balanced means of rows are to those of real motion.

    Args:
        scores: scores of each clip by row.
        people: the person of each clip.
        real: name of the row of real motion.

    Returns:
        By row and name, the closeness and its 95 % bootstrap interval over people.
    """
    targets = scores[real]

    def compare(name: str, row: Sequence[Mapping[str, float]]) -> tuple[float, float, float]:
        values, wanted = (np.array([clip[name] for clip in one]) for one in (row, targets))
        known = np.isfinite(values) & np.isfinite(wanted)
        shares = _share_people(people, known)

        def measure(weights: np.ndarray) -> np.ndarray:
            sums = (weights * shares) @ np.where(known, [values, wanted], 0.0).T
            return np.array([measure_closeness(*pair) for pair in sums])

        return float(measure(np.ones((1, len(people))))[0]), *bootstrap_interval(measure, people)

    return {row: {label: compare(name, one) for name, label in CLOSENESS.items()} for row, one in scores.items()}


def average_tracks(tracks: Sequence[ClipTrack]) -> dict[str, float]:
    """Return the people-balanced means of :func:`measure_theval_track`."""
    scores, people = [measure_theval_track(track) for track in tracks], [track.clip.person for track in tracks]
    means = {}
    for name in (HEAD, BROWS):
        values = np.array([score[name] for score in scores])
        shares = _share_people(people, np.isfinite(values))
        means[name] = float(shares @ np.nan_to_num(values) / shares.sum()) if shares.any() else float("nan")
    return means


def _share_people(people: Sequence[str], known: np.ndarray) -> np.ndarray:
    """Return weights of clips by which people weigh the same, 0 for clips without a value."""
    names = np.asarray(people)
    counts = np.array([(names[known] == name).sum() for name in people])
    return np.where(known, 1.0 / counts.clip(min=1), 0.0)


def _measure(landmarks: np.ndarray, pose: HeadPose) -> dict[str, float]:
    """Measure normalized landmarks ``[T, P, 3]``."""
    points = to_pixels(spread_points(landmarks), (SIDE, SIDE))
    rotation = matrix_to_rotvec(pose.rotation)
    return {
        HEAD: measure_head_dynamics(rotation, measure_box_center(points)),
        BROWS: measure_brow_dynamics(points),
    }
