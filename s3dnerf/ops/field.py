"""The fused radiance field: from ray samples to rendered channels in one operator.

It computes deformation lattice, projection, tri-planes, radiance network and compositing in chunks that stay in a
processor's cache, and terminates rays that have become opaque. The backward pass recomputes them instead of storing
them. Its reference implementation is :func:`s3dnerf.rendering.volume_rendering.render_rays_reference`, which evaluates
the model's own modules.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import c_float, c_int32, c_int64
from ctypes import c_void_p as pointer
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from s3dnerf.ops.backend import Library, choose_backend, find_library
from s3dnerf.ops.layout import STORAGE
from s3dnerf.ops.library import define_operator
from s3dnerf.ops.triplane import store_channels_last

OFFSET_GAIN = 4.0
"""Factor on the offsets before the network reads them."""
DENSITY_GAIN = 4.0
"""Factor on the density after softplus."""
MAX_SCALES = 8
MAX_LATTICE_CHANNELS = 64
MAX_CUDA_WIDTH, MAX_CUDA_OUTPUTS, MAX_CUDA_SAMPLES = 256, 128, 128
"""On a GPU one thread holds the layers of a sample."""
MAX_CUDA_SHARED, CUDA_SAMPLE_ROWS = 24 * 1024, 7
"""Floats of shared memory of a block in the backward pass on a GPU, and floats of a sample besides the network's."""


@dataclass(frozen=True)
class FieldArguments:
    """Inputs of the fused field; forward and backward pass share them."""

    positions: Tensor
    """``[B, R, S, 3]`` samples in head space, nearest to the viewer first."""
    deltas: Tensor
    """``[B, R, S]`` lengths of the intervals."""
    lattice: Tensor
    """``[B, points, 3 + A]`` offsets and ambient coordinates, x fastest, then y, then z."""
    lattice_size: Sequence[int]
    """Points along x, y, z."""
    lattice_shape: Sequence[float]
    """Center, focus and extent, three numbers each."""
    planes: Sequence[Tensor]
    """``[B or 1, 3, H, W, C]``."""
    camera: Sequence[Tensor]
    """Rotation ``[B, 3, 3]``, scale ``[B]`` and center ``[B, 2]`` of the source camera."""
    layers: Sequence[Tensor]
    """Weight and bias of the three layers, alternating."""
    frequencies: int
    """Octaves of the positional encoding."""
    early_stop_eps: float
    bf16_products: bool = False
    """Whether the network may multiply in bfloat16 where that is faster."""

    def make_contiguous(self) -> FieldArguments:
        """Return the same arguments with tensors as the kernels read them."""
        planes = [store_channels_last(scale).contiguous() for scale in self.planes]
        positions, deltas, lattice, *others = (
            part.float().contiguous()
            for part in (self.positions, self.deltas, self.lattice, *self.camera, *self.layers)
        )
        return replace(
            self,
            positions=positions,
            deltas=deltas,
            lattice=lattice,
            planes=planes,
            camera=others[:3],
            layers=others[3:],
        )

    def make_structure(self) -> S3dField:
        """Fill in the C structure. The tensors must be contiguous and outlive it."""
        batch, rays, samples = self.deltas.shape
        weights, biases = self.layers[::2], self.layers[1::2]
        return S3dField(
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
            early_stop_eps=self.early_stop_eps,
            lattice_center=tuple(self.lattice_shape[:3]),
            lattice_focus=tuple(self.lattice_shape[3:6]),
            lattice_extent=tuple(self.lattice_shape[6:9]),
            plane_height=tuple(part.shape[2] for part in self.planes),
            plane_width=tuple(part.shape[3] for part in self.planes),
            plane_batch_stride=tuple(part.stride(0) if len(part) > 1 else 0 for part in self.planes),
            planes=tuple(part.data_ptr() for part in self.planes),
            positions=self.positions.data_ptr(),
            deltas=self.deltas.data_ptr(),
            lattice=self.lattice.data_ptr(),
            **dict(zip(("rotation", "scale", "center"), (part.data_ptr() for part in self.camera), strict=True)),
            weights=tuple(part.data_ptr() for part in weights),
            biases=tuple(part.data_ptr() for part in biases),
            bf16_products=self.bf16_products,
        )


def is_supported(arguments: FieldArguments) -> bool:
    """Tell whether a kernel computes these sizes and types on this device, with all gradients that are needed."""
    device = arguments.positions.device.type
    if choose_backend("field", device) == "pytorch":
        return False
    planes, weights, biases = arguments.planes, arguments.layers[::2], arguments.layers[1::2]
    uniform = len({scale.shape[-1] for scale in planes}) == len({scale.dtype for scale in planes}) == 1
    single = all(part.dtype != torch.float64 for part in (arguments.positions, arguments.lattice, *planes))
    sized = arguments.lattice.shape[2] <= MAX_LATTICE_CHANNELS and min(arguments.lattice_size) >= 2
    known = len(weights) == 3 and 1 <= len(planes) <= MAX_SCALES
    widest = max([0, *(size for weight in weights for size in weight.shape)])
    fits = device == "cpu" or (widest <= MAX_CUDA_WIDTH and len(biases[-1]) <= MAX_CUDA_OUTPUTS)
    return uniform and single and sized and known and fits and has_gradients(arguments)


def has_gradients(arguments: FieldArguments) -> bool:
    """Tell whether the kernels return every gradient that autograd needs.

    There are none with respect to samples and camera, and on a GPU none if a whole ray does not fit in shared memory.
    """
    if not torch.is_grad_enabled():
        return True
    if any(part.requires_grad for part in (arguments.positions, arguments.deltas, *arguments.camera)):
        return False
    learned = (arguments.lattice, *arguments.planes, *arguments.layers)
    if arguments.positions.device.type == "cpu" or not any(part.requires_grad for part in learned):
        return True
    (outputs, hidden), inputs = arguments.layers[-2].shape, arguments.layers[0].shape[1]
    rows = inputs + 2 * hidden + outputs + CUDA_SAMPLE_ROWS
    return MAX_CUDA_SHARED // rows - 1 >= arguments.deltas.shape[2] <= MAX_CUDA_SAMPLES


class S3dField(ctypes.Structure):
    """Mirror of ``S3dField``."""

    _fields_ = (
        *((name, c_int64) for name in ("batch", "rays")),
        ("samples", c_int32),
        ("lattice_size", c_int32 * 3),
        *((name, c_int32) for name in ("ambient", "scales", "plane_channels", "storage", "frequencies")),
        *((name, c_int32) for name in ("hidden", "features")),
        ("early_stop_eps", c_float),
        *((f"lattice_{name}", c_float * 3) for name in ("center", "focus", "extent")),
        *((f"plane_{name}", c_int32 * MAX_SCALES) for name in ("height", "width")),
        ("plane_batch_stride", c_int64 * MAX_SCALES),
        ("planes", pointer * MAX_SCALES),
        *((name, pointer) for name in ("positions", "deltas", "lattice", "rotation", "scale", "center")),
        ("weights", pointer * 3),
        ("biases", pointer * 3),
        *((name, pointer) for name in ("output", "alpha")),
        ("bf16_products", c_int32),
        *((f"{name}_gradient", pointer) for name in ("output", "alpha", "lattice")),
        ("planes_gradient", pointer * MAX_SCALES),
        ("weights_gradient", pointer * 3),
        ("biases_gradient", pointer * 3),
    )


ARGUMENTS = S3dField


def launch_forward(library: Library, arguments: FieldArguments) -> tuple[Tensor, Tensor]:
    """Return ``[B, R, 3 + features + 2]`` (color, features, image coordinates in the source) and alpha ``[B, R]``."""
    dense = arguments.make_contiguous()
    batch, rays, _ = dense.deltas.shape
    output = dense.positions.new_empty(batch, rays, len(dense.layers[-1]) + 1)
    alpha = dense.positions.new_empty(batch, rays)
    structure = dense.make_structure()
    structure.output, structure.alpha = output.data_ptr(), alpha.data_ptr()
    library.call("field_forward", structure, output.device)
    return output, alpha


def launch_backward(library: Library, gradients: Sequence[Tensor], arguments: FieldArguments) -> list[Tensor]:
    """Return the gradients with respect to lattice, planes and layers from those of both outputs."""
    dense = arguments.make_contiguous()
    output, alpha = (gradient.float().contiguous() for gradient in gradients)
    lattice = torch.zeros_like(dense.lattice)
    planes = [torch.zeros_like(scale, dtype=torch.float32) for scale in dense.planes]
    layers = [torch.zeros_like(part) for part in dense.layers]
    structure = dense.make_structure()
    structure.output_gradient, structure.alpha_gradient = output.data_ptr(), alpha.data_ptr()
    structure.lattice_gradient = lattice.data_ptr()
    structure.planes_gradient = tuple(scale.data_ptr() for scale in planes)
    structure.weights_gradient = tuple(part.data_ptr() for part in layers[::2])
    structure.biases_gradient = tuple(part.data_ptr() for part in layers[1::2])
    library.call("field_backward", structure, output.device)
    learned = (arguments.lattice, *arguments.planes, *arguments.layers)
    return [result.to(part.dtype) for result, part in zip((lattice, *planes, *layers), learned, strict=True)]


SCHEMA = (
    "Tensor positions, Tensor deltas, Tensor lattice, int[] lattice_size, float[] lattice_shape, Tensor[] planes, "
    "Tensor[] camera, Tensor[] layers, int frequencies, float early_stop_eps, bool bf16_products"
)
"""The fields of :class:`FieldArguments` in the schema of an operator."""


@define_operator("field", f"({SCHEMA}) -> (Tensor, Tensor)")
def field(positions, *others):
    """Run the fused field, see :func:`launch_forward`."""
    return launch_forward(find_library(positions.device.type), FieldArguments(positions, *others))


@field.register_fake
def _(positions, deltas, lattice, lattice_size, lattice_shape, planes, camera, layers, *others):
    batch, rays, _ = deltas.shape
    dense = positions.new_empty(0, dtype=torch.float32)
    return dense.new_empty(batch, rays, layers[-1].shape[0] + 1), dense.new_empty(batch, rays)


@define_operator("field_backward", f"(Tensor[] gradients, {SCHEMA}) -> Tensor[]")
def field_backward(gradients, positions, *others):
    """Return the gradients of :func:`field` with respect to lattice, planes and layers."""
    return launch_backward(find_library(positions.device.type), gradients, FieldArguments(positions, *others))


@field_backward.register_fake
def _(gradients, positions, deltas, lattice, lattice_size, lattice_shape, planes, camera, layers, *others):
    return [part.new_empty(part.shape) for part in (lattice, *planes, *layers)]


def _setup_context(ctx, inputs, output):
    positions, deltas, lattice, size, shape, planes, camera, layers, *numbers = inputs
    ctx.save_for_backward(positions, deltas, lattice, *planes, *camera, *layers)
    ctx.scales, ctx.shape, ctx.numbers = len(planes), (size, shape), numbers


def _backward(ctx, *gradients):
    positions, deltas, lattice, *tensors = ctx.saved_tensors
    planes, camera, layers = (tensors[: ctx.scales], tensors[ctx.scales : ctx.scales + 3], tensors[ctx.scales + 3 :])
    to_lattice, *others = field_backward(
        list(gradients), positions, deltas, lattice, *ctx.shape, planes, camera, layers, *ctx.numbers
    )
    to_planes, to_layers = others[: ctx.scales], others[ctx.scales :]
    return None, None, to_lattice, None, None, to_planes, [None] * 3, to_layers, None, None, None


field.register_autograd(_backward, setup_context=_setup_context)
