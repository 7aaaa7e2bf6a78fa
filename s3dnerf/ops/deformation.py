"""The network of the deformation field: from positions and motion codes to offsets, in one operator.

The codes of the regions are mixed by the region weights of each position, and a U-shaped network turns the mix into the
result. The CPU kernel computes chunks of positions that stay in the cache, and recomputes them in the backward pass.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import c_int32, c_int64
from ctypes import c_void_p as pointer
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from s3dnerf.ops.backend import Library, find_library
from s3dnerf.ops.layout import is_bf16_autocast, runs_on_pytorch
from s3dnerf.ops.library import define_operator

Layers = Sequence[tuple[Tensor, Tensor]]
"""Weight and bias of the network's three layers, as ``torch.nn.Linear`` stores them: H -> K, K -> H, 2 H -> C."""


def deform(position: Tensor, region_weights: Tensor, by_region: Tensor, pose: Tensor, layers: Layers) -> Tensor:
    """Evaluate the deformation network at ``N`` positions that all of ``B`` frames share.

    Args:
        position: ``[N, H]`` encoding of each position.
        region_weights: ``[N, R]`` weights of the regions at each position.
        by_region: ``[B, R, H]`` encoded codes of the frame's regions.
        pose: ``[B, H]`` encoded pose of the frame.
        layers: of the network, see :func:`run_network`.

    Returns:
        ``[B, N, C]``, float32 (float64 if an argument is). Differentiable in all arguments. Under autocast to bfloat16
        the network may multiply in bfloat16; the kernel computes everything else in float32.
    """
    tensors = (position, region_weights, by_region, pose, *(part for layer in layers for part in layer))
    if runs_on_pytorch("deformation", *tensors):
        return deform_reference(position, region_weights, by_region, pose, layers)
    return deformation(*tensors[:4], list(tensors[4:]), is_bf16_autocast(position.device))


def deform_reference(
    position: Tensor, region_weights: Tensor, by_region: Tensor, pose: Tensor, layers: Layers
) -> Tensor:
    """Reference implementation of :func:`deform`."""
    # Positions first, frames second: one matrix product mixes the codes for all frames.
    mixed = (region_weights @ by_region.transpose(0, 1).flatten(1)).view(len(region_weights), *pose.shape)
    return run_network(position[:, None] + mixed + pose, layers).transpose(0, 1)


def run_network(mixed: Tensor, layers: Layers) -> Tensor:
    """Run the U-shaped network on ``[..., H]`` -> ``[..., C]``; the first activations skip to the last layer."""
    down, up, (weight, bias) = layers
    first = F.silu(mixed)
    last = F.silu(F.linear(F.silu(F.linear(first, *down)), *up))
    # Products with few columns are slow in bfloat16: rows of zeros make them fast.
    count = len(bias)
    weight, bias = F.pad(weight, (0, 0, 0, -count % 16)), F.pad(bias, (0, -count % 16))
    near, far = weight.chunk(2, dim=1)
    result = (F.linear(first, near, bias) + F.linear(last, far))[..., :count]
    return result if result.dtype == torch.float64 else result.float()


NAMES = ("position", "region_weights", "by_region", "pose")


class S3dDeformation(ctypes.Structure):
    """Mirror of ``S3dDeformation``."""

    _fields_ = (
        *((name, c_int64) for name in ("batch", "points")),
        *((name, c_int32) for name in ("regions", "hidden", "bottleneck", "outputs", "bf16_products")),
        *((name, pointer) for name in NAMES),
        ("weights", pointer * 3),
        ("biases", pointer * 3),
        *((name, pointer) for name in ("output", "output_gradient")),
        *((f"{name}_gradient", pointer) for name in NAMES),
        ("weights_gradient", pointer * 3),
        ("biases_gradient", pointer * 3),
    )


ARGUMENTS = S3dDeformation


@dataclass(frozen=True)
class DeformationArguments:
    """Inputs of the operator; forward and backward pass share them."""

    position: Tensor
    region_weights: Tensor
    by_region: Tensor
    pose: Tensor
    layers: Sequence[Tensor]
    """Weight and bias, alternating."""
    bf16_products: bool = False
    """Whether the network may multiply in bfloat16 where that is faster."""

    def list_tensors(self) -> tuple[Tensor, ...]:
        """Return all tensors, each of which gets a gradient."""
        return self.position, self.region_weights, self.by_region, self.pose, *self.layers

    def make_contiguous(self) -> DeformationArguments:
        """Return the same arguments with tensors as the kernels read them."""
        position, region_weights, by_region, pose, *layers = (part.float().contiguous() for part in self.list_tensors())
        return replace(
            self, position=position, region_weights=region_weights, by_region=by_region, pose=pose, layers=layers
        )

    def make_structure(self) -> S3dDeformation:
        """Fill in the C structure. The tensors must be contiguous and outlive it."""
        weights, biases = self.layers[::2], self.layers[1::2]
        batch, regions, hidden = self.by_region.shape
        return S3dDeformation(
            batch=batch,
            points=len(self.position),
            regions=regions,
            hidden=hidden,
            bottleneck=len(biases[0]),
            outputs=len(biases[2]),
            bf16_products=self.bf16_products,
            position=self.position.data_ptr(),
            region_weights=self.region_weights.data_ptr(),
            by_region=self.by_region.data_ptr(),
            pose=self.pose.data_ptr(),
            weights=tuple(part.data_ptr() for part in weights),
            biases=tuple(part.data_ptr() for part in biases),
        )


def launch_forward(library: Library, arguments: DeformationArguments) -> Tensor:
    """Run the operator: ``[B, N, C]``; CPU kernels only."""
    dense = arguments.make_contiguous()
    output = dense.position.new_empty(len(dense.pose), len(dense.position), len(dense.layers[-1]))
    structure = dense.make_structure()
    structure.output = output.data_ptr()
    library.call("deformation_forward", structure, output.device)
    return output


def launch_backward(library: Library, gradient: Tensor, arguments: DeformationArguments) -> list[Tensor]:
    """Return the gradients with respect to all tensors of the arguments; CPU kernels only."""
    dense = arguments.make_contiguous()
    gradient = gradient.float().contiguous()
    results = [torch.empty_like(dense.position), torch.empty_like(dense.region_weights)]
    results += [torch.zeros_like(part) for part in (dense.by_region, dense.pose, *dense.layers)]
    structure = dense.make_structure()
    structure.output_gradient = gradient.data_ptr()
    for name, result in zip(NAMES, results, strict=False):
        setattr(structure, f"{name}_gradient", result.data_ptr())
    structure.weights_gradient = tuple(part.data_ptr() for part in results[4::2])
    structure.biases_gradient = tuple(part.data_ptr() for part in results[5::2])
    library.call("deformation_backward", structure, gradient.device)
    return [result.to(part.dtype) for result, part in zip(results, arguments.list_tensors(), strict=True)]


SCHEMA = "Tensor position, Tensor region_weights, Tensor by_region, Tensor pose, Tensor[] layers, bool bf16_products"
"""The fields of :class:`DeformationArguments` in the schema of an operator."""


@define_operator("deformation", f"({SCHEMA}) -> Tensor")
def deformation(position, *others):
    """Run the deformation network, see :func:`launch_forward`."""
    return launch_forward(find_library(position.device.type), DeformationArguments(position, *others))


@deformation.register_fake
def _(position, region_weights, by_region, pose, layers, bf16_products):
    return position.new_empty(pose.shape[0], position.shape[0], layers[-1].shape[0], dtype=torch.float32)


@define_operator("deformation_backward", f"(Tensor gradient, {SCHEMA}) -> Tensor[]")
def deformation_backward(gradient, position, *others):
    """Return the gradients of :func:`deformation` with respect to all tensors."""
    return launch_backward(find_library(position.device.type), gradient, DeformationArguments(position, *others))


@deformation_backward.register_fake
def _(gradient, position, region_weights, by_region, pose, layers, bf16_products):
    return [part.new_empty(part.shape) for part in (position, region_weights, by_region, pose, *layers)]


def _setup_context(ctx, inputs, output):
    position, region_weights, by_region, pose, layers, ctx.bf16_products = inputs
    ctx.save_for_backward(position, region_weights, by_region, pose, *layers)


def _backward(ctx, gradient):
    position, region_weights, by_region, pose, *layers = ctx.saved_tensors
    results = deformation_backward(gradient, position, region_weights, by_region, pose, layers, ctx.bf16_products)
    return *results[:4], results[4:], None


deformation.register_autograd(_backward, setup_context=_setup_context)
