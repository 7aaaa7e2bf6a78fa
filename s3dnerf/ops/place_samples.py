"""Samples along the rays of scaled-orthographic cameras, in one operator.

The CPU kernel serves rendering, where no gradients are needed.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import c_float, c_int32, c_int64
from ctypes import c_void_p as pointer

import torch
from torch import Tensor

from s3dnerf.ops.backend import Library, find_library
from s3dnerf.ops.layout import needs_grad, runs_on_pytorch
from s3dnerf.ops.library import define_operator


def has_kernel(points: Tensor, *camera: Tensor) -> bool:
    """Tell whether :func:`place_samples` runs for these tensors: without gradients, in float32, on the CPU."""
    tensors = (points, *camera)
    single = all(part.dtype == torch.float32 for part in tensors)
    return single and not needs_grad(*tensors) and not runs_on_pytorch("place_samples", *tensors)


class S3dPlaceSamples(ctypes.Structure):
    """Mirror of ``S3dPlaceSamples``."""

    _fields_ = (
        *((name, c_int64) for name in ("batch", "rays")),
        ("samples", c_int32),
        *((f"ellipsoid_{name}", c_float * 3) for name in ("center", "radii")),
        *((name, c_float) for name in ("inner_margin", "outer_margin")),
        *((name, pointer) for name in ("points", "rotation", "scale", "center", "positions", "deltas")),
    )


ARGUMENTS = S3dPlaceSamples


def launch_forward(
    library: Library, points: Tensor, camera: Sequence[Tensor], count: int, ellipsoid: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """Place ``count`` samples per ray at the centers of intervals; CPU kernels only.

    Args:
        library: the library of kernels.
        points: ``[B, R, 2]`` image coordinates of the rays.
        camera: rotation ``[B, 3, 3]``, scale ``[B]`` and center ``[B, 2]``.
        count: samples per ray.
        ellipsoid: center and radii (three numbers each), inner and outer margin, see
            :class:`s3dnerf.rendering.sampling.SurfacePrior`.

    Returns:
        Positions ``[B, R, count, 3]`` in head space and lengths ``[B, R, count]`` of their intervals.
    """
    points = points.contiguous()
    rotation, scale, center = (part.contiguous() for part in camera)
    batch, rays, _ = points.shape
    positions, deltas = points.new_empty(batch, rays, count, 3), points.new_empty(batch, rays, count)
    arguments = S3dPlaceSamples(
        batch=batch,
        rays=rays,
        samples=count,
        ellipsoid_center=tuple(ellipsoid[:3]),
        ellipsoid_radii=tuple(ellipsoid[3:6]),
        inner_margin=ellipsoid[6],
        outer_margin=ellipsoid[7],
        points=points.data_ptr(),
        rotation=rotation.data_ptr(),
        scale=scale.data_ptr(),
        center=center.data_ptr(),
        positions=positions.data_ptr(),
        deltas=deltas.data_ptr(),
    )
    library.call("place_samples_forward", arguments, points.device)
    return positions, deltas


@define_operator(
    "place_samples",
    "(Tensor points, Tensor[] camera, int count, float[] ellipsoid) -> (Tensor, Tensor)",
)
def place_samples(points, camera, count, ellipsoid):
    """Return positions and lengths, see :func:`launch_forward`."""
    return launch_forward(find_library(points.device.type), points, camera, count, ellipsoid)


@place_samples.register_fake
def _(points, camera, count, ellipsoid):
    batch, rays, _ = points.shape
    return points.new_empty(batch, rays, count, 3), points.new_empty(batch, rays, count)
