"""A portrait warped in the image plane to other positions of its landmarks.

The flow from the target back to the source is a thin-plate spline through the landmarks, a ring of points around them
that moves with the head (hair and ears) and fixed points at the lower border (shoulders). The background does not move.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np
import torch
from torch import Tensor

from s3dnerf.face.camera import HeadPose, load_canonical_face, project
from s3dnerf.face.matting import dilate_matte, inpaint_background
from s3dnerf.face.points import (
    BROW_LEFT,
    BROW_RIGHT,
    EYE_LEFT,
    EYE_RIGHT,
    FACE_OVAL,
    LIPS_INNER,
    LIPS_OUTER,
    select_points,
)
from s3dnerf.ops.image import make_pixel_grid, warp_image

RING_SCALES = (1.3, 1.7)
"""Distances of the points of the ring from the middle of the head, relative to the outline of the face."""
RING_CENTER = np.array([0.0, 0.25, 0.0], np.float32)
"""Middle of the head as seen from the front, in head space."""
RING_RECESS = 0.1
"""Depth of the ring behind the outline, head units. At the depth of the ears, a turn would fold the spline."""
BORDER_V = (0.4, 0.7, 1.0)
"""Heights of the fixed points at the left and right border, image coordinates; the lower border is fixed too."""
STIFFNESS = 1e-3
"""Weight of the bending of the spline. It lets lips that touch in the source part without tearing their surroundings
apart."""
FLOW_STRIDE = 4
"""Pixels between the points at which the spline is evaluated."""
FULLY = 0.999
"""Coverage from which a pixel counts as fully covered, allowing for rounding."""
REGION_OUTLINES = ((LIPS_OUTER,), (LIPS_INNER,), (EYE_LEFT, EYE_RIGHT), (BROW_LEFT, BROW_RIGHT), (FACE_OVAL,))
"""Outlines of the maps of :func:`draw_regions`: lips, mouth, eyes, brows and face."""
REGION_COUNT = len(REGION_OUTLINES)
SUBPIXEL_BITS = 4


@dataclass(frozen=True)
class WarpedPortrait:
    """A portrait taken apart for warping; ``image`` and ``background`` in [0, 1]."""

    image: Tensor
    """``[1, 3, S, S]``."""
    matte: Tensor
    """``[1, 1, S, S]`` coverage by the person, in [0, 1]."""
    background: Tensor
    """``[1, 3, S, S]`` what is behind the person, painted where it is not seen."""
    controls: np.ndarray
    """``float32 [N, 2]`` positions of the control points, see :func:`find_controls`."""

    def warp(self, controls: np.ndarray) -> Tensor:
        """Return the portrait ``[T, 3, S, S]`` with its control points at ``[T, N, 2]``."""
        size = self.image.shape[-1]
        flow = compute_flow(self.controls, controls, size)
        person = torch.cat([self.image, self.matte], dim=1).expand(len(flow), -1, -1, -1)
        warped = warp_image(person, flow, "bicubic").clamp(0.0, 1.0)
        return torch.lerp(self.background, warped[:, :3], warped[:, 3:])


def take_apart(image: np.ndarray, matte: np.ndarray, controls: np.ndarray) -> WarpedPortrait:
    """Separate a person from the background.

    Args:
        image: ``uint8 [S, S, 3]``.
        matte: ``float32 [S, S]`` coverage by the person.
        controls: ``[N, 2]`` control points of the face.
    """
    hidden = dilate_matte(matte) > FULLY
    background = inpaint_background(image, hidden)
    pixels = [torch.from_numpy(part).permute(2, 0, 1)[None].float() / 255.0 for part in (image, background)]
    return WarpedPortrait(pixels[0], torch.from_numpy(matte)[None, None].float(), pixels[1], controls)


def find_controls(landmarks: np.ndarray, pose: HeadPose) -> np.ndarray:
    """Return the control points of T faces in image coordinates, ``float32 [T, N, 2]``.

    Args:
        landmarks: ``[T, P, 3]`` the kept landmarks in head space.
        pose: T poses.
    """
    rigid = np.concatenate([np.broadcast_to(ring, (len(pose), *ring.shape)) for ring in _make_ring()], axis=1)
    moved = project(np.concatenate([landmarks, rigid], axis=1).astype(np.float32), pose)[..., :2]
    fixed = np.broadcast_to(_list_fixed_points(), (len(pose), len(_list_fixed_points()), 2))
    return np.concatenate([moved, fixed], axis=1).astype(np.float32)


@cache
def _make_ring() -> tuple[np.ndarray, ...]:
    outline = load_canonical_face()[list(FACE_OVAL)]
    # Points below the mouth would drag the neck along.
    outline = outline[outline[:, 1] > -0.2]
    rings = []
    for scale in RING_SCALES:
        ring = RING_CENTER + np.float32(scale) * (outline - RING_CENTER)
        ring[:, 2] = outline[:, 2] - RING_RECESS
        rings.append(ring)
    return tuple(rings)


@cache
def _list_fixed_points() -> np.ndarray:
    lower = [(u, 1.05) for u in np.linspace(-1.05, 1.05, 8)]
    sides = [(side, v) for v in BORDER_V for side in (-1.05, 1.05)]
    return np.array(lower + sides, np.float32)


def compute_flow(source: np.ndarray, target: np.ndarray, size: int) -> Tensor:
    """Return the flow from targets to the source, ``float32 [T, 2, size, size]`` in image coordinates.

    Args:
        source: ``[N, 2]`` control points of the source.
        target: ``[T, N, 2]`` those of the targets.
        size: side of the image in pixels.
    """
    coarse = size // FLOW_STRIDE
    places = make_pixel_grid(coarse, coarse).reshape(1, -1, 2)
    controls = torch.from_numpy(np.ascontiguousarray(target, dtype=np.float32))
    offsets = torch.from_numpy(np.asarray(source, np.float32)) - controls
    weights, affine = fit_spline(controls, offsets)
    flow = evaluate_spline(controls, weights, affine, places.expand(len(controls), -1, -1))
    flow = flow.reshape(len(controls), coarse, coarse, 2).permute(0, 3, 1, 2)
    return torch.nn.functional.interpolate(flow, (size, size), mode="bicubic", align_corners=False)


def fit_spline(points: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Fit smoothing thin-plate splines to ``values [T, N, C]`` at ``points [T, N, 2]``.

    Returns:
        Weights ``[T, N, C]`` and affine parts ``[T, 3, C]``, float32.
    """
    points, values = points.double(), values.double()
    batch, count, _ = points.shape
    kernel = _bend(points, points) + STIFFNESS * torch.eye(count, dtype=points.dtype)
    ones = torch.cat([points.new_ones(batch, count, 1), points], dim=2)
    upper = torch.cat([kernel, ones], dim=2)
    lower = torch.cat([ones.transpose(1, 2), points.new_zeros(batch, 3, 3)], dim=2)
    right = torch.cat([values, values.new_zeros(batch, 3, values.shape[2])], dim=1)
    solution = torch.linalg.solve(torch.cat([upper, lower], dim=1), right)
    return solution[:, :count].float(), solution[:, count:].float()


def evaluate_spline(points: Tensor, weights: Tensor, affine: Tensor, places: Tensor) -> Tensor:
    """Evaluate splines at ``places [T, M, 2]``: ``[T, M, C]``."""
    ones = torch.cat([places.new_ones(*places.shape[:2], 1), places], dim=2)
    return _bend(places, points) @ weights + ones @ affine


def _bend(a: Tensor, b: Tensor) -> Tensor:
    squared = (a[:, :, None] - b[:, None]).square().sum(dim=-1)
    return squared * (squared + 1e-12).log()


def draw_regions(landmarks: np.ndarray, size: int, scale: int) -> np.ndarray:
    """Draw soft maps of lips, mouth, eyes, brows and face.

    Args:
        landmarks: ``[P, 2 or 3]`` kept landmarks of one face in image coordinates.
        size: side of the maps.
        scale: side of the square of pixels that is averaged for one value.

    Returns:
        ``float32 [5, size, size]`` in [0, 1].
    """
    pixels = (landmarks[:, :2] + 1.0) * (size * scale / 2) - 0.5
    maps = []
    for outlines in REGION_OUTLINES:
        canvas = np.zeros((size * scale, size * scale), np.uint8)
        for outline in outlines:
            corners = np.round(select_points(pixels, outline) * 2**SUBPIXEL_BITS).astype(np.int32)
            cv2.fillPoly(canvas, [corners], 255, shift=SUBPIXEL_BITS)
        maps.append(cv2.resize(canvas, (size, size), interpolation=cv2.INTER_AREA))
    return np.stack(maps).astype(np.float32) / 255.0
