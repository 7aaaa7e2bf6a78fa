"""How the body moves when the head does.

Shoulders follow the neck, and do not turn with the head. Their motion is thus about a shift, a fraction of that of the
neck, which the poses of the head determine. A field trained on few people needs to be told so, because it knows neither
the depth nor the motion of a new person's clothes.

``tools/fit_body_motion.py`` measures the fractions in optical flow. With those of one half of the training people, the
bodies of the other half are half as far from the real ones as bodies that stay, and two thirds as far as bodies that
move with the head.
"""

from __future__ import annotations

import torch
from torch import Tensor

from s3dnerf.ops.constant import constant
from s3dnerf.rendering.rays import project_points
from s3dnerf.rendering.smoothstep import smoothstep
from s3dnerf.structures import Camera

NECK = (0.0, -0.8, -0.35)
"""Point of the neck whose shift is measured, head space."""
SHARE = (0.83, 0.61)
"""Fraction of the neck's shift that the body makes, along u and v."""
BELOW_CHIN = (-0.9, -0.5)
"""Heights over which the head gives way to the body, head units, at the depth of the neck."""
BORDER = (0.12, 0.5)
"""Distances to the sides and the bottom of the frame over which an anchored body begins to move, image coordinates."""
CHIN_SLOPE = 0.8
"""Height gained per unit of depth in front of the neck, so that the chin belongs to the head and the neck below it does
not."""


def measure_neck_flow(frame: Camera, source: Camera) -> Tensor:
    """Return the flow of the neck ``[B, 2]``, which the body would have if it followed all the way."""
    neck = constant(NECK, frame.scale.device, frame.scale.dtype).expand(len(frame.scale), 1, 3)
    return (project_points(neck, source) - project_points(neck, frame))[:, 0, :2]


def measure_body_flow(frame: Camera, source: Camera) -> Tensor:
    """Return the flow of the body ``[B, 2]``: its position in the source minus that in the frame, image coordinates."""
    flow = measure_neck_flow(frame, source)
    return flow * constant(SHARE, flow.device, flow.dtype)


def fit_body_offsets(frame: Camera, source: Camera) -> Tensor:
    """Return the affine map ``[B, 3, 5]`` from head space to offsets that move the body as it should.

    Head space moves with the head. With the offset that the first four columns give to a point ``(x, y, z, 1)`` of the
    frame, it is seen in the source where it is in the frame: the body stays. The last column, added to it, puts the
    point where :func:`measure_body_flow` says. The depth in the source stays.
    """
    ratio = (frame.scale / source.scale)[:, None, None]
    # In the directions of the source's camera.
    turn = ratio * frame.rotation - source.rotation
    shifts = torch.stack([frame.center - source.center, measure_body_flow(frame, source)], dim=2)
    shifts = shifts / source.scale[:, None, None] * constant(((1.0,), (-1.0,)), shifts.device, shifts.dtype)
    with torch.autocast(shifts.device.type, enabled=False):
        return source.rotation[:, :2].transpose(1, 2) @ torch.cat([turn[:, :2], shifts], dim=2)


def weigh_body(points: Tensor) -> Tensor:
    """Return how far ``points [..., 3]`` of head space move with the body: 0 on the head, 1 on the shoulders."""
    ahead = (points[..., 2] - NECK[2]).clamp(min=0.0)
    return 1.0 - smoothstep(points[..., 1] + CHIN_SLOPE * ahead, *BELOW_CHIN)


def fade_to_border(points: Tensor) -> Tensor:
    """Return how far an anchored body moves at ``points [..., 2]`` (u, v) of the source: 0 at the border, 1 far off.

    A square that is pasted into a larger picture needs this, because the body goes on beyond its border, and stays.
    """
    u, v = points.unbind(-1)
    return smoothstep(1.0 - torch.maximum(u.abs(), v), *BORDER)
