"""Registration: head poses by optical flow.

A tracker reads landmarks anew in every frame, and its small errors are those of a pose that differs from the true one
by a pixel or a degree, differently in each frame. What pixels do between two pictures of a video is known far better.
So one typical frame gives the shape of the face, all others are followed to it by optical flow, and the pose of each is
the one in which that shape is seen where the flow says. Where flow cannot be trusted, the tracker's pose stays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice

import cv2
import numpy as np
from scipy.spatial.transform import Rotation

from s3dnerf.face.camera import (
    HeadPose,
    align_depth,
    fit_head_pose,
    load_canonical_face,
    project,
    smooth_head_pose,
    to_head,
)
from s3dnerf.face.points import FIRST_IRIS_POINT, RIGID_POINTS, select_points
from s3dnerf.media.optical_flow import measure_flow, sample

TRACKED_SIGMA = 1.0
"""Smoothing of tracked poses in frames. Tracking the mirrored video gives a second track with noise of its own: the
smoothed pose of one is nearest to the raw pose of the other at 0.5 to 0.6 (pitch, roll) and 0.8 to 1.0 frames (yaw,
scale), and 1.0 is within 4 % of the best for all of them. Landmarks gain 1 % at 0.45 frames and lip openings lose from
0.5 on, so these are stored as tracked."""
REGISTERED_SIGMA = 0.5
"""Smoothing of registered poses in frames; they are less noisy."""
SIDE = 256
"""Side of the pictures, in pixels, that are registered."""
LOWEST_POINT = -0.05
"""Points of the face above this height (head space), the tip of the nose, hardly move while it speaks."""
PIXEL = 2.0 / SIDE
NOISE = 0.5 * PIXEL
"""Standard error of a followed point, image coordinates."""
OUTLIER = 1.0 * PIXEL
"""Distance at which a followed point counts a quarter of what it would at the place where it is expected."""
TRACKING_ERROR = np.array([0.01, 0.01, 0.01, 0.005, NOISE, NOISE])
"""Standard errors of a tracked pose: turns about three axes in radians, relative size, image coordinates of the center.
Of those tried (half, once, twice and five times as much) with the shipped model, frames come nearest to the real ones
with these."""
ROUNDS = 8


def register_head(stream: Callable[[], Iterator[np.ndarray]], landmarks: np.ndarray) -> HeadPose:
    """Find the head pose of every frame of a video.

    Args:
        stream: starts reading the video's head crops from the beginning, ``uint8 [SIDE, SIDE, 3]``.
        landmarks: ``[T, 478, 3]`` (u, v, d) tracked in them, crop-normalized.

    Raises:
        ValueError: there are not as many crops as landmarks.
    """
    tracked = smooth_head_pose(fit_head_pose(landmarks), TRACKED_SIGMA)
    if len(tracked) < 2:
        return tracked
    typical = find_typical_frame(landmarks)
    pose = tracked[typical : typical + 1]
    shape = to_head(align_depth(landmarks[typical : typical + 1], pose), pose)[0]
    shape = shape[np.flatnonzero(load_canonical_face()[:FIRST_IRIS_POINT, 1] > LOWEST_POINT)]
    picture = next(islice(stream(), typical, None))
    places = project(shape[None], pose)[0, :, :2]
    expected = project(shape[None], tracked)[..., :2]
    followed = [follow_points(picture, frame, places, at) for frame, at in zip(stream(), expected, strict=True)]
    seen, trust = (np.stack(part) for part in zip(*followed, strict=True))
    return smooth_head_pose(fit_camera(shape, seen, trust, tracked), REGISTERED_SIGMA)


def find_typical_frame(landmarks: np.ndarray) -> int:
    """Return the number of the frame whose landmarks ``[T, P, 3]`` are nearest to their median over the video."""
    places = select_points(landmarks, RIGID_POINTS)[..., :2]
    return int(np.argmin(np.square(places - np.median(places, axis=0)).sum(axis=(1, 2))))


def follow_points(
    picture: np.ndarray, frame: np.ndarray, places: np.ndarray, expected: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Follow points from a picture to another one.

    Args:
        picture: ``uint8 [SIDE, SIDE, 3]``.
        frame: of the same size.
        places: ``[N, 2]`` the points in ``picture``, image coordinates.
        expected: ``[N, 2]`` about where they are in ``frame``: flow is good at what is left over.

    Returns ``[N, 2]`` where they are in ``frame``, and ``[N]`` in [0, 1] how far that can be trusted.
    """
    moved, affine = move_picture(picture, places, expected)
    flow, trust = measure_flow(moved, frame)
    start = places @ affine[:, :2].T + affine[:, 2]
    pixels = ((start + 1.0) * (len(flow) / 2) - 0.5).astype(np.float32)[None]
    return start + sample(flow, pixels)[0], sample(trust, pixels)[0]


def move_picture(picture: np.ndarray, places: np.ndarray, expected: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Move a picture by the affine map ``[2, 3]`` (image coordinates) that takes ``places`` nearest to ``expected``."""
    padded = np.concatenate([places, np.ones_like(places[:, :1])], axis=1).astype(np.float64)
    affine = np.linalg.lstsq(padded, expected.astype(np.float64), rcond=None)[0].T
    # From image coordinates to pixels, on both sides of the map.
    side = len(picture)
    middle = np.full(2, (side - 1) / 2)
    shift = affine[:, 2] * side / 2 + middle - affine[:, :2] @ middle
    matrix = np.concatenate([affine[:, :2], shift[:, None]], axis=1)
    return cv2.warpAffine(picture, matrix, (side, side), borderMode=cv2.BORDER_REPLICATE), affine


def fit_camera(shape: np.ndarray, seen: np.ndarray, trust: np.ndarray, tracked: HeadPose) -> HeadPose:
    """Fit poses to where the points of a face are seen, near the tracked ones (Gauss-Newton, Geman-McClure weights).

    Args:
        shape: ``[N, 3]`` the points, head space.
        seen: ``[T, N, 2]`` image coordinates.
        trust: ``[T, N]`` in [0, 1].
        tracked: T poses, crop-normalized.
    """
    rotation, scale, center = (part.astype(np.float64) for part in (tracked.rotation, tracked.scale, tracked.center))
    strayed = np.zeros((len(tracked), len(TRACKING_ERROR)))
    for _ in range(ROUNDS):
        turned = shape @ np.swapaxes(rotation, -1, -2)
        x, y, z = np.moveaxis(scale[:, None, None] * turned, -1, 0)
        zero, one = np.zeros_like(x), np.ones_like(x)
        miss = seen - np.stack([center[:, :1] + x, center[:, 1:] - y], axis=-1)
        # By turns about x, y and z, by the logarithm of the size, and by the center.
        slopes = np.stack(
            [np.stack([zero, z, -y, x, one, zero], axis=-1), np.stack([z, zero, -x, -y, zero, one], axis=-1)], axis=2
        )
        weights = trust / (1.0 + np.square(miss).sum(-1) / OUTLIER**2) ** 2 / NOISE**2
        weighted = weights[..., None, None] * slopes
        curvature = np.einsum("tnai,tnaj->tij", weighted, slopes) + np.diag(TRACKING_ERROR**-2)
        pull = np.einsum("tnai,tna->ti", weighted, miss) - strayed * TRACKING_ERROR**-2
        step = np.linalg.solve(curvature, pull[..., None])[..., 0]
        strayed += step
        rotation = Rotation.from_rotvec(step[:, :3]).as_matrix() @ rotation
        scale, center = scale * np.exp(step[:, 3]), center + step[:, 4:]
    return HeadPose(*(part.astype(np.float32) for part in (rotation, scale, center)))
