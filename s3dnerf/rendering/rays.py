"""Scaled-orthographic cameras and their rays.

Image coordinates range from -1 to 1, with u to the right and v down. Pixel ``i`` of ``N`` has its center at
``(2 i + 1) / N - 1``. Head space is right-handed: x to the viewer's right, y up, z toward the viewer.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from s3dnerf.structures import Camera

LEAST_FACING = 0.2
"""Lower bound of the cosine between plane normal and ray, because an edge-on plane has no intersection."""


@dataclass(frozen=True)
class Rays:
    """Rays in head space; ``directions`` have unit length and point away from the viewer."""

    origins: Tensor
    """``[B, N, 3]`` points on the plane through the head's origin that faces the camera."""
    directions: Tensor
    """``[B, N, 3]``."""


def project_points(points: Tensor, camera: Camera) -> Tensor:
    """Project head-space ``points [B, N, 3]`` to ``[B, N, 3]``: u, v and depth in head units (larger is nearer)."""
    seen = rotate(camera.rotation, points)
    scale = camera.scale[:, None]
    u = camera.center[:, None, 0] + scale * seen[..., 0]
    v = camera.center[:, None, 1] - scale * seen[..., 1]
    return torch.stack([u, v, seen[..., 2]], dim=-1)


def cast_rays(image_points: Tensor, camera: Camera) -> Rays:
    """Return the rays through ``image_points [N, 2]`` or ``[B, N, 2]`` (u, v) of each camera."""
    if image_points.dim() == 2:
        image_points = image_points.expand(camera.scale.shape[0], *image_points.shape)
    offset = (image_points - camera.center[:, None]) / camera.scale[:, None, None]
    on_plane = torch.stack([offset[..., 0], -offset[..., 1], torch.zeros_like(offset[..., 0])], dim=-1)
    origins = rotate(camera.rotation.transpose(1, 2), on_plane)
    directions = -camera.rotation[:, 2][:, None].expand_as(origins)
    return Rays(origins, directions)


def intersect_plane(image_points: Tensor, camera: Camera, depth: Tensor | float) -> Tensor:
    """Intersect the rays through ``image_points [N, 2]`` or ``[B, N, 2]`` with a plane that moves with the head.

    The plane is parallel to the face, at ``depth`` (z of head space, a number or ``[B]``). The result is ``[B, N, 3]``
    in head space.
    """
    rays = cast_rays(image_points, camera)
    # A Python number stays a number, because a tensor would be copied to the device for every frame.
    depth = depth[:, None] if isinstance(depth, Tensor) else depth
    distance = (depth - rays.origins[..., 2]) / rays.directions[..., 2].clamp(max=-LEAST_FACING)
    return rays.origins + distance[..., None] * rays.directions


def rotate(rotation: Tensor, points: Tensor) -> Tensor:
    """Apply ``rotation [B, 3, 3]`` to ``points [B, N, 3]``."""
    # Autocast would round the result to bfloat16, an error of up to half a pixel.
    with torch.autocast(points.device.type, enabled=False):
        return torch.einsum("bij,bnj->bni", rotation, points)
