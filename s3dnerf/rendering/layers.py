"""From rendered rays to the images that super-resolution refines: those of the frame, foveated ones and the person."""

from __future__ import annotations

import torch
from torch import Tensor

from s3dnerf.ops.compose_layers import RenderedImages, compose_layers, has_kernel
from s3dnerf.ops.image import downsample, make_pixel_grid, upsample
from s3dnerf.rendering.foveation import FoveatedRays
from s3dnerf.rendering.person_layer import (
    LayerMotion,
    composite_person_layer,
    measure_layer_motion,
    render_person_layer,
)
from s3dnerf.rendering.volume_rendering import RayOutputs
from s3dnerf.structures import Camera


def compose_rays(
    rays: RayOutputs, foveated: FoveatedRays, image: Tensor, person: Tensor, frame: Camera, source: Camera
) -> RenderedImages:
    """Compose the images of rendered rays over the person layer.

    Args:
        rays: outputs of the rays of the whole frame, row by row, and of the foveated rays. The last two values of a ray
            are its position in the source.
        foveated: where these rays are; the fine image has their cells as its pixels.
        image: ``[B, 3, 2n, 2n]`` sources; nothing is copied if they are expanded to the batch.
        person: ``[B, 1, 2n, 2n]`` their coverage by the person; expanded likewise.
        frame: cameras of the frames.
        source: cameras of the sources.

    Returns:
        Images of ``n`` and of ``2 n`` pixels per side.
    """
    motion = measure_layer_motion(frame, source)
    tensors = (rays.alpha, foveated.opacity, image, person, motion.plane)
    if has_kernel(rays.values, *tensors):
        image, person = (part[:1] if part.stride(0) == 0 else part for part in (image, person))
        parts = (rays.values, rays.alpha, foveated.cells, foveated.opacity, image, person, motion.plane, motion.body)
        return RenderedImages(*compose_layers(*parts))
    return compose_rays_reference(rays, foveated, image, person, motion)


def compose_rays_reference(
    rays: RayOutputs, foveated: FoveatedRays, image: Tensor, person: Tensor, motion: LayerMotion
) -> RenderedImages:
    """Reference implementation of :func:`compose_rays`, given the motion of the person layer; differentiable."""
    size = foveated.size // 2
    grid = make_pixel_grid(size, size, image.device).flatten(0, 1)
    points = torch.cat([grid.expand(len(image), -1, -1), foveated.points], dim=1)
    alpha = rays.alpha[..., None]
    flow = rays.values[..., -2:] - alpha * points
    rendered = torch.cat([rays.values[..., :-2], alpha, flow], dim=-1).transpose(1, 2)
    coarse = rendered[..., : size * size].unflatten(2, (size, size))
    fine = foveated.paste(rendered[..., size * size :], upsample(coarse, 2))
    layer = render_person_layer(image, person, motion)
    return RenderedImages(composite_person_layer(coarse, downsample(layer, 2)), composite_person_layer(fine, layer))
