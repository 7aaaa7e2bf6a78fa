"""Compositing and the fused path on our kernels, as PyTorch operators; built like :mod:`s3dnerf.encoding.operators`."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import c_float, c_int32, c_int64
from ctypes import c_void_p as pointer
from dataclasses import dataclass, replace

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
        ("bfloat_products", c_int32),
        *((f"{name}_gradient", pointer) for name in ("output", "alpha", "lattice")),
        ("planes_gradient", pointer * MAX_SCALES),
        ("weights_gradient", pointer * 3),
        ("biases_gradient", pointer * 3),
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


@dataclass(frozen=True)
class FieldArguments:
    """What both ways through the fused path share."""

    positions: Tensor
    lengths: Tensor
    lattice: Tensor
    lattice_size: Sequence[int]
    """Points along x, y, z."""
    lattice_shape: Sequence[float]
    """Center, focus and extent."""
    planes: Sequence[Tensor]
    """``[B or 1, 3, H, W, C]``."""
    camera: Sequence[Tensor]
    """Rotation, scale and center."""
    layers: Sequence[Tensor]
    """Weight and bias in turns."""
    frequencies: int
    stop: float
    bfloat_products: bool = False
    """Whether the network may multiply in bfloat16 where that is faster."""

    def make_dense(self) -> FieldArguments:
        """Return the same with tensors as the kernels read them."""
        planes = [store_channels_last(scale).contiguous() for scale in self.planes]
        positions, lengths, lattice, *others = (
            part.float().contiguous()
            for part in (self.positions, self.lengths, self.lattice, *self.camera, *self.layers)
        )
        dense = {"positions": positions, "lengths": lengths, "lattice": lattice, "planes": planes}
        return replace(self, **dense, camera=others[:3], layers=others[3:])

    def describe(self) -> FieldStructure:
        """Fill in what both ways share; the tensors must be dense and outlive the structure."""
        batch, rays, samples = self.lengths.shape
        weights, biases = self.layers[::2], self.layers[1::2]
        return FieldStructure(
            batch=batch,
            rays=rays,
            samples=samples,
            lattice_size=tuple(self.lattice_size),
            ambient=self.lattice.shape[2] - 3,
            scales=len(self.planes),
            plane_channels=self.planes[0].shape[-1],
            storage=STORAGE[self.planes[0].dtype],
            frequencies=self.frequencies,
            hidden=len(biases[0]),
            features=len(biases[2]) - 4,
            stop=self.stop,
            lattice_center=tuple(self.lattice_shape[:3]),
            lattice_focus=tuple(self.lattice_shape[3:6]),
            lattice_extent=tuple(self.lattice_shape[6:9]),
            plane_height=tuple(part.shape[2] for part in self.planes),
            plane_width=tuple(part.shape[3] for part in self.planes),
            plane_batch_stride=tuple(part.stride(0) if len(part) > 1 else 0 for part in self.planes),
            planes=tuple(part.data_ptr() for part in self.planes),
            positions=self.positions.data_ptr(),
            lengths=self.lengths.data_ptr(),
            lattice=self.lattice.data_ptr(),
            **dict(zip(("rotation", "scale", "center"), (part.data_ptr() for part in self.camera), strict=True)),
            weights=tuple(part.data_ptr() for part in weights),
            biases=tuple(part.data_ptr() for part in biases),
            bfloat_products=self.bfloat_products,
        )


def march(library: Library, arguments: FieldArguments) -> tuple[Tensor, Tensor]:
    """Run the fused path: color, features, place in the portrait, ``[B, R, 3 + features + 2]``; alpha ``[B, R]``."""
    dense = arguments.make_dense()
    batch, rays, _ = dense.lengths.shape
    output = dense.positions.new_empty(batch, rays, len(dense.layers[-1]) + 1)
    alpha = dense.positions.new_empty(batch, rays)
    filled = dense.describe()
    filled.output, filled.alpha = output.data_ptr(), alpha.data_ptr()
    library.call("field_forward", filled, output.device)
    return output, alpha


def march_back(library: Library, gradients: Sequence[Tensor], arguments: FieldArguments) -> list[Tensor]:
    """Return the gradients to lattice, planes and layers from those of the two results; CPU kernels only."""
    dense = arguments.make_dense()
    output, alpha = (gradient.float().contiguous() for gradient in gradients)
    lattice = torch.zeros_like(dense.lattice)
    planes = [torch.zeros_like(scale, dtype=torch.float32) for scale in dense.planes]
    layers = [torch.zeros_like(part) for part in dense.layers]
    filled = dense.describe()
    filled.output_gradient, filled.alpha_gradient = output.data_ptr(), alpha.data_ptr()
    filled.lattice_gradient = lattice.data_ptr()
    filled.planes_gradient = tuple(scale.data_ptr() for scale in planes)
    filled.weights_gradient = tuple(part.data_ptr() for part in layers[::2])
    filled.biases_gradient = tuple(part.data_ptr() for part in layers[1::2])
    library.call("field_backward", filled, output.device)
    learned = (arguments.lattice, *arguments.planes, *arguments.layers)
    return [result.to(part.dtype) for result, part in zip((lattice, *planes, *layers), learned, strict=True)]


FIELD = (
    "Tensor positions, Tensor lengths, Tensor lattice, int[] lattice_size, float[] lattice_shape, Tensor[] planes, "
    "Tensor[] camera, Tensor[] layers, int frequencies, float stop, bool bfloat_products"
)
"""The fields of :class:`FieldArguments`, for an operator."""


@torch.library.custom_op("s3dnerf::field", mutates_args=(), schema=f"({FIELD}) -> (Tensor, Tensor)")
def field(positions, *others):
    """The fused path, :func:`march`."""
    return march(find_library(positions.device.type), FieldArguments(positions, *others))


@field.register_fake
def _(positions, lengths, lattice, lattice_size, lattice_shape, planes, camera, layers, *others):
    batch, rays, _ = lengths.shape
    dense = positions.new_empty(0, dtype=torch.float32)
    return dense.new_empty(batch, rays, layers[-1].shape[0] + 1), dense.new_empty(batch, rays)


@torch.library.custom_op(
    "s3dnerf::field_backward", mutates_args=(), schema=f"(Tensor[] gradients, {FIELD}) -> Tensor[]"
)
def field_backward(gradients, positions, *others):
    """The gradients of :func:`field` to lattice, planes and layers."""
    return march_back(find_library(positions.device.type), gradients, FieldArguments(positions, *others))


@field_backward.register_fake
def _(gradients, positions, lengths, lattice, lattice_size, lattice_shape, planes, camera, layers, *others):
    return [part.new_empty(part.shape) for part in (lattice, *planes, *layers)]


def _save_field(ctx, inputs, output):
    positions, lengths, lattice, size, shape, planes, camera, layers, *numbers = inputs
    ctx.save_for_backward(positions, lengths, lattice, *planes, *camera, *layers)
    ctx.scales, ctx.shape, ctx.numbers = len(planes), (size, shape), numbers


def _differentiate_field(ctx, *gradients):
    positions, lengths, lattice, *tensors = ctx.saved_tensors
    planes, camera, layers = (tensors[: ctx.scales], tensors[ctx.scales : ctx.scales + 3], tensors[ctx.scales + 3 :])
    to_lattice, *others = field_backward(
        list(gradients), positions, lengths, lattice, *ctx.shape, planes, camera, layers, *ctx.numbers
    )
    to_planes, to_layers = others[: ctx.scales], others[ctx.scales :]
    return None, None, to_lattice, None, None, to_planes, [None] * 3, to_layers, None, None, None


field.register_autograd(_differentiate_field, setup_context=_save_field)
