"""Face regions, eye openness, gaze and lip opening."""

from __future__ import annotations

from functools import cache

import cv2
import numpy as np

from s3dnerf.face.camera import HeadPose, load_canonical_face
from s3dnerf.face.points import (
    BROW_LEFT,
    BROW_RIGHT,
    EYE_CORNERS_LEFT,
    EYE_CORNERS_RIGHT,
    EYE_LEFT,
    EYE_RIGHT,
    FACE_OVAL,
    IRIS_LEFT,
    IRIS_RIGHT,
    LID_PAIRS_LEFT,
    LID_PAIRS_RIGHT,
    LIP_PAIRS,
    LIPS_INNER,
    LIPS_OUTER,
    NOSE_OUTLINE,
    NOSE_OUTLINE_RIGHT,
    NOSE_RIDGE,
    select_points,
)

REGIONS = ("lips", "jaw_and_cheeks", "eyes", "brows", "nose", "rest")
LIPS, JAW_AND_CHEEKS, EYES, BROWS, NOSE, REST = range(len(REGIONS))

OPEN_EYE_RATIO = 0.29
"""Lid gap relative to the eye width of a normally open eye (median of the tracked identities); openness 1."""
CLOSED_EYES = (0.38, 0.5)
"""Mean openness of both eyes below which a source image shows them closed, and above which they are merely narrow. In
blinks, one eye often reads 0.2 and the other one 0.5."""

JAW_OUTLINE = FACE_OVAL[8:29]
"""The lower part of the face oval, from the viewer's right temple over the chin to the left."""
BELOW_EYES = (116, 117, 118, 122, 168, 351, 347, 346, 345)
"""The line below the eyes, from left to right, that closes the jaw outline."""


def measure_lip_opening(landmarks: np.ndarray, pose: HeadPose) -> np.ndarray:
    """Measure the gap between the inner lips.

    The gap is measured along the head's own vertical axis and averaged over the midpoint and its two neighbors, so it
    depends neither on image size nor on head rotation.

    Args:
        landmarks: ``[T, 478 or P, 3]`` in the unit of ``pose``.
        pose: T poses.

    Returns:
        ``float32 [T]`` in head units; 0 for closed lips.
    """
    upper = select_points(landmarks, np.array([a for a, _ in LIP_PAIRS]))
    lower = select_points(landmarks, np.array([b for _, b in LIP_PAIRS]))
    gap = (upper - lower).mean(axis=1) * np.array([1.0, -1.0, 1.0], np.float32)
    return (np.einsum("tc,tc->t", gap, pose.rotation[:, :, 1]) / pose.scale).astype(np.float32)


def measure_eye_openness(landmarks: np.ndarray) -> np.ndarray:
    """Measure the openness of both eyes: the mean lid gap relative to the eye width, both in 3D.

    Args:
        landmarks: ``[T, 478 or P, 3]``.

    Returns:
        ``float32 [T, 2]`` for the viewer's left and right eye; 0 closed, about 1 open.
    """
    sides = ((LID_PAIRS_LEFT, EYE_CORNERS_LEFT), (LID_PAIRS_RIGHT, EYE_CORNERS_RIGHT))
    return np.stack([_measure_eye(landmarks, *side) for side in sides], axis=-1).astype(np.float32)


def _measure_eye(landmarks: np.ndarray, pairs: tuple[tuple[int, int], ...], corners: tuple[int, int]) -> np.ndarray:
    upper = select_points(landmarks, np.array([a for a, _ in pairs]))
    lower = select_points(landmarks, np.array([b for _, b in pairs]))
    ends = select_points(landmarks, corners)
    gap = np.linalg.norm(upper - lower, axis=-1).mean(-1)
    return gap / np.linalg.norm(ends[..., 0, :] - ends[..., 1, :], axis=-1) / OPEN_EYE_RATIO


def measure_gaze(landmarks: np.ndarray) -> np.ndarray:
    """Measure the position of the irises between the corners of the eyes, the mean of both eyes.

    Args:
        landmarks: ``[T, 478 or P, 3]`` in head space.

    Returns:
        ``float64 [T, 2]``, linear in the landmarks: from the middle of the corners to the right and up, in eye widths
        of the canonical face.
    """
    offset, width = np.zeros((len(landmarks), 2)), 0.0
    for iris, corners in ((IRIS_LEFT, EYE_CORNERS_LEFT), (IRIS_RIGHT, EYE_CORNERS_RIGHT)):
        points = select_points(landmarks, (iris[0], *corners))[..., :2].astype(np.float64)
        offset += points[:, 0] - points[:, 1:].mean(axis=1)
        outer, inner = load_canonical_face()[list(corners)].astype(np.float64)
        width += float(np.linalg.norm(outer - inner))
    return offset / width


def _list_polygons() -> list[tuple[int, tuple[int, ...]]]:
    nose = (*NOSE_OUTLINE, *NOSE_OUTLINE_RIGHT)
    return [
        (NOSE, nose),
        (BROWS, BROW_LEFT),
        (BROWS, BROW_RIGHT),
        (EYES, EYE_LEFT),
        (EYES, EYE_RIGHT),
        (LIPS, LIPS_OUTER),
    ]


def draw_region_map(landmarks: np.ndarray, size: int) -> np.ndarray:
    """Draw a label image of the face regions.

    Args:
        landmarks: ``[478 or P, 2 or 3]`` of one face, normalized to a square image.
        size: side of the label image.

    Returns:
        ``uint8 [size, size]`` indices into ``REGIONS``. Pixels outside the face are "rest", the inside of the mouth is
        "lips".
    """
    pixels = (landmarks[:, :2] + 1) * (size / 2) - 0.5
    labels = np.full((size, size), REST, np.uint8)
    _fill(labels, select_points(pixels, (*JAW_OUTLINE, *BELOW_EYES)), JAW_AND_CHEEKS)
    for region, outline in _list_polygons():
        _fill(labels, select_points(pixels, outline), region)
    return labels


def _fill(labels: np.ndarray, outline: np.ndarray, label: int) -> None:
    # fillPoly takes fixed-point coordinates; with 4 fractional bits, outlines are accurate to 1/16 of a pixel.
    cv2.fillPoly(labels, [np.round(outline * 16).astype(np.int32)], label, shift=4)


@cache
def point_regions() -> np.ndarray:
    """Return the region of each mesh point, ``int64 [478]`` indices into ``REGIONS``, read-only.

    Points of lips, lids, irises, brows and the nose ridge have the region of that feature; all others have the region
    at their position on the canonical face seen from the front.
    """
    size = 512
    face = load_canonical_face() * np.array([1.0, -1.0, 1.0], np.float32)
    labels = draw_region_map(face, size)
    pixels = np.clip(np.round((face[:, :2] + 1) * (size / 2) - 0.5), 0, size - 1).astype(int)
    regions = labels[pixels[:, 1], pixels[:, 0]].astype(np.int64)
    named: dict[int, tuple[tuple[int, ...], ...]]
    named = {LIPS: (LIPS_OUTER, LIPS_INNER), EYES: (EYE_LEFT, EYE_RIGHT, IRIS_LEFT, IRIS_RIGHT)}
    named[BROWS] = (BROW_LEFT, BROW_RIGHT)
    named[NOSE] = (NOSE_RIDGE,)
    for region, groups in named.items():
        for group in groups:
            regions[list(group)] = region
    regions.setflags(write=False)
    return regions
