"""Losses on heads seen from sides that no image shows: their landmarks are known from any side."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from s3dnerf.data.batch import Frames
from s3dnerf.face.motion import NECK_PIVOT
from s3dnerf.models.s3dnerf.identity import MotionIdentity
from s3dnerf.ops.constant import constant
from s3dnerf.rendering.rays import project_points, rotate
from s3dnerf.rendering.sampling import sample_rays
from s3dnerf.rendering.volume_rendering import FieldFunction, average_rays
from s3dnerf.structures import Camera

MAX_YAW, MAX_PITCH = 40.0, 20.0
"""Largest angles in degrees by which heads are turned."""
COVER_RADIUS, COVER_DEPTH = 0.1, 0.15
"""Distance across the view, about that of neighboring landmarks, and least difference of depth, head units, at which
a landmark hides another one."""


def view_losses(
    field: FieldFunction, identity: MotionIdentity, frames: Frames, count: int, generator: torch.Generator | None = None
) -> dict[str, Tensor]:
    """Compare what rays through landmarks show with these landmarks: their depth, and their place in the source.

    Args:
        field: its last two values are the position in the source.
        identity: the sources.
        frames: their landmarks and cameras.
        count: samples of a ray.
        generator: draws stratified samples; without one, samples lie at interval centers.

    Returns:
        Mean distances in head units, of the landmarks that are hidden neither in the frame nor in the source.
    """
    seen, wanted = (project_points(part.landmarks, part.camera) for part in (frames, identity))
    samples = sample_rays(seen[..., :2], frames.camera, count, generator)
    found = average_rays(field, samples, frames.camera).values
    # What the source hides, such as a cheek under hair, has no place in it, and a surface of something else before it.
    visible = find_visible_landmarks(seen, frames.camera) * find_visible_landmarks(wanted, identity.camera)
    misses = {
        "depth": (found[..., -1] - seen[..., 2]).abs(),
        "places": (found[..., -3:-1] - wanted[..., :2]).abs().sum(-1) / identity.camera.scale[:, None],
    }
    return {name: (miss * visible).sum() / visible.sum() for name, miss in misses.items()}


def find_visible_landmarks(seen: Tensor, camera: Camera) -> Tensor:
    """Return which landmarks are not behind others, ``[B, P]`` float, given their projections ``seen [B, P, 3]``."""
    places, depth = seen[..., :2], seen[..., 2]
    is_near = torch.cdist(places, places) < COVER_RADIUS * camera.scale[:, None, None]
    is_behind = depth[:, None, :] - depth[:, :, None] > COVER_DEPTH
    return (~(is_near & is_behind).any(dim=-1)).float()


def turn_to_random_sides(camera: Camera, generator: torch.Generator) -> Camera:
    """Turn each head about its neck by angles up to ``MAX_YAW`` and ``MAX_PITCH``."""
    drawn = torch.rand(2, len(camera.scale), generator=generator, device=generator.device).to(camera.scale)
    yaw, pitch = 2.0 * drawn - 1.0
    return turn_heads(camera, math.radians(MAX_YAW) * yaw, math.radians(MAX_PITCH) * pitch)


def turn_heads(camera: Camera, yaw: Tensor, pitch: Tensor) -> Camera:
    """Turn heads about their necks by ``yaw [B]`` and then by ``pitch [B]``, in radians, about their own axes.

    A positive yaw turns a head to the viewer's right, a positive pitch turns it down.
    """
    zero, one = torch.zeros_like(yaw), torch.ones_like(yaw)
    about_y = torch.stack([yaw.cos(), zero, yaw.sin(), zero, one, zero, -yaw.sin(), zero, yaw.cos()], dim=-1)
    about_x = torch.stack([one, zero, zero, zero, pitch.cos(), -pitch.sin(), zero, pitch.sin(), pitch.cos()], dim=-1)
    with torch.autocast(yaw.device.type, enabled=False):
        rotation = camera.rotation @ about_y.view(-1, 3, 3) @ about_x.view(-1, 3, 3)
    pivot = constant(tuple(NECK_PIVOT.tolist()), yaw.device, yaw.dtype).expand(len(yaw), 1, 3)
    shift = (rotate(camera.rotation, pivot) - rotate(rotation, pivot))[:, 0, :2]
    sides = constant((1.0, -1.0), yaw.device, yaw.dtype)
    return Camera(rotation, camera.scale, camera.center + camera.scale[:, None] * shift * sides)
