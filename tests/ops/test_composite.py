"""Compositing of every backend against float64, and against numbers computed by hand."""

from __future__ import annotations

import math

import pytest
import torch

from s3dnerf.ops.composite import composite, composite_reference, launch_backward, launch_forward

from .conftest import relative_error

SIZES = [(1, 1, 1), (9, 2, 4), (7, 4, 21), (5, 8, 22), (6, 16, 21), (7, 33, 3), (3, 70, 17), (2, 1500, 5)]


def test_by_hand() -> None:
    # Two samples of optical depth ln 2 each: half, then half of the rest.
    seen = composite(torch.full((1, 2), math.log(2.0)), torch.tensor([[[1.0], [2.0]]]), torch.ones(1, 2))
    assert seen.weights[0].tolist() == pytest.approx([0.5, 0.25])
    assert seen.alpha.item() == pytest.approx(0.75)
    assert seen.values.item() == pytest.approx(1.0)


def test_early_termination_by_hand() -> None:
    # Transmittance before the samples: 1, 1/2, 1/4, 1/8; samples below 0.2 have no weight.
    seen = composite(torch.full((1, 4), math.log(2.0)), torch.ones(1, 4, 1), torch.ones(1, 4), early_stop_eps=0.2)
    assert seen.weights[0].tolist() == pytest.approx([0.5, 0.25, 0.125, 0.0])


def compare(library, arguments, gradients, reference, shapes) -> None:
    """Compare forward and backward of a library with a float64 reference of the same (flat) arguments."""
    density, values, deltas, rays, stop = arguments
    wide = [part.double().requires_grad_() for part in (density, values, deltas)]
    truth = reference(*(part.view(shape) for part, shape in zip(wide, shapes, strict=True)))
    truth = [part.reshape(gradient.shape) for part, gradient in zip(truth, gradients, strict=True)]
    torch.autograd.backward(truth, [gradient.double() for gradient in gradients])
    result = launch_forward(library, *arguments)
    for one, other in zip(result, truth, strict=True):
        assert relative_error(one, other) < 1e-5
    back = launch_backward(library, gradients, *arguments, result[2])
    for one, other in zip(back, wide, strict=True):
        assert relative_error(one, other.grad) < 1e-4


@pytest.mark.parametrize(("rays", "samples", "channels"), SIZES)
@pytest.mark.parametrize("stop", [0.0, 1e-2])
def test_agrees_with_float64(library, make, rays, samples, channels, stop) -> None:
    total = rays * samples
    arguments = (
        3.0 * make.uniform(total),
        make(total, channels),
        make.uniform(total) * 4.0 / samples,
        rays,
        stop,
    )
    gradients = [make(rays, channels), make(rays), make(total)]
    shapes = [(rays, samples), (rays, samples, channels), (rays, samples)]

    def reference(*parts):
        seen = composite_reference(*parts, stop)
        return seen.values, seen.alpha, seen.weights

    compare(library, arguments, gradients, reference, shapes)


def test_bad_numbers_spoil_only_their_own_ray(library, make, device) -> None:
    density, values, deltas = make.uniform(3, 20), make(3, 20, 4), make.uniform(3, 20)
    density[1, 4], density[2, 5] = float("nan"), float("inf")
    arguments = (density.flatten(), values.flatten(0, 1), deltas.flatten(), 3, 0.0)
    seen, alpha, weights = launch_forward(library, *arguments)
    assert seen[0].isfinite().all() and alpha[1].isnan() and seen[1].isnan().all()
    gradients = [torch.ones_like(seen), torch.ones_like(alpha), torch.ones_like(weights)]
    back = launch_backward(library, gradients, *arguments, weights)
    assert back[0].view(3, 20)[0].isfinite().all()


def test_small_and_large_densities_keep_their_digits(library, make, device) -> None:
    density = torch.tensor([1e-7, 1e-4, 1e-2, 0.49, 0.51, 5.0, 80.0, 1e4], device=device)
    weights = launch_forward(library, density, make(8, 1), torch.ones(8, device=device), 8, 0.0)[2]
    torch.testing.assert_close(weights.double(), -torch.expm1(-density.double()), rtol=1e-6, atol=0.0)


def test_shapes_and_broadcast_deltas(cpu) -> None:
    torch.manual_seed(0)
    density, values = torch.rand(2, 3, 8, requires_grad=True), torch.randn(2, 3, 8, 4)
    deltas = torch.rand(2, 3, 1).expand(2, 3, 8)
    seen, truth = composite(density, values, deltas), composite_reference(density, values, deltas)
    torch.testing.assert_close(seen.values, truth.values)
    torch.testing.assert_close(seen.weights, truth.weights)
    result, expected = (torch.autograd.grad(part.values.sum(), density)[0] for part in (seen, truth))
    torch.testing.assert_close(result, expected)
