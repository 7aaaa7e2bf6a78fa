"""The person layer: what the rays miss of the person moves too, hair with the head and shoulders with the neck.

A field trained on few people does not know the density of a new person's hair and clothes. What it renders as empty
space would stay in place while the head moves. The matte marks the pixels of the source that show the person. Above the
neck they move like a plane through the head, which requires no depth estimate; below it, as the body does.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from s3dnerf.ops.compose_layers import HEAD_FROM
from s3dnerf.ops.constant import constant
from s3dnerf.ops.image import make_pixel_grid, warp_image
from s3dnerf.rendering.body_motion import measure_body_flow
from s3dnerf.rendering.rays import intersect_plane, project_points
from s3dnerf.rendering.smoothstep import smoothstep
from s3dnerf.structures import Camera

DEPTH = -0.15
"""Depth of the plane in head units: behind the face, in front of the back of the head."""


@dataclass(frozen=True)
class LayerMotion:
    """Motion of the layer. Positions in the source minus those in the frame, image coordinates."""

    plane: Tensor
    """``[B, 3, 3]``: flow of the plane along u and v, and height on the plane in head units; all three at (0, 0), their
    change along u, and their change along v."""
    body: Tensor
    """``[B, 2]`` flow of the body."""


def measure_layer_motion(frame: Camera, source: Camera) -> LayerMotion:
    """Measure the motion of the layer from the poses of the head."""
    # Both projections of the plane are affine, so three points determine the flow.
    corners = constant(((0.0, 0.0), (1.0, 0.0), (0.0, 1.0)), frame.scale.device, frame.scale.dtype)
    places = intersect_plane(corners, frame, DEPTH)
    flow = project_points(places, source)[..., :2] - corners
    values = torch.cat([flow, places[..., 1:2]], dim=2)
    plane = torch.cat([values[:, :1], values[:, 1:] - values[:, :1]], dim=1)
    return LayerMotion(plane, measure_body_flow(frame, source))


def compute_layer_flow(motion: LayerMotion, size: int) -> Tensor:
    """Return the flow ``[B, 2, size, size]`` of the layer in a frame."""
    middle, right, down = motion.plane[..., None, None].unbind(1)
    u, v = make_pixel_grid(size, size, motion.body.device).to(motion.body).unbind(-1)
    values = middle + right * u + down * v
    return motion.body[..., None, None].lerp(values[:, :2], smoothstep(values[:, 2:], *HEAD_FROM))


def resize_matte(matte: Tensor, size: int) -> Tensor:
    """Resize mattes ``[B, 1, m, m]`` to ``[B, 1, size, size]``."""
    return F.interpolate(matte, (size, size), mode="bilinear", align_corners=False, antialias=True)


def render_person_layer(image: Tensor, person: Tensor, motion: LayerMotion) -> Tensor:
    """Render the layer behind the radiance field.

    Args:
        image: ``[B, 3, n, n]`` sources.
        person: ``[B, 1, n, n]`` coverage of each of their pixels by the person, in [0, 1].
        motion: the motion of the layer.

    Returns:
        ``[B, 6, n, n]``: colors of the source with the person moved, coverage by the person, and the flow of the person
        (image coordinates).
    """
    flow = compute_layer_flow(motion, image.shape[-1])
    coverage = warp_image(person, flow)
    flow = coverage * flow
    return torch.cat([warp_image(image, flow), coverage, flow], dim=1)


def composite_person_layer(rendered: Tensor, layer: Tensor) -> Tensor:
    """Composite the rendered field over ``layer [B, 6, h, w]`` of :func:`render_person_layer`.

    ``rendered [B, 3 + features + 3, h, w]`` holds colors, features, opacity and flow.
    """
    clear = 1.0 - rendered[:, -3:-2]
    colors, others = rendered[:, :3] + clear * layer[:, :3], rendered[:, -3:] + clear * layer[:, 3:]
    return torch.cat([colors, rendered[:, 3:-3], others], dim=1)
