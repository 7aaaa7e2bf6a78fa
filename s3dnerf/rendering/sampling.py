"""Samples along rays, in a shell around an ellipsoid that approximates the surface of any head."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from s3dnerf.ops import place_samples as kernel
from s3dnerf.ops.constant import constant
from s3dnerf.rendering.rays import Rays, cast_rays
from s3dnerf.structures import Camera


@dataclass(frozen=True)
class SurfacePrior:
    """The ellipsoid, in head units, around whose near surface rays are sampled."""

    center: tuple[float, float, float] = (0.0, -0.2, -0.35)
    """Center of the ellipsoid."""
    radii: tuple[float, float, float] = (0.72, 1.1, 0.9)
    """Half axes: half the width, half the height, half the depth of a head."""
    inner_margin: float = 0.22
    """Half the sampled length where a ray hits the ellipsoid head-on."""
    outer_margin: float = 0.5
    """Half the sampled length where a ray misses it (the depth of hair, neck and shoulders is unknown)."""


HEAD = SurfacePrior()


@dataclass(frozen=True)
class Samples:
    """Samples along rays."""

    positions: Tensor
    """``[B, N, S, 3]`` head space, nearest to the viewer first."""
    deltas: Tensor
    """``[B, N, S]`` length of the interval of each sample."""


def find_surface(rays: Rays, prior: SurfacePrior = HEAD) -> tuple[Tensor, Tensor]:
    """Intersect rays with the ellipsoid.

    Returns:
        ``distance [B, N]`` to the nearer intersection (to the closest approach for rays that miss) and
        ``margin [B, N]``, half the length to sample: ``inner_margin`` in the middle, ``outer_margin`` at the
        silhouette and beyond.
    """
    device, dtype = rays.origins.device, rays.origins.dtype
    center, radii = (constant(part, device, dtype) for part in (prior.center, prior.radii))
    origin = (rays.origins - center) / radii
    direction = rays.directions / radii
    a = direction.square().sum(-1)
    b = (origin * direction).sum(-1)
    c = origin.square().sum(-1) - 1.0
    closest = -b / a
    # 1 for a ray through the middle, 0 at the silhouette and beyond.
    depth = ((b.square() - a * c) / a).clamp(min=0.0)
    distance = closest - (depth / a).sqrt()
    margin = prior.outer_margin + (prior.inner_margin - prior.outer_margin) * depth.clamp(max=1.0).sqrt()
    return distance, margin


def place_samples(
    rays: Rays, count: int, generator: torch.Generator | None = None, prior: SurfacePrior = HEAD
) -> Samples:
    """Place ``count`` samples per ray: at interval centers, or stratified within intervals if a generator is given."""
    distance, margin = find_surface(rays, prior)
    steps = torch.arange(count, device=distance.device, dtype=distance.dtype)
    shift: Tensor | float = 0.5
    if generator is not None:
        shift = torch.rand((*distance.shape, count), generator=generator, device=generator.device).to(distance)
    fraction = (steps + shift) / count
    distances = distance[..., None] + margin[..., None] * (2.0 * fraction - 1.0)
    positions = rays.origins[..., None, :] + rays.directions[..., None, :] * distances[..., None]
    deltas = (2.0 * margin / count)[..., None].expand_as(distances)
    return Samples(positions, deltas)


def sample_rays(
    points: Tensor, camera: Camera, count: int, generator: torch.Generator | None = None, prior: SurfacePrior = HEAD
) -> Samples:
    """Place ``count`` samples per ray through image coordinates ``points [B, R, 2]``, see :func:`place_samples`."""
    parts = [camera.rotation, camera.scale, camera.center]
    if generator is None and kernel.has_kernel(points, *parts):
        ellipsoid = [*prior.center, *prior.radii, prior.inner_margin, prior.outer_margin]
        return Samples(*kernel.place_samples(points, parts, count, ellipsoid))
    return place_samples(cast_rays(points, camera), count, generator, prior)
