"""The part of a frame that shows the face."""

from __future__ import annotations

import numpy as np

SUBPIXEL_BITS = 4
"""Outlines are accurate to 1/16 of a pixel."""


def draw_face_region(landmarks: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Draw the convex hull of the landmarks of each frame.

    Args:
        landmarks: ``[T, P, 2 or more]`` x and y in pixels; pixel centers are integers. NaN points are left out.
        size: height and width of the frames.

    Returns:
        ``bool [T, H, W]``, True in the face; all False in frames with fewer than three points.
    """
    import cv2  # measures of landmarks alone do without it

    if landmarks.ndim != 3 or landmarks.shape[2] < 2:
        raise ValueError(f"expected landmarks [T, P, 2 or more], got {landmarks.shape}")
    region = np.zeros((len(landmarks), *size), np.uint8)
    for picture, points in zip(region, np.asarray(landmarks[..., :2], np.float32), strict=True):
        known = points[np.isfinite(points).all(axis=1)]
        if len(known) >= 3:
            hull = np.rint(cv2.convexHull(known) * 2**SUBPIXEL_BITS).astype(np.int32)
            cv2.fillConvexPoly(picture, hull, 1, shift=SUBPIXEL_BITS)
    return region.astype(bool)
