"""Head pose registration by optical flow.

A tracker detects landmarks independently in every frame, so its poses are off by a pixel or a degree, differently in
each frame. Optical flow measures motion between frames far more accurately. One reference frame gives the shape of the
face; its points are tracked to all other frames by optical flow, and the pose of each frame is fitted to the tracked
points. Where the flow has no confidence, the pose of the landmark tracker remains.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice

import cv2
import numpy as np

from s3dnerf.face.camera import (
    HeadPose,
    align_depth,
    fit_head_pose,
    load_canonical_face,
    project,
    smooth_head_pose,
    to_head_space,
)
from s3dnerf.face.points import FIRST_IRIS_POINT, RIGID_POINTS, select_points
from s3dnerf.face.rotation import rotvec_to_matrix
from s3dnerf.media.optical_flow import measure_flow, sample

TRACKED_SIGMA = 1.0
"""Smoothing of poses fitted to landmarks, in frames. Tracking the mirrored video gives a second track with independent
noise: the smoothed poses of one are closest to the raw poses of the other at 0.5 to 0.6 (pitch, roll) and 0.8 to 1.0
frames (yaw, scale), and 1.0 is within 4 % of the best for all of them. Landmarks gain 1 % at 0.45 frames and lip
openings lose from 0.5 on, so these are stored without smoothing."""
REGISTERED_SIGMA = 0.5
"""Smoothing of registered poses in frames; they are less noisy."""
REGISTRATION_SIZE = 256
"""Side in pixels of the crops that are registered."""
MIN_POINT_HEIGHT = -0.05
"""Head-space y, about the tip of the nose, above which the points of the face hardly move in speech."""
FLOW_MARGIN = 12
"""Pixels around the tracked points within which the flow is computed. Against the flow of the whole crop, which takes
2.6 times as long, poses move the face by 0.02 to 0.13 pixels (root mean square, three clips); registration itself moves
it by 0.4 to 2.3."""
PIXEL = 2.0 / REGISTRATION_SIZE
FLOW_NOISE = 0.5 * PIXEL
"""Standard error of a tracked point, image coordinates."""
OUTLIER_DISTANCE = 1.0 * PIXEL
"""Distance from the expected position at which a tracked point has a quarter of its full weight."""
TRACKED_POSE_STD = np.array([0.01, 0.01, 0.01, 0.005, FLOW_NOISE, FLOW_NOISE])
"""Standard errors of a pose fitted to landmarks: rotation about three axes in radians, relative size, center in image
coordinates. Of the factors tried (0.5, 1, 2 and 5), frames of the shipped model are closest to the target with 1."""
GAUSS_NEWTON_STEPS = 8


def register_head_poses(open_crops: Callable[[], Iterator[np.ndarray]], landmarks: np.ndarray) -> HeadPose:
    """Estimate the head pose of every frame of a video.

    Args:
        open_crops: starts reading the T head crops ``uint8 [S, S, 3]`` of the video, with S = ``REGISTRATION_SIZE``.
        landmarks: ``[T, 478, 3]`` (u, v, d) tracked in them, crop-normalized.

    Raises:
        ValueError: the numbers of crops and landmarks differ.
    """
    tracked = smooth_head_pose(fit_head_pose(landmarks), TRACKED_SIGMA)
    if len(tracked) < 2:
        return tracked
    index = select_reference_frame(landmarks)
    pose = tracked[index : index + 1]
    shape = to_head_space(align_depth(landmarks[index : index + 1], pose), pose)[0]
    shape = shape[np.flatnonzero(load_canonical_face()[:FIRST_IRIS_POINT, 1] > MIN_POINT_HEIGHT)]
    reference = next(islice(open_crops(), index, None))
    points = project(shape[None], pose)[0, :, :2]
    expected = project(shape[None], tracked)[..., :2]
    matches = [
        track_points(reference, frame, points, guess) for frame, guess in zip(open_crops(), expected, strict=True)
    ]
    observed, confidence = (np.stack(part) for part in zip(*matches, strict=True))
    return smooth_head_pose(refine_head_poses(shape, observed, confidence, tracked), REGISTERED_SIGMA)


def select_reference_frame(landmarks: np.ndarray) -> int:
    """Return the number of the frame whose landmarks ``[T, P, 3]`` are closest to their median over the video."""
    points = select_points(landmarks, RIGID_POINTS)[..., :2]
    return int(np.argmin(np.square(points - np.median(points, axis=0)).sum(axis=(1, 2))))


def track_points(
    reference: np.ndarray, frame: np.ndarray, points: np.ndarray, expected: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Track points from a reference image to another frame.

    Args:
        reference: ``uint8 [S, S, 3]``.
        frame: of the same size.
        points: ``[N, 2]`` in ``reference``, image coordinates.
        expected: ``[N, 2]`` approximate positions in ``frame``; the flow only has to measure the remainder.

    Returns:
        ``[N, 2]`` positions in ``frame`` and ``[N]`` their confidence in [0, 1].
    """
    warped, affine = warp_to_expected(reference, points, expected)
    start = points @ affine[:, :2].T + affine[:, 2]
    pixels = (start + 1.0) * (len(frame) / 2) - 0.5
    left, top, side = choose_window(pixels, len(frame))
    window = np.s_[top : top + side, left : left + side]
    flow, confidence = measure_flow(warped[window], frame[window])
    # The flow has half the resolution, and its unit is half the side of the window.
    places = (((pixels - [left, top]) + 0.5) / 2 - 0.5).astype(np.float32)[None]
    return start + sample(flow, places)[0] * (side / len(frame)), sample(confidence, places)[0]


def choose_window(pixels: np.ndarray, size: int) -> tuple[int, int, int]:
    """Return the left and top edge and the even side of a square around points ``[N, 2]`` with a margin.

    Args:
        pixels: positions in an image of ``size`` pixels a side; the square lies within the image.
        size: even.
    """
    low, high = np.clip(pixels.min(0), 0, size - 1), np.clip(pixels.max(0), 0, size - 1)
    side = min(size, 2 * int(np.ceil((high - low).max() / 2)) + 2 * FLOW_MARGIN)
    left, top = np.clip(np.round((low + high + 1 - side) / 2), 0, size - side).astype(int)
    return int(left), int(top), side


def warp_to_expected(image: np.ndarray, points: np.ndarray, expected: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Warp an image with the affine map that takes ``points [N, 2]`` closest to ``expected [N, 2]``.

    Returns:
        The warped image and the map ``[2, 3]`` (image coordinates).
    """
    homogeneous = np.concatenate([points, np.ones_like(points[:, :1])], axis=1).astype(np.float64)
    affine = np.linalg.lstsq(homogeneous, expected.astype(np.float64), rcond=None)[0].T
    # Convert the map from image coordinates to pixels.
    side = len(image)
    center = np.full(2, (side - 1) / 2)
    shift = affine[:, 2] * side / 2 + center - affine[:, :2] @ center
    matrix = np.concatenate([affine[:, :2], shift[:, None]], axis=1)
    return cv2.warpAffine(image, matrix, (side, side), borderMode=cv2.BORDER_REPLICATE), affine


def refine_head_poses(shape: np.ndarray, observed: np.ndarray, confidence: np.ndarray, tracked: HeadPose) -> HeadPose:
    """Fit poses to observed points, with the tracked poses as prior (Gauss-Newton, Geman-McClure weights).

    Args:
        shape: ``[N, 3]`` the points in head space.
        observed: ``[T, N, 2]`` their positions, image coordinates.
        confidence: ``[T, N]`` in [0, 1].
        tracked: T poses, crop-normalized.
    """
    rotation, scale, center = (part.astype(np.float64) for part in (tracked.rotation, tracked.scale, tracked.center))
    deviation = np.zeros((len(tracked), len(TRACKED_POSE_STD)))
    for _ in range(GAUSS_NEWTON_STEPS):
        rotated = shape @ np.swapaxes(rotation, -1, -2)
        x, y, z = np.moveaxis(scale[:, None, None] * rotated, -1, 0)
        zero, one = np.zeros_like(x), np.ones_like(x)
        residual = observed - np.stack([center[:, :1] + x, center[:, 1:] - y], axis=-1)
        # With respect to rotation about x, y and z, log scale, and center.
        jacobian = np.stack(
            [np.stack([zero, z, -y, x, one, zero], axis=-1), np.stack([z, zero, -x, -y, zero, one], axis=-1)], axis=2
        )
        weights = confidence / (1.0 + np.square(residual).sum(-1) / OUTLIER_DISTANCE**2) ** 2 / FLOW_NOISE**2
        weighted = weights[..., None, None] * jacobian
        hessian = np.einsum("tnai,tnaj->tij", weighted, jacobian) + np.diag(TRACKED_POSE_STD**-2)
        gradient = np.einsum("tnai,tna->ti", weighted, residual) - deviation * TRACKED_POSE_STD**-2
        step = np.linalg.solve(hessian, gradient[..., None])[..., 0]
        deviation += step
        rotation = rotvec_to_matrix(step[:, :3]) @ rotation
        scale, center = scale * np.exp(step[:, 3]), center + step[:, 4:]
    return HeadPose(*(part.astype(np.float32) for part in (rotation, scale, center)))
