"""Volume rendering of samples along rays (Max, 1995), for any number of channels."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from ctypes import c_float, c_int32, c_int64
from ctypes import c_void_p as pointer
from dataclasses import dataclass

import torch
from torch import Tensor

from s3dnerf.ops.backend import Library, find_library
from s3dnerf.ops.layout import runs_on_pytorch
from s3dnerf.ops.library import define_operator


@dataclass(frozen=True)
class Composite:
    """Rendered channels of a batch of rays."""

    values: Tensor
    """``[..., C]`` channels weighted by visibility; not divided by alpha."""
    alpha: Tensor
    """``[...]`` opacity in [0, 1]."""
    weights: Tensor
    """``[..., S]`` weight of each sample."""


def composite(density: Tensor, values: Tensor, deltas: Tensor, early_stop_eps: float = 0.0) -> Composite:
    """Composite samples front to back: ``w_i = (1 - exp(-density_i delta_i)) exp(-sum_{j<i} density_j delta_j)``.

    Args:
        density: ``[..., S]``, not negative.
        values: ``[..., S, C]``.
        deltas: ``[..., S]`` lengths of the intervals.
        early_stop_eps: samples behind less transmittance than this get no weight. 0 keeps all.

    Returns:
        Tensors in float32 (float64 if an argument is), differentiable in the first three arguments.
    """
    if runs_on_pytorch("composite", density, values, deltas):
        return composite_reference(density, values, deltas, early_stop_eps)
    shape = density.shape
    flat = (density.float().reshape(-1), values.float().reshape(-1, values.shape[-1]), deltas.float().reshape(-1))
    rays = math.prod(shape[:-1])
    output, alpha, weights = composite_op(*flat, rays, early_stop_eps)
    return Composite(output.view(*shape[:-1], -1), alpha.view(shape[:-1]), weights.view(shape))


def composite_reference(density: Tensor, values: Tensor, deltas: Tensor, early_stop_eps: float = 0.0) -> Composite:
    """Reference implementation of :func:`composite`."""
    optical = density * deltas
    before = torch.cumsum(optical, dim=-1) - optical
    weights = torch.exp(-before) * -torch.expm1(-optical)
    if early_stop_eps > 0.0:
        weights = weights.masked_fill(before > -math.log(early_stop_eps), 0.0)
    # Autocast would round the values, among them image coordinates, to bfloat16.
    with torch.autocast(density.device.type, enabled=False):
        return Composite(torch.einsum("...s,...sc->...c", weights, values), weights.sum(dim=-1), weights)


class S3dComposite(ctypes.Structure):
    """Mirror of ``S3dComposite``."""

    _fields_ = (
        *((name, c_int64) for name in ("rays", "samples")),
        ("channels", c_int32),
        ("early_stop_eps", c_float),
        *((name, pointer) for name in ("density", "values", "deltas", "output", "alpha", "weights")),
        *((f"{name}_gradient", pointer) for name in ("output", "alpha", "weights")),
        *((f"{name}_gradient", pointer) for name in ("density", "values", "deltas")),
    )


ARGUMENTS = S3dComposite


def make_arguments(density: Tensor, values: Tensor, deltas: Tensor, rays: int, early_stop_eps: float) -> S3dComposite:
    """Fill in what forward and backward pass share. All tensors must be contiguous."""
    return S3dComposite(
        rays=rays,
        samples=len(density),
        channels=values.shape[1],
        early_stop_eps=early_stop_eps,
        density=density.data_ptr(),
        values=values.data_ptr(),
        deltas=deltas.data_ptr(),
    )


def launch_forward(
    library: Library, density: Tensor, values: Tensor, deltas: Tensor, rays: int, early_stop_eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """``density [M]``, ``values [M, C]``, ``deltas [M]``, float32 -> values ``[rays, C]``, alpha, weights ``[M]``."""
    density, values, deltas = density.contiguous(), values.contiguous(), deltas.contiguous()
    output, alpha = values.new_empty(rays, values.shape[1]), values.new_empty(rays)
    weights = torch.empty_like(density)
    arguments = make_arguments(density, values, deltas, rays, early_stop_eps)
    arguments.output, arguments.alpha, arguments.weights = output.data_ptr(), alpha.data_ptr(), weights.data_ptr()
    library.call("composite_forward", arguments, density.device)
    return output, alpha, weights


def launch_backward(
    library: Library,
    gradients: Sequence[Tensor],
    density: Tensor,
    values: Tensor,
    deltas: Tensor,
    rays: int,
    early_stop_eps: float,
    weights: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients with respect to density, values and deltas from those of the three outputs."""
    density, values, deltas = density.contiguous(), values.contiguous(), deltas.contiguous()
    gradients = [gradient.contiguous() for gradient in gradients]
    results = torch.empty_like(density), torch.empty_like(values), torch.empty_like(deltas)
    arguments = make_arguments(density, values, deltas, rays, early_stop_eps)
    arguments.weights = weights.data_ptr()
    for name, gradient in zip(("output", "alpha", "weights"), gradients, strict=True):
        setattr(arguments, f"{name}_gradient", gradient.data_ptr())
    for name, result in zip(("density", "values", "deltas"), results, strict=True):
        setattr(arguments, f"{name}_gradient", result.data_ptr())
    library.call("composite_backward", arguments, density.device)
    return results


@define_operator(
    "composite",
    "(Tensor density, Tensor values, Tensor deltas, SymInt rays, float early_stop_eps) -> (Tensor, Tensor, Tensor)",
)
def composite_op(density, values, deltas, rays, early_stop_eps):
    """Composite flat samples; every ray has equally many."""
    return launch_forward(find_library(density.device.type), density, values, deltas, rays, early_stop_eps)


@composite_op.register_fake
def _(density, values, deltas, rays, early_stop_eps):
    return values.new_empty(rays, values.shape[1]), values.new_empty(rays), torch.empty_like(density)


@define_operator(
    "composite_backward",
    "(Tensor[] gradients, Tensor density, Tensor values, Tensor deltas, SymInt rays, float early_stop_eps, "
    "Tensor weights) -> (Tensor, Tensor, Tensor)",
)
def composite_backward(gradients, density, values, deltas, rays, early_stop_eps, weights):
    """Return the gradients of :func:`composite_op` with respect to density, values and deltas."""
    library = find_library(density.device.type)
    return launch_backward(library, gradients, density, values, deltas, rays, early_stop_eps, weights)


@composite_backward.register_fake
def _(gradients, density, values, deltas, rays, early_stop_eps, weights):
    return torch.empty_like(density), torch.empty_like(values), torch.empty_like(deltas)


def _setup_context(ctx, inputs, output):
    density, values, deltas, ctx.rays, ctx.early_stop_eps = inputs
    ctx.save_for_backward(density, values, deltas, output[2])


def _backward(ctx, *gradients):
    density, values, deltas, weights = ctx.saved_tensors
    results = composite_backward(list(gradients), density, values, deltas, ctx.rays, ctx.early_stop_eps, weights)
    return *results, None, None


composite_op.register_autograd(_backward, setup_context=_setup_context)
