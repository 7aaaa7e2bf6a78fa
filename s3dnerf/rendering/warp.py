"""The warp of the deformation lattice: from positions and the codes of frames to offsets, in one operator.

What regions say to a position is mixed by the position's shares, and a U-shaped network turns it into the result. On
the CPU our kernel computes chunks of positions that stay in the cache, and computes them once more on the way back
instead of having kept them. Elsewhere this runs on PyTorch's operators.
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

from s3dnerf.backend import Library, choose_backend, find_library

Layers = Sequence[tuple[Tensor, Tensor]]
"""Weight and bias of the network's three layers, as ``torch.nn.Linear`` keeps them: H -> K, K -> H, 2 H -> C."""


def warp_lattice(position: Tensor, shares: Tensor, by_region: Tensor, pose: Tensor, layers: Layers) -> Tensor:
    """Evaluate the warp at ``N`` positions that all of ``B`` frames share.

    Args:
        position: ``[N, H]`` what each position says.
        shares: ``[N, R]`` how much of each region a position is.
        by_region: ``[B, R, H]`` what the frame says to each region.
        pose: ``[B, H]`` what it says to all.
        layers: of the network :func:`run_network`.

    Returns ``[B, N, C]``, float32 (float64 if any argument is). Differentiable in everything. Under autocast to
    bfloat16 the network's products may be in bfloat16; with our kernel all else is float32.
    """
    device = position.device.type
    given = (position, shares, by_region, pose, *(part for layer in layers for part in layer))
    if any(part.dtype == torch.float64 for part in given) or choose_backend("warp", device) == "pytorch":
        return warp_lattice_reference(position, shares, by_region, pose, layers)
    narrow = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.bfloat16
    return warp(*given[:4], list(given[4:]), narrow)


def warp_lattice_reference(position: Tensor, shares: Tensor, by_region: Tensor, pose: Tensor, layers: Layers) -> Tensor:
    """The twin of :func:`warp_lattice`, on PyTorch's operators."""
    # Positions first, frames second: one product mixes for all frames.
    mixed = (shares @ by_region.transpose(0, 1).flatten(1)).view(len(shares), *pose.shape)
    return run_network(position[:, None] + mixed + pose, layers).transpose(0, 1)


def run_network(mixed: Tensor, layers: Layers) -> Tensor:
    """Run the U-shaped network on ``[..., H]`` -> ``[..., C]``; the first activations skip to the last layer."""
    narrow, widen, (weight, bias) = layers
    first = F.silu(mixed)
    last = F.silu(F.linear(F.silu(F.linear(first, *narrow)), *widen))
    # Products with a handful of columns are slow in bfloat16: a few rows of zeros make them fast.
    count = len(bias)
    weight, bias = F.pad(weight, (0, 0, 0, -count % 16)), F.pad(bias, (0, -count % 16))
    near, far = weight.chunk(2, dim=1)
    result = (F.linear(first, near, bias) + F.linear(last, far))[..., :count]
    return result if result.dtype == torch.float64 else result.float()


class WarpStructure(ctypes.Structure):
    """S3dWarp."""

    _fields_ = (
        *((name, c_int64) for name in ("batch", "points")),
        *((name, c_int32) for name in ("regions", "hidden", "narrow", "outputs", "bfloat_products")),
        *((name, pointer) for name in ("position", "shares", "by_region", "pose")),
        ("weights", pointer * 3),
        ("biases", pointer * 3),
        *((name, pointer) for name in ("output", "output_gradient")),
        *((f"{name}_gradient", pointer) for name in ("position", "shares", "by_region", "pose")),
        ("weights_gradient", pointer * 3),
        ("biases_gradient", pointer * 3),
    )


@dataclass(frozen=True)
class WarpArguments:
    """What both ways share."""

    position: Tensor
    shares: Tensor
    by_region: Tensor
    pose: Tensor
    layers: Sequence[Tensor]
    """Weight and bias in turns."""
    bfloat_products: bool = False
    """Whether the network may multiply in bfloat16 where that is faster."""

    def list_tensors(self) -> tuple[Tensor, ...]:
        """Return all that gets gradients."""
        return self.position, self.shares, self.by_region, self.pose, *self.layers

    def make_dense(self) -> WarpArguments:
        """Return the same with tensors as the kernels read them."""
        position, shares, by_region, pose, *layers = (part.float().contiguous() for part in self.list_tensors())
        return replace(self, position=position, shares=shares, by_region=by_region, pose=pose, layers=layers)

    def describe(self) -> WarpStructure:
        """Fill in what both ways share; the tensors must be dense and outlive the structure."""
        weights, biases = self.layers[::2], self.layers[1::2]
        batch, regions, hidden = self.by_region.shape
        return WarpStructure(
            batch=batch,
            points=len(self.position),
            regions=regions,
            hidden=hidden,
            narrow=len(biases[0]),
            outputs=len(biases[2]),
            bfloat_products=self.bfloat_products,
            position=self.position.data_ptr(),
            shares=self.shares.data_ptr(),
            by_region=self.by_region.data_ptr(),
            pose=self.pose.data_ptr(),
            weights=tuple(part.data_ptr() for part in weights),
            biases=tuple(part.data_ptr() for part in biases),
        )


def run_warp(library: Library, arguments: WarpArguments) -> Tensor:
    """Evaluate the warp: ``[B, N, C]``; CPU kernels only."""
    dense = arguments.make_dense()
    output = dense.position.new_empty(len(dense.pose), len(dense.position), len(dense.layers[-1]))
    filled = dense.describe()
    filled.output = output.data_ptr()
    library.call("warp_forward", filled, output.device)
    return output


def differentiate_warp(library: Library, gradient: Tensor, arguments: WarpArguments) -> list[Tensor]:
    """Return the gradients to :meth:`WarpArguments.list_tensors` from that of the result; CPU kernels only."""
    dense = arguments.make_dense()
    gradient = gradient.float().contiguous()
    results = [torch.empty_like(dense.position), torch.empty_like(dense.shares)]
    results += [torch.zeros_like(part) for part in (dense.by_region, dense.pose, *dense.layers)]
    filled = dense.describe()
    filled.output_gradient = gradient.data_ptr()
    for name, result in zip(("position", "shares", "by_region", "pose"), results, strict=False):
        setattr(filled, f"{name}_gradient", result.data_ptr())
    filled.weights_gradient = tuple(part.data_ptr() for part in results[4::2])
    filled.biases_gradient = tuple(part.data_ptr() for part in results[5::2])
    library.call("warp_backward", filled, gradient.device)
    return [result.to(part.dtype) for result, part in zip(results, arguments.list_tensors(), strict=True)]


WARP = "Tensor position, Tensor shares, Tensor by_region, Tensor pose, Tensor[] layers, bool bfloat_products"
"""The fields of :class:`WarpArguments`, for an operator."""


@torch.library.custom_op("s3dnerf::warp", mutates_args=(), schema=f"({WARP}) -> Tensor")
def warp(position, *others):
    """The warp, :func:`run_warp`."""
    return run_warp(find_library(position.device.type), WarpArguments(position, *others))


@warp.register_fake
def _(position, shares, by_region, pose, layers, bfloat_products):
    return position.new_empty(pose.shape[0], position.shape[0], layers[-1].shape[0], dtype=torch.float32)


@torch.library.custom_op("s3dnerf::warp_backward", mutates_args=(), schema=f"(Tensor gradient, {WARP}) -> Tensor[]")
def warp_backward(gradient, position, *others):
    """The gradients of :func:`warp` to all tensors."""
    return differentiate_warp(find_library(position.device.type), gradient, WarpArguments(position, *others))


@warp_backward.register_fake
def _(gradient, position, shares, by_region, pose, layers, bfloat_products):
    return [part.new_empty(part.shape) for part in (position, shares, by_region, pose, *layers)]


def _save_warp(ctx, inputs, output):
    position, shares, by_region, pose, layers, ctx.bfloat_products = inputs
    ctx.save_for_backward(position, shares, by_region, pose, *layers)


def _differentiate_warp(ctx, gradient):
    position, shares, by_region, pose, *layers = ctx.saved_tensors
    results = warp_backward(gradient, position, shares, by_region, pose, layers, ctx.bfloat_products)
    return *results[:4], results[4:], None


warp.register_autograd(_differentiate_warp, setup_context=_save_warp)
