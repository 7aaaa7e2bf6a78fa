"""The hair layer: hair moves with the head even where the radiance field misses it.

A field trained on few people does not know the density of a new person's hair. Hair that it renders as empty space
would stay in place while the head turns. The matte marks the pixels of the source that show the person. Those above the
neck that the rays miss move like a plane through the head, which requires no depth estimate.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from s3dnerf.ops.constant import constant
from s3dnerf.ops.image import make_pixel_grid, warp_image
from s3dnerf.rendering.rays import intersect_plane, project_points
from s3dnerf.rendering.smoothstep import smoothstep
from s3dnerf.structures import Camera

DEPTH = -0.15
"""Depth of the plane in head units: behind the face, in front of the back of the head."""
NECK = (-0.8, -0.45)
"""Heights of chin and mouth, head space. Points below the first stay; points above the second move with the head."""


def measure_plane_flow(frame: Camera, source: Camera) -> Tensor:
    """Measure the flow of the plane: position in the source minus position in the frame (image coordinates).

    Returns:
        ``[B, 3, 2]``: the flow at (0, 0), its change along u, and its change along v.
    """
    # Both projections of the plane are affine, so three points determine the flow.
    corners = constant(((0.0, 0.0), (1.0, 0.0), (0.0, 1.0)), frame.scale.device, frame.scale.dtype)
    places = project_points(intersect_plane(corners, frame, DEPTH), source)[..., :2] - corners
    return torch.cat([places[:, :1], places[:, 1:] - places[:, :1]], dim=1)


def compute_plane_flow(plane: Tensor, size: int) -> Tensor:
    """Return the flow ``[B, 2, size, size]`` of a plane ``[B, 3, 2]`` of :func:`measure_plane_flow`."""
    middle, right, down = plane[..., None, None].unbind(1)
    u, v = make_pixel_grid(size, size, plane.device).to(plane).unbind(-1)
    return middle + right * u + down * v


def mask_hair(matte: Tensor, camera: Camera, size: int) -> Tensor:
    """Mask the pixels that move with the head, by depth-independent rules.

    Args:
        matte: ``[B, 1, m, m]`` coverage of each pixel of the source by the person, in [0, 1].
        camera: camera of the source.
        size: side of the result.

    Returns:
        ``[B, 1, size, size]`` mask in [0, 1].
    """
    grid = make_pixel_grid(size, size, matte.device).to(camera.scale).flatten(0, 1)
    height = intersect_plane(grid, camera, DEPTH)[..., 1].view(-1, 1, size, size)
    matte = F.interpolate(matte, (size, size), mode="bilinear", align_corners=False, antialias=True)
    return matte * smoothstep(height, *NECK)


def render_hair_layer(image: Tensor, hair: Tensor, plane: Tensor) -> Tensor:
    """Render the layer behind the radiance field.

    Args:
        image: ``[B, 3, n, n]`` sources.
        hair: ``[B, 1, n, n]`` masks from :func:`mask_hair`.
        plane: ``[B, 3, 2]`` flow of the plane, from :func:`measure_plane_flow`.

    Returns:
        ``[B, 6, n, n]``: colors of the source with the hair moved with the head, coverage by hair, and the flow of the
        hair (image coordinates).
    """
    flow = compute_plane_flow(plane, image.shape[-1])
    coverage = warp_image(hair, flow)
    flow = coverage * flow
    return torch.cat([warp_image(image, flow), coverage, flow], dim=1)


def composite_hair_layer(rendered: Tensor, layer: Tensor) -> Tensor:
    """Composite the rendered field over ``layer [B, 6, h, w]`` of :func:`render_hair_layer`.

    ``rendered [B, 3 + features + 3, h, w]`` holds colors, features, opacity and flow.
    """
    clear = 1.0 - rendered[:, -3:-2]
    colors, others = rendered[:, :3] + clear * layer[:, :3], rendered[:, -3:] + clear * layer[:, 3:]
    return torch.cat([colors, rendered[:, 3:-3], others], dim=1)
