"""The measures of THEval that need landmarks, head poses and sound only (Quignon et al., CVPR 2026 Findings).

Each describes one video. A generated video is compared with real ones by :func:`measure_closeness` of the means over a
set of videos. Landmarks are ``[T, 468 or 478, 2 or more]`` of the MediaPipe face mesh, x and y in pixels of a square
frame of 256 x 256 pixels, as THEval resizes videos; only the lip and head dynamics depend on that size. Frames without
a face are rows of NaN and are left out, so that differences in time span the gap, as in THEval. A measure is NaN where
it is not defined; THEval counts some of these cases as 0.
"""

from __future__ import annotations

import numpy as np
from scipy.spatial.distance import pdist
from scipy.spatial.transform import Rotation

from s3dnerf.constants import FPS, SAMPLE_RATE

from .lips import FACE_POINT_COUNT, MOUTH_POINTS

BROWS_AND_EYES = (
    (
        (46, 52, 53, 55, 63, 65, 66, 70, 105, 107),
        (7, 33, 133, 144, 145, 153, 154, 155, 157, 158, 159, 160, 161, 163, 173, 246),
    ),
    (
        (276, 282, 283, 285, 293, 295, 296, 300, 334, 336),
        (249, 263, 362, 373, 374, 380, 381, 382, 384, 385, 386, 387, 388, 390, 398, 466),
    ),
)
"""Brow and eye, first at the viewer's left."""
UPPER_LIP = (191, 80, 81, 82, 13, 312, 311, 310)
LOWER_LIP = (95, 88, 178, 87, 14, 317, 402, 318)
"""Inner lips, in pairs with ``UPPER_LIP``."""
OUTER_CORNERS = (33, 263)
EYE_CORNERS = ((33, 133), (362, 263))
MIN_EYE_DISTANCE = 1e-3
"""Pixels; nearer eyes are no face."""
MIN_SILENCE = 0.3
"""Shortest silence in seconds."""
MIN_SPEECH_SHARE = 0.1
LOUDNESS_WINDOW = 0.05
"""Seconds."""


def measure_lip_dynamics(landmarks: np.ndarray) -> float:
    """Compute how much the shape of the lips varies, in pixels of a 256 x 256 frame.

    It is the standard deviation over time of the distance between two lip points, averaged over the 780 pairs of the 40
    points. Head turns and zoom change these distances too. NaN for fewer than two frames with a face.
    """
    mouths = _select_known(landmarks, MOUTH_POINTS)
    if len(mouths) < 2:
        return float("nan")
    return float(np.array([pdist(mouth) for mouth in mouths]).std(axis=0).mean())


def measure_brow_dynamics(landmarks: np.ndarray) -> float:
    """Compute how much brows move from frame to frame, in distances between the eyes.

    It is the mean absolute change, over both sides, of the distance from the center of the brow to the center of the
    eye. The unit is the distance between the centers of the eyes in the same frame. Blinks move the centers of eyes,
    and the noise of a tracker counts fully. NaN for fewer than two frames with a face.
    """
    groups = [group for side in BROWS_AND_EYES for group in side]
    known = _select_known(landmarks, tuple(point for group in groups for point in group))
    ends = np.cumsum([len(group) for group in groups])[:-1]
    left_brow, left_eye, right_brow, right_eye = (part.mean(axis=1) for part in np.split(known, ends, axis=1))
    unit = np.linalg.norm(left_eye - right_eye, axis=-1)
    distances = np.linalg.norm([left_brow - left_eye, right_brow - right_eye], axis=-1)
    heights = distances[:, unit >= MIN_EYE_DISTANCE] / unit[unit >= MIN_EYE_DISTANCE]
    return float(np.abs(np.diff(heights, axis=1)).mean()) if heights.shape[1] > 1 else float("nan")


def measure_head_dynamics(rotation: np.ndarray, center: np.ndarray) -> float:
    """Compute how much a head moves.

    It is sqrt(S V + M), with S the standard deviation of an angle in degrees, V the variance of its change per frame,
    both averaged over pitch, yaw and roll, and M the variance of the center of the face in square pixels, averaged over
    x and y. M is by far the largest term, so the measure depends on the size and crop of the frame.

    THEval estimates angles by FaceXFormer and takes the center of the box of a face detector; here any pose and center
    will do, the same ones for generated and real videos.

    Args:
        rotation: rotation vectors ``[T, 3]`` in radians, head to camera.
        center: ``[T, 2]`` in pixels of a 256 x 256 frame, see :func:`measure_box_center`.

    Returns:
        NaN for fewer than two frames in which both are known.
    """
    rotation, center = np.asarray(rotation, np.float64), np.asarray(center, np.float64)
    if rotation.shape != (len(rotation), 3) or center.shape != (len(rotation), 2):
        raise ValueError(f"expected rotations [T, 3] and centers [T, 2], got {rotation.shape} and {center.shape}")
    known = np.isfinite(rotation).all(axis=1) & np.isfinite(center).all(axis=1)
    if known.sum() < 2:
        return float("nan")
    angles = np.degrees(Rotation.from_rotvec(rotation[known]).as_euler("xyz"))
    spread, change = angles.std(axis=0).mean(), np.diff(angles, axis=0).var(axis=0).mean()
    return float(np.sqrt(spread * change + center[known].var(axis=0).mean()))


def measure_box_center(landmarks: np.ndarray) -> np.ndarray:
    """Return the center of the box around the landmarks of each frame, ``[T, 2]``, of the points that are known.

    NaN in frames without a face.
    """
    points = _check_landmarks(landmarks)
    known = np.isfinite(points).all(axis=2)[..., None]
    low, high = np.where(known, points, np.inf).min(axis=1), np.where(known, points, -np.inf).max(axis=1)
    return np.where(np.isfinite(low), low, np.nan) / 2 + np.where(np.isfinite(high), high, np.nan) / 2


def measure_mouth_height(landmarks: np.ndarray) -> np.ndarray:
    """Return the opening of the lips by which THEval measures silent lips, ``float64 [T]``.

    It is the mean vertical distance of eight pairs of points of the inner lips over the distance between the outer
    corners of the eyes; NaN in frames without a face.
    """
    points = _check_landmarks(landmarks)
    unit = np.linalg.norm(points[:, OUTER_CORNERS[0]] - points[:, OUTER_CORNERS[1]], axis=-1)
    gaps = np.abs(points[:, UPPER_LIP, 1] - points[:, LOWER_LIP, 1]).mean(axis=1)
    return gaps / np.where(unit >= MIN_EYE_DISTANCE, unit, np.nan)


def measure_mouth_openness(landmarks: np.ndarray) -> np.ndarray:
    """Return the opening of the lips by which THEval measures lip sync, ``float64 [T]``.

    It is the vertical distance between the mean points of the inner lips over the horizontal distance between the eyes;
    NaN in frames without a face.
    """
    points = _check_landmarks(landmarks)
    left, right = (points[:, corners, 0].mean(axis=1) for corners in EYE_CORNERS)
    unit = np.abs(right - left)
    gap = np.abs(points[:, UPPER_LIP, 1].mean(axis=1) - points[:, LOWER_LIP, 1].mean(axis=1))
    return gap / np.where(unit > 0, unit, np.nan)


def find_silence(is_speech: np.ndarray, fps: float = FPS) -> np.ndarray:
    """Find silences of 0.3 s and longer, ``bool [T]``.

    Args:
        is_speech: ``bool [T]``, frames with voice. THEval uses Silero VAD; any detector of voice will do.
        fps: frames per second.
    """
    edges = np.flatnonzero(np.diff(np.concatenate([[True], np.asarray(is_speech, bool), [True]]).astype(np.int8)))
    is_silent = np.zeros(len(is_speech), bool)
    for first, last in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
        is_silent[first:last] = last - first >= MIN_SILENCE * fps
    return is_silent


def measure_silent_lips(height: np.ndarray, is_silent: np.ndarray) -> float:
    """Compute how much lips move in silence: the median distance of the opening from its mean.

    Args:
        height: ``[T]`` of :func:`measure_mouth_height`, or another opening.
        is_silent: ``bool [T]`` of :func:`find_silence`.

    Returns:
        In the unit of the opening, 0 for still lips; NaN for fewer than two silent frames with a face.
    """
    height, is_silent = _pair_series(height, is_silent)
    silent = height[is_silent.astype(bool) & np.isfinite(height)]
    return float(np.median(np.abs(silent - silent.mean()))) if len(silent) > 1 else float("nan")


def measure_loudness(speech: np.ndarray, frames: int, fps: float = FPS, rate: int = SAMPLE_RATE) -> np.ndarray:
    """Measure the loudness of sound ``[n]`` at the times of T = ``frames`` frames, ``float64 [T]``.

    It is the root mean square of windows of 50 ms, centered at multiples of 50 ms with zeros beyond the ends,
    interpolated to the start times of frames. After the sound it stays at the last value.
    """
    hop = int(rate * LOUDNESS_WINDOW)
    count = 1 + len(speech) // hop
    padded = np.zeros(count * hop)
    samples = np.asarray(speech, np.float64)[: count * hop - hop // 2]
    padded[hop // 2 : hop // 2 + len(samples)] = samples
    loudness = np.sqrt(np.square(padded).reshape(count, hop).mean(axis=1))
    return np.interp(np.arange(frames) / fps, np.arange(count) * hop / rate, loudness)


def measure_loudness_mismatch(openness: np.ndarray, loudness: np.ndarray, is_speech: np.ndarray) -> float:
    """Compute THEval's lip sync: the mean absolute difference of opening and loudness in speech, each scaled to [0, 1].

    Low does not mean in sync. On thirteen real clips it is 0.245 on average, with the sound of another clip 0.259, for
    still lips 0.296: it is meant to be compared with its value for real videos, and hardly sees a wrong sound.

    Args:
        openness: ``[T]`` of :func:`measure_mouth_openness`, or another opening.
        loudness: ``[T]`` of :func:`measure_loudness`.
        is_speech: ``bool [T]``, frames with voice.

    Returns:
        In [0, 1]; NaN if less than a tenth of the frames have voice, or fewer than two of these a face.
    """
    openness, loudness, is_speech = _pair_series(openness, loudness, is_speech)
    is_speech = is_speech.astype(bool)
    used = is_speech & np.isfinite(openness)
    if not len(used) or is_speech.mean() < MIN_SPEECH_SHARE or used.sum() < 2:
        return float("nan")
    return float(np.abs(_scale_to_unit(openness[used]) - _scale_to_unit(loudness[used])).mean())


def measure_theval(
    landmarks: np.ndarray, rotation: np.ndarray, speech: np.ndarray, is_speech: np.ndarray, fps: float = FPS
) -> dict[str, float]:
    """Compute all measures of one video of T frames.

    Args:
        landmarks: ``[T, 468 or 478, 2 or more]`` in pixels of a 256 x 256 frame, NaN without a face.
        rotation: rotation vectors ``[T, 3]``, head to camera.
        speech: 16 kHz sound ``[n]``.
        is_speech: ``bool [T]``, frames with voice.
        fps: frames per second.

    Returns:
        ``lip_dynamics``, ``brow_dynamics``, ``head_dynamics``, ``silent_lips`` and ``loudness_mismatch``; NaN where one
        is not defined.
    """
    loudness = measure_loudness(speech, len(landmarks), fps)
    return {
        "lip_dynamics": measure_lip_dynamics(landmarks),
        "brow_dynamics": measure_brow_dynamics(landmarks),
        "head_dynamics": measure_head_dynamics(rotation, measure_box_center(landmarks)),
        "silent_lips": measure_silent_lips(measure_mouth_height(landmarks), find_silence(is_speech, fps)),
        "loudness_mismatch": measure_loudness_mismatch(measure_mouth_openness(landmarks), loudness, is_speech),
    }


def measure_closeness(value: float, real: float) -> float:
    """Compute THEval's normalized score, 1 - |value - real| / |real|, of a measure and its value for real videos.

    THEval takes both as means over the same set of videos. It is 1 for equal values, 0 for a measure of 0 or twice the
    real one, and negative beyond. NaN if one is NaN or the real one is 0.
    """
    return float(1.0 - abs(value - real) / abs(real)) if real else float("nan")


def _check_landmarks(landmarks: np.ndarray) -> np.ndarray:
    """Return x and y of the 468 points, ``float64 [T, 468, 2]``."""
    if landmarks.ndim != 3 or landmarks.shape[1] < FACE_POINT_COUNT or landmarks.shape[2] < 2:
        raise ValueError(f"expected landmarks [T, 468 or more, 2 or more], got {landmarks.shape}")
    return np.asarray(landmarks[:, :FACE_POINT_COUNT, :2], np.float64)


def _select_known(landmarks: np.ndarray, points: tuple[int, ...]) -> np.ndarray:
    """Return x and y of these points in the frames in which all are known, ``[N, P, 2]``."""
    chosen = _check_landmarks(landmarks)[:, points]
    return chosen[np.isfinite(chosen).all(axis=(1, 2))]


def _pair_series(*series: np.ndarray) -> tuple[np.ndarray, ...]:
    arrays = tuple(np.asarray(one) for one in series)
    if any(one.ndim != 1 or one.shape != arrays[0].shape for one in arrays):
        raise ValueError(f"expected arrays [T] of equal length, got {[one.shape for one in arrays]}")
    return arrays


def _scale_to_unit(values: np.ndarray) -> np.ndarray:
    return (values - values.min()) / (np.ptp(values) + 1e-8)
