"""Volume rendering: samples along rays and a field -> rendered channels.

:func:`render_rays` takes any field: a function from positions to density and values, like ``rgb_sigma_fn`` of nerfacc.
A :class:`DeformedField` is evaluated by the fused operator :mod:`s3dnerf.ops.field` if that has a kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from s3dnerf.ops.composite import composite
from s3dnerf.ops.constant import constant
from s3dnerf.ops.field import FieldArguments, field, is_supported
from s3dnerf.ops.layout import is_bf16_autocast
from s3dnerf.ops.triplane import sample_triplanes
from s3dnerf.rendering.rays import project_points, rotate
from s3dnerf.rendering.sampling import Samples
from s3dnerf.structures import Camera

LEAST_ALPHA = 1e-3
"""Opacity below which the expected values of a ray are not defined."""
FieldFunction = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Positions ``[B, R, S, 3]`` -> density ``[B, R, S]`` and values ``[B, R, S, C]``."""


@dataclass(frozen=True)
class RayOutputs:
    """Rendered channels of rays."""

    values: Tensor
    """``[B, R, C]`` values composited along the rays."""
    alpha: Tensor
    """``[B, R]`` opacity."""


class Radiance(Protocol):
    """The interface of a radiance network, such as ``RadianceField`` of the model."""

    frequencies: int

    @property
    def layers(self) -> list[tuple[Tensor, Tensor]]:
        """Weight and bias of each layer."""

    def __call__(
        self, features: Tensor, ambient: Tensor, offsets: Tensor, points: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return density, color and features."""


@dataclass(frozen=True)
class DeformedField:
    """A radiance field of the source with a deformation that is given on a lattice. Call it to evaluate it."""

    lattice: Tensor
    """``[B, points, 3 + A]`` offsets and ambient coordinates on the lattice, x fastest, then y, then z."""
    lattice_size: tuple[int, int, int]
    """Number of points along x, y and z; at least two each."""
    lattice_center: tuple[float, float, float]
    """Point of head space where the lattice is finest."""
    lattice_focus: tuple[float, float, float]
    """The lattice is evenly spaced in ``asinh((x - center) / focus)``."""
    lattice_extent: tuple[float, float, float]
    """Value of this coordinate at the border of the lattice."""
    planes: Sequence[Tensor]
    """Tri-planes ``[B or 1, 3, C, h, w]``, all with the same number of channels."""
    camera: Camera
    """Cameras of the ``B`` sources."""
    radiance: Radiance
    """The radiance network."""

    def __call__(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Evaluate the field at ``positions [B, R, S, 3]`` (head space).

        Returns:
            Density ``[B, R, S]`` and values ``[B, R, S, 3 + features + 2]``: color, features, and image coordinates in
            the source.
        """
        points = positions.flatten(1, 2)
        deformation = interpolate_lattice(self, points)
        offsets, ambient = deformation[..., :3], deformation[..., 3:]
        source = project_points(points + offsets, self.camera)
        planes = [scale.expand(len(points), *scale.shape[1:]) for scale in self.planes]
        density, color, features = self.radiance(sample_triplanes(planes, source), ambient, offsets, points)
        values = torch.cat([color, features, source[..., :2]], dim=-1)
        shape = positions.shape[:3]
        return density.view(shape), values.view(*shape, -1)

    def make_arguments(self, positions: Tensor, deltas: Tensor, early_stop_eps: float) -> FieldArguments:
        """Return the arguments of the fused operator."""
        # Planes that are expanded to the batch are passed unexpanded, so that their gradients are summed.
        planes = [scale[:1] if scale.stride(0) == 0 else scale for scale in self.planes]
        return FieldArguments(
            positions=positions,
            deltas=deltas,
            lattice=self.lattice,
            lattice_size=list(self.lattice_size),
            lattice_shape=[*self.lattice_center, *self.lattice_focus, *self.lattice_extent],
            planes=[scale.permute(0, 1, 3, 4, 2) for scale in planes],
            camera=[self.camera.rotation, self.camera.scale, self.camera.center],
            layers=[part for layer in self.radiance.layers for part in layer],
            frequencies=self.radiance.frequencies,
            early_stop_eps=early_stop_eps,
            bf16_products=is_bf16_autocast(positions.device),
        )


def render_rays(
    field_function: FieldFunction, positions: Tensor, deltas: Tensor, early_stop_eps: float = 0.0
) -> RayOutputs:
    """Render rays through a field.

    Args:
        field_function: a function from positions to density and values, or a :class:`DeformedField`.
        positions: ``[B, R, S, 3]`` samples in head space, nearest to the viewer first.
        deltas: ``[B, R, S]`` lengths of the sample intervals.
        early_stop_eps: transmittance below which the remaining samples are skipped.

    A :class:`DeformedField` is differentiable in lattice, planes and layers. Separate operators evaluate it if samples
    or camera need gradients, or if there is no kernel for the device and the sizes. Under
    autocast to bfloat16 the network may multiply in bfloat16; everything else is float32.
    """
    if isinstance(field_function, DeformedField):
        arguments = field_function.make_arguments(positions, deltas, early_stop_eps)
        if is_supported(arguments):
            return RayOutputs(*field(*vars(arguments).values()))
    return render_rays_reference(field_function, positions, deltas, early_stop_eps)


def render_rays_reference(
    field_function: FieldFunction, positions: Tensor, deltas: Tensor, early_stop_eps: float = 0.0
) -> RayOutputs:
    """Reference implementation of :func:`render_rays` on separate operators; differentiable."""
    density, values = field_function(positions)
    rendered = composite(density, values, deltas, early_stop_eps)
    return RayOutputs(rendered.values, rendered.alpha)


def average_rays(field_function: FieldFunction, samples: Samples, camera: Camera) -> RayOutputs:
    """Average a field along rays, by visibility; differentiable.

    Args:
        field_function: a function from positions to density and values.
        samples: along ``[B, R]`` rays.
        camera: of the frames.

    Returns:
        Values ``[B, R, C + 1]``: the expected values of what a ray shows, and its depth in head units along the view,
        nearer is larger.
    """
    density, values = field_function(samples.positions)
    depth = rotate(camera.rotation, samples.positions.flatten(1, 2))[..., 2:].view(*density.shape, 1)
    rendered = composite(density.float(), torch.cat([values.to(depth), depth], dim=-1), samples.deltas)
    return RayOutputs(rendered.values / rendered.alpha[..., None].clamp(min=LEAST_ALPHA), rendered.alpha)


def interpolate_lattice(field: DeformedField, points: Tensor) -> Tensor:
    """Interpolate the lattice at head-space ``points [B, N, 3]`` -> ``[B, N, 3 + A]``."""
    center, focus, extent = (
        constant(tuple(part), points.device, points.dtype)
        for part in (field.lattice_center, field.lattice_focus, field.lattice_extent)
    )
    unit = torch.asinh((points - center) / focus) / extent
    volume = field.lattice.transpose(1, 2).unflatten(2, field.lattice_size[::-1])
    sampled = F.grid_sample(volume, unit[:, None, None], padding_mode="border", align_corners=True)
    return sampled.flatten(2).transpose(1, 2)
