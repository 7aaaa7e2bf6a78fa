"""Landmark numbers of the 478-point face mesh, grouped by facial feature.

"Left" and "right" are the viewer's left and right everywhere in this package, not the person's.
"""

from __future__ import annotations

import numpy as np

POINT_COUNT = 478
FIRST_IRIS_POINT = 468

# Closed outlines, in order around the shape.
LIPS_OUTER = (61, 146, 91, 181, 84, 17, 314, 405, 321, 375, 291, 409, 270, 269, 267, 0, 37, 39, 40, 185)
LIPS_INNER = (78, 95, 88, 178, 87, 14, 317, 402, 318, 324, 308, 415, 310, 311, 312, 13, 82, 81, 80, 191)
EYE_LEFT = (33, 7, 163, 144, 145, 153, 154, 155, 133, 173, 157, 158, 159, 160, 161, 246)
EYE_RIGHT = (263, 249, 390, 373, 374, 380, 381, 382, 362, 398, 384, 385, 386, 387, 388, 466)
BROW_LEFT = (46, 53, 52, 65, 55, 107, 66, 105, 63, 70)
BROW_RIGHT = (276, 283, 282, 295, 285, 336, 296, 334, 293, 300)
IRIS_LEFT = (468, 469, 470, 471, 472)
IRIS_RIGHT = (473, 474, 475, 476, 477)
FACE_OVAL = (
    *(10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377),
    *(152, 148, 176, 149, 150, 136, 172, 58, 132, 93, 234, 127, 162, 21, 54, 103, 67, 109),
)
NOSE_RIDGE = (168, 6, 197, 195, 5, 4, 1, 19, 94, 2)
NOSE_OUTLINE = (168, 193, 245, 188, 174, 236, 198, 209, 49, 48, 64, 98, 97, 2)
NOSE_OUTLINE_RIGHT = (326, 327, 294, 278, 279, 429, 420, 456, 399, 412, 465, 417)

# (upper, lower) points that meet when the lips or the lids close.
LIP_PAIRS = ((13, 14), (82, 87), (312, 317))
LID_PAIRS_LEFT = ((159, 145), (158, 153), (160, 144))
LID_PAIRS_RIGHT = ((386, 374), (385, 380), (387, 373))
EYE_CORNERS_LEFT = (33, 133)  # outer, inner
EYE_CORNERS_RIGHT = (263, 362)
OUTER_EYE_CORNERS = (33, 263)

# Cheek, forehead, temple and chin points between the outlines.
FILL_POINTS = (
    *(151, 9, 8, 50, 280, 101, 330, 36, 266, 205, 425, 187, 411, 147, 376, 117, 346, 118, 347),
    *(69, 299, 108, 337, 104, 333, 71, 301, 116, 345, 143, 372, 193, 417, 122, 351),
    *(199, 175, 200, 18, 204, 424, 202, 422, 214, 434),
)

# Points over bone, which do not move relative to each other in speech, blinks and smiles.
RIGID_POINTS = np.array(
    (
        *(10, 151, 9, 8, 168, 6, 197, 195, 5, 4),
        *(109, 338, 67, 297, 103, 332, 54, 284, 21, 251, 162, 389, 127, 356),
        *(108, 337, 69, 299, 104, 333, 71, 301, 143, 372, 116, 345, 117, 346, 118, 347),
        *(33, 263, 133, 362, 193, 417, 122, 351),
    )
)


def _collect_kept_points() -> np.ndarray:
    groups = (
        *(LIPS_OUTER, LIPS_INNER, EYE_LEFT, EYE_RIGHT, IRIS_LEFT, IRIS_RIGHT, BROW_LEFT, BROW_RIGHT),
        *(FACE_OVAL, NOSE_RIDGE, NOSE_OUTLINE, NOSE_OUTLINE_RIGHT, FILL_POINTS, RIGID_POINTS.tolist()),
    )
    # numpy.unique would import numpy.ma.
    return np.array(sorted(set().union(*groups)))


KEPT_POINTS = _collect_kept_points()
"""Numbers of the points kept in prepared clips, ascending, ``int64 [P]``."""


def select_points(landmarks: np.ndarray, numbers: tuple[int, ...] | np.ndarray) -> np.ndarray:
    """Select mesh points by number from all 478 or the kept landmarks.

    Args:
        landmarks: ``[..., 478 or P, C]`` with P = ``len(KEPT_POINTS)``.
        numbers: ``[K]``.

    Returns:
        ``[..., K, C]``.

    Raises:
        ValueError: the point axis has another length, or a number is not among the kept points.
    """
    numbers = np.asarray(numbers)
    count = landmarks.shape[-2]
    if count == POINT_COUNT:
        return landmarks[..., numbers, :]
    if count != len(KEPT_POINTS):
        raise ValueError(f"expected {POINT_COUNT} or {len(KEPT_POINTS)} landmarks, got {count}")
    positions = np.searchsorted(KEPT_POINTS, numbers).clip(0, count - 1)
    if not np.array_equal(KEPT_POINTS[positions], numbers):
        missing = sorted(set(numbers.tolist()) - set(KEPT_POINTS.tolist()))
        raise ValueError(f"landmarks {missing} are not among the kept points")
    return landmarks[..., positions, :]


def spread_points(landmarks: np.ndarray) -> np.ndarray:
    """Put the kept landmarks ``[..., P, C]`` at their numbers in the mesh, ``[..., 478, C]``; the others are NaN.

    Raises:
        ValueError: the point axis has another length.
    """
    if landmarks.shape[-2] != len(KEPT_POINTS):
        raise ValueError(f"expected {len(KEPT_POINTS)} landmarks, got {landmarks.shape[-2]}")
    mesh = np.full((*landmarks.shape[:-2], POINT_COUNT, landmarks.shape[-1]), np.nan, landmarks.dtype)
    mesh[..., KEPT_POINTS, :] = landmarks
    return mesh


def measure_lip_height(faces: np.ndarray) -> np.ndarray:
    """Return the gap between the inner lips of faces ``[T, P, 3]`` in head space."""
    upper, lower = (select_points(faces, np.array(numbers)) for numbers in zip(*LIP_PAIRS, strict=True))
    return (upper - lower)[..., 1].mean(axis=1)


def measure_brow_height(faces: np.ndarray) -> np.ndarray:
    """Return the height of the brows of faces ``[T, P, 3]`` in head space."""
    return select_points(faces, (*BROW_LEFT, *BROW_RIGHT))[..., 1].mean(axis=1)
