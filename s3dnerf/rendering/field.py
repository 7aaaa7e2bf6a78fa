"""The fused path: from ray samples to what the rays see, in one operator.

It computes what deformation lattice, camera, tri-planes, radiance network and compositing compute one after another, in
chunks that stay in a processor's cache, and leaves rays that have become opaque. The way back computes them once more
instead of having kept them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from s3dnerf.backend import choose_backend
from s3dnerf.encoding.triplane import sample_triplanes
from s3dnerf.rendering import operators
from s3dnerf.rendering.compositing import composite
from s3dnerf.rendering.rays import Camera, project_points

OFFSET_GAIN = 4.0
"""What offsets are multiplied by before the network reads them."""
DENSITY_GAIN = 4.0
"""What density, after softplus, is multiplied by."""
MAX_LATTICE_CHANNELS = 64
MAX_CUDA_WIDTH = 256


@dataclass(frozen=True)
class DeformedField:
    """A radiance field behind a deformation: all that is needed to see it."""

    lattice: Tensor
    """``[B, points, 3 + A]`` offsets and ambient coordinates on the lattice, x fastest, then y, then z."""
    lattice_size: tuple[int, int, int]
    """Points along x, y, z; at least two each."""
    lattice_center: tuple[float, float, float]
    """Where the lattice is finest, head space."""
    lattice_focus: tuple[float, float, float]
    """The lattice is even in ``asinh((x - center) / focus)``."""
    lattice_extent: tuple[float, float, float]
    """That value at the lattice's border."""
    planes: Sequence[Tensor]
    """Tri-planes ``[B or 1, 3, C, h, w]``, all with as many channels."""
    camera: Camera
    """Of the portrait, ``B`` of them."""
    layers: Sequence[tuple[Tensor, Tensor]]
    """Weight and bias of the three layers of the network, as ``torch.nn.Linear`` keeps them."""
    frequencies: int
    """Octaves of the encoding of positions."""


@dataclass(frozen=True)
class SeenField:
    """What rays see of a field."""

    values: Tensor
    """``[B, R, 3 + features + 2]``: color, features, and image coordinates in the portrait, weighted by visibility."""
    alpha: Tensor
    """``[B, R]``."""


def see_field(field: DeformedField, positions: Tensor, lengths: Tensor, stop: float = 0.0) -> SeenField:
    """March rays through a field.

    Args:
        field: what to look at.
        positions: ``[B, R, S, 3]`` samples in head space, nearest to the viewer first.
        lengths: ``[B, R, S]`` of the interval that each sample stands for.
        stop: transmittance behind which nothing more is seen.

    Differentiable in the lattice, the planes and the layers. Where positions, lengths or camera want gradients, on a
    GPU where anything does, and without kernels for the device, this runs on the separate operators. Under autocast to
    bfloat16 the network's products may be in bfloat16; all else is float32.
    """
    device = positions.device.type
    if not _fits(field) or choose_backend("field", device) == "pytorch" or not _can_learn(field, positions, lengths):
        return see_field_reference(field, positions, lengths, stop)
    # Planes expanded to the batch are read, and their gradients added up, as the one that they are.
    planes = [scale[:1] if scale.stride(0) == 0 else scale for scale in field.planes]
    values, alpha = operators.field(
        positions,
        lengths,
        field.lattice,
        list(field.lattice_size),
        [*field.lattice_center, *field.lattice_focus, *field.lattice_extent],
        [scale.permute(0, 1, 3, 4, 2) for scale in planes],
        [field.camera.rotation, field.camera.scale, field.camera.center],
        [part for layer in field.layers for part in layer],
        field.frequencies,
        stop,
        torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.bfloat16,
    )
    return SeenField(values, alpha)


def see_field_reference(field: DeformedField, positions: Tensor, lengths: Tensor, stop: float = 0.0) -> SeenField:
    """The twin of :func:`see_field`, on separate operators; differentiable."""
    points = positions.flatten(1, 2)
    deformation = read_lattice(field, points)
    offsets, ambient = deformation[..., :3], deformation[..., 3:]
    source = project_points(points + offsets, field.camera)
    planes = [scale.expand(len(points), *scale.shape[1:]) for scale in field.planes]
    inputs = [sample_triplanes(planes, source), ambient, OFFSET_GAIN * offsets, points]
    for octave in range(field.frequencies):
        angle = points * (torch.pi * 2**octave)
        inputs += [angle.sin(), angle.cos()]
    hidden = torch.cat(inputs, dim=-1)
    for weight, bias in field.layers[:-1]:
        hidden = F.silu(F.linear(hidden, weight, bias))
    # Mixed precision is for products: what comes of them is composited as it is in float32.
    result = F.linear(hidden, *field.layers[-1]).to(points.dtype)
    values = torch.cat([result[..., 1:4].sigmoid(), result[..., 4:], source[..., :2]], dim=-1)
    density = DENSITY_GAIN * F.softplus(result[..., 0])
    shape = lengths.shape
    seen = composite(density.view(shape), values.view(*shape, -1), lengths, stop)
    return SeenField(seen.values, seen.alpha)


def read_lattice(field: DeformedField, points: Tensor) -> Tensor:
    """Interpolate the lattice at head-space ``points [B, N, 3]`` -> ``[B, N, 3 + A]``."""
    center, focus, extent = (
        points.new_tensor(part) for part in (field.lattice_center, field.lattice_focus, field.lattice_extent)
    )
    unit = torch.asinh((points - center) / focus) / extent
    volume = field.lattice.transpose(1, 2).unflatten(2, field.lattice_size[::-1])
    read = F.grid_sample(volume, unit[:, None, None], padding_mode="border", align_corners=True)
    return read.flatten(2).transpose(1, 2)


def _can_learn(field: DeformedField, positions: Tensor, lengths: Tensor) -> bool:
    """Whether the kernel gives all the gradients that are wanted."""
    if not torch.is_grad_enabled():
        return True
    given = (positions, lengths, field.camera.rotation, field.camera.scale, field.camera.center)
    learned = (field.lattice, *field.planes, *(part for layer in field.layers for part in layer))
    if any(part.requires_grad for part in given):
        return False
    return positions.device.type == "cpu" or not any(part.requires_grad for part in learned)


def _fits(field: DeformedField) -> bool:
    """Whether the kernel is made for these sizes and types."""
    channels = {scale.shape[2] for scale in field.planes}
    types = {scale.dtype for scale in field.planes}
    single = all(part.dtype != torch.float64 for part in (field.lattice, *field.planes))
    known = len(field.layers) == 3 and 1 <= len(field.planes) <= operators.MAX_SCALES
    sized = field.lattice.shape[2] <= MAX_LATTICE_CHANNELS and min(field.lattice_size) >= 2
    # On a GPU the layers of a sample live in one thread.
    widest = max([0, *(size for weight, _ in field.layers for size in weight.shape)])
    narrow = field.lattice.device.type == "cpu" or (widest <= MAX_CUDA_WIDTH and len(field.layers[-1][1]) <= 128)
    return len(channels) == len(types) == 1 and single and known and sized and narrow
