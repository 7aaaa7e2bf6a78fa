"""From rendered rays to the images that super-resolution refines: the frame's rays, the foveated rays and the hair."""

from __future__ import annotations

import torch
from torch import Tensor

from s3dnerf.ops.compose_layers import RenderedImages, compose_layers, has_kernel
from s3dnerf.ops.image import downsample, make_pixel_grid, upsample
from s3dnerf.rendering.foveation import FoveatedRays
from s3dnerf.rendering.hair_layer import composite_hair_layer, measure_plane_flow, render_hair_layer
from s3dnerf.rendering.volume_rendering import RayOutputs
from s3dnerf.structures import Camera


def compose_rays(
    rays: RayOutputs, foveated: FoveatedRays, image: Tensor, hair: Tensor, frame: Camera, source: Camera
) -> RenderedImages:
    """Compose the images of rendered rays over the hair layer.

    Args:
        rays: outputs of the rays of the whole frame, row by row, and of the foveated rays. The last two values of a ray
            are its position in the source.
        foveated: where these rays are; the fine image has their cells as its pixels.
        image: ``[B, 3, 2n, 2n]`` sources; nothing is copied if they are expanded to the batch.
        hair: ``[B, 1, 2n, 2n]`` masks of the hair; expanded likewise.
        frame: cameras of the frames.
        source: cameras of the sources.

    Returns:
        Images of ``n`` and of ``2 n`` pixels per side.
    """
    plane = measure_plane_flow(frame, source)
    tensors = (rays.alpha, foveated.opacity, image, hair, plane)
    if has_kernel(rays.values, *tensors):
        image, hair = (part[:1] if part.stride(0) == 0 else part for part in (image, hair))
        parts = (rays.values, rays.alpha, foveated.cells, foveated.opacity, image, hair, plane)
        return RenderedImages(*compose_layers(*parts))
    return compose_rays_reference(rays, foveated, image, hair, plane)


def compose_rays_reference(
    rays: RayOutputs, foveated: FoveatedRays, image: Tensor, hair: Tensor, plane: Tensor
) -> RenderedImages:
    """Reference implementation of :func:`compose_rays`, given the ``plane [B, 3, 2]`` of the hair; differentiable."""
    size = foveated.size // 2
    grid = make_pixel_grid(size, size, plane.device).flatten(0, 1)
    points = torch.cat([grid.expand(len(plane), -1, -1), foveated.points], dim=1)
    alpha = rays.alpha[..., None]
    flow = rays.values[..., -2:] - alpha * points
    rendered = torch.cat([rays.values[..., :-2], alpha, flow], dim=-1).transpose(1, 2)
    coarse = rendered[..., : size * size].unflatten(2, (size, size))
    fine = foveated.paste(rendered[..., size * size :], upsample(coarse, 2))
    layer = render_hair_layer(image, hair, plane)
    return RenderedImages(composite_hair_layer(coarse, downsample(layer, 2)), composite_hair_layer(fine, layer))
