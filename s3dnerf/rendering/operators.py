"""Compositing and the fused path on our kernels, as PyTorch operators; built like :mod:`s3dnerf.encoding.operators`."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import c_float, c_int32, c_int64
from ctypes import c_void_p as pointer

import torch
from torch import Tensor

from s3dnerf.backend import Library, find_library
from s3dnerf.encoding.operators import STORAGE, store_channels_last

MAX_SCALES = 8


class CompositeStructure(ctypes.Structure):
    """S3dComposite."""

    _fields_ = (
        *((name, c_int64) for name in ("rays", "samples")),
        ("channels", c_int32),
        ("stop", c_float),
        *((name, pointer) for name in ("offsets", "density", "values", "lengths", "output", "alpha", "weights")),
        *((f"{name}_gradient", pointer) for name in ("output", "alpha", "weights")),
        *((f"{name}_gradient", pointer) for name in ("density", "values", "lengths")),
    )


class FieldStructure(ctypes.Structure):
    """S3dField."""

    _fields_ = (
        *((name, c_int64) for name in ("batch", "rays")),
        ("samples", c_int32),
        ("lattice_size", c_int32 * 3),
        *((name, c_int32) for name in ("ambient", "scales", "plane_channels", "storage", "frequencies")),
        *((name, c_int32) for name in ("hidden", "features")),
        ("stop", c_float),
        *((f"lattice_{name}", c_float * 3) for name in ("center", "focus", "extent")),
        *((f"plane_{name}", c_int32 * MAX_SCALES) for name in ("height", "width")),
        ("plane_batch_stride", c_int64 * MAX_SCALES),
        ("planes", pointer * MAX_SCALES),
        *((name, pointer) for name in ("positions", "lengths", "lattice", "rotation", "scale", "center")),
        ("weights", pointer * 3),
        ("biases", pointer * 3),
        *((name, pointer) for name in ("output", "alpha")),
    )


def describe_composite(
    density: Tensor, values: Tensor, lengths: Tensor, offsets: Tensor | None, rays: int, stop: float
) -> CompositeStructure:
    """Fill in what forward and backward pass share. All tensors must be contiguous."""
    return CompositeStructure(
        rays=rays,
        samples=len(density),
        channels=values.shape[1],
        stop=stop,
        offsets=None if offsets is None else offsets.data_ptr(),
        density=density.data_ptr(),
        values=values.data_ptr(),
        lengths=lengths.data_ptr(),
    )


def composite_forward(
    library: Library,
    density: Tensor,
    values: Tensor,
    lengths: Tensor,
    offsets: Tensor | None,
    rays: int,
    stop: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """``density [M]``, ``values [M, C]``, ``lengths [M]``, float32 -> values ``[rays, C]``, alpha, weights ``[M]``."""
    density, values, lengths = density.contiguous(), values.contiguous(), lengths.contiguous()
    offsets = None if offsets is None else offsets.contiguous()
    output, alpha = values.new_empty(rays, values.shape[1]), values.new_empty(rays)
    # Packed rays may leave samples out.
    weights = torch.empty_like(density) if offsets is None else torch.zeros_like(density)
    arguments = describe_composite(density, values, lengths, offsets, rays, stop)
    arguments.output, arguments.alpha, arguments.weights = output.data_ptr(), alpha.data_ptr(), weights.data_ptr()
    library.call("composite_forward", arguments, density.device)
    return output, alpha, weights


def differentiate_composite(
    library: Library,
    gradients: Sequence[Tensor],
    density: Tensor,
    values: Tensor,
    lengths: Tensor,
    offsets: Tensor | None,
    rays: int,
    stop: float,
    weights: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients to density, values and lengths from those of the three results."""
    density, values, lengths = density.contiguous(), values.contiguous(), lengths.contiguous()
    offsets = None if offsets is None else offsets.contiguous()
    gradients = [gradient.contiguous() for gradient in gradients]
    make = torch.empty_like if offsets is None else torch.zeros_like
    results = make(density), make(values), make(lengths)
    arguments = describe_composite(density, values, lengths, offsets, rays, stop)
    arguments.weights = weights.data_ptr()
    for name, gradient in zip(("output", "alpha", "weights"), gradients, strict=True):
        setattr(arguments, f"{name}_gradient", gradient.data_ptr())
    for name, result in zip(("density", "values", "lengths"), results, strict=True):
        setattr(arguments, f"{name}_gradient", result.data_ptr())
    library.call("composite_backward", arguments, density.device)
    return results


@torch.library.custom_op(
    "s3dnerf::composite",
    mutates_args=(),
    schema="(Tensor density, Tensor values, Tensor lengths, Tensor? offsets, SymInt rays, float stop) "
    "-> (Tensor, Tensor, Tensor)",
)
def composite(density, values, lengths, offsets, rays, stop):
    """Composite flat samples; without offsets all rays have equally many."""
    library = find_library(density.device.type)
    return composite_forward(library, density, values, lengths, offsets, rays, stop)


@composite.register_fake
def _(density, values, lengths, offsets, rays, stop):
    return values.new_empty(rays, values.shape[1]), values.new_empty(rays), torch.empty_like(density)


@torch.library.custom_op(
    "s3dnerf::composite_backward",
    mutates_args=(),
    schema="(Tensor[] gradients, Tensor density, Tensor values, Tensor lengths, Tensor? offsets, SymInt rays, "
    "float stop, Tensor weights) -> (Tensor, Tensor, Tensor)",
)
def composite_backward(gradients, density, values, lengths, offsets, rays, stop, weights):
    """The gradients of :func:`composite` to density, values and lengths."""
    library = find_library(density.device.type)
    return differentiate_composite(library, gradients, density, values, lengths, offsets, rays, stop, weights)


@composite_backward.register_fake
def _(gradients, density, values, lengths, offsets, rays, stop, weights):
    return torch.empty_like(density), torch.empty_like(values), torch.empty_like(lengths)


def _save_composite(ctx, inputs, output):
    density, values, lengths, offsets, ctx.rays, ctx.stop = inputs
    ctx.save_for_backward(density, values, lengths, offsets, output[2])


def _differentiate_composite(ctx, *gradients):
    density, values, lengths, offsets, weights = ctx.saved_tensors
    results = composite_backward(list(gradients), density, values, lengths, offsets, ctx.rays, ctx.stop, weights)
    return *results, None, None, None


composite.register_autograd(_differentiate_composite, setup_context=_save_composite)


def march(
    library: Library,
    positions: Tensor,
    lengths: Tensor,
    lattice: Tensor,
    lattice_size: Sequence[int],
    lattice_shape: Sequence[float],
    planes: Sequence[Tensor],
    camera: Sequence[Tensor],
    layers: Sequence[Tensor],
    frequencies: int,
    stop: float,
) -> tuple[Tensor, Tensor]:
    """Run the fused path; the arguments are those of :func:`field`."""
    planes = [store_channels_last(scale).contiguous() for scale in planes]
    floats = [part.float().contiguous() for part in (positions, lengths, lattice, *camera, *layers)]
    positions, lengths, lattice = floats[:3]
    rotation, scale, center = floats[3:6]
    weights, biases = floats[6::2], floats[7::2]
    batch, rays, samples = lengths.shape
    features = len(biases[2]) - 4
    output, alpha = positions.new_empty(batch, rays, features + 5), positions.new_empty(batch, rays)
    arguments = FieldStructure(
        batch=batch,
        rays=rays,
        samples=samples,
        lattice_size=tuple(lattice_size),
        ambient=lattice.shape[2] - 3,
        scales=len(planes),
        plane_channels=planes[0].shape[-1],
        storage=STORAGE[planes[0].dtype],
        frequencies=frequencies,
        hidden=len(biases[0]),
        features=features,
        stop=stop,
        lattice_center=tuple(lattice_shape[:3]),
        lattice_focus=tuple(lattice_shape[3:6]),
        lattice_extent=tuple(lattice_shape[6:9]),
        plane_height=tuple(part.shape[2] for part in planes),
        plane_width=tuple(part.shape[3] for part in planes),
        plane_batch_stride=tuple(part.stride(0) if len(part) > 1 else 0 for part in planes),
        planes=tuple(part.data_ptr() for part in planes),
        positions=positions.data_ptr(),
        lengths=lengths.data_ptr(),
        lattice=lattice.data_ptr(),
        rotation=rotation.data_ptr(),
        scale=scale.data_ptr(),
        center=center.data_ptr(),
        weights=tuple(part.data_ptr() for part in weights),
        biases=tuple(part.data_ptr() for part in biases),
        output=output.data_ptr(),
        alpha=alpha.data_ptr(),
    )
    library.call("field_forward", arguments, positions.device)
    return output, alpha


@torch.library.custom_op(
    "s3dnerf::field",
    mutates_args=(),
    schema="(Tensor positions, Tensor lengths, Tensor lattice, int[] lattice_size, float[] lattice_shape, "
    "Tensor[] planes, Tensor[] camera, Tensor[] layers, int frequencies, float stop) -> (Tensor, Tensor)",
)
def field(positions, lengths, lattice, lattice_size, lattice_shape, planes, camera, layers, frequencies, stop):
    """Samples of head space -> composited color, features and place in the portrait, and alpha; no gradients.

    ``planes`` are ``[B or 1, 3, H, W, C]``, ``camera`` is rotation, scale and center, ``layers`` alternate weight and
    bias, ``lattice_shape`` is center, focus and extent.
    """
    library = find_library(positions.device.type)
    return march(
        library,
        positions,
        lengths,
        lattice,
        lattice_size,
        lattice_shape,
        planes,
        camera,
        layers,
        frequencies,
        stop,
    )


@field.register_fake
def _(positions, lengths, lattice, lattice_size, lattice_shape, planes, camera, layers, frequencies, stop):
    batch, rays, _ = lengths.shape
    channels = layers[-1].shape[0] + 1
    return positions.new_empty(batch, rays, channels), positions.new_empty(batch, rays)
