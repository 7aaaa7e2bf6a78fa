"""Compositing of every backend against float64, dense and packed, and against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from s3dnerf.rendering import operators
from s3dnerf.rendering.compositing import (
    composite,
    composite_packed,
    composite_packed_reference,
    composite_reference,
)

from .conftest import relative_error

SIZES = [(1, 1, 1), (9, 2, 4), (7, 4, 21), (5, 8, 22), (6, 16, 21), (7, 33, 3), (3, 70, 17), (2, 1500, 5)]


def test_by_hand() -> None:
    # Two samples of optical depth ln 2 each: half, then half of what is left.
    seen = composite(torch.full((1, 2), math.log(2.0)), torch.tensor([[[1.0], [2.0]]]), torch.ones(1, 2))
    assert seen.weights[0].tolist() == pytest.approx([0.5, 0.25])
    assert seen.alpha.item() == pytest.approx(0.75)
    assert seen.values.item() == pytest.approx(1.0)


def test_early_termination_by_hand() -> None:
    # Transmittance before the samples: 1, 1/2, 1/4, 1/8; those behind less than 0.2 weigh nothing.
    seen = composite(torch.full((1, 4), math.log(2.0)), torch.ones(1, 4, 1), torch.ones(1, 4), stop=0.2)
    assert seen.weights[0].tolist() == pytest.approx([0.5, 0.25, 0.125, 0.0])


def compare(library, arguments, gradients, reference, shapes) -> None:
    """Forward and backward of one library against a float64 reference of the same (flat) arguments."""
    density, values, lengths, offsets, rays, stop = arguments
    wide = [part.double().requires_grad_() for part in (density, values, lengths)]
    truth = reference(*(part.view(shape) for part, shape in zip(wide, shapes, strict=True)))
    truth = [part.reshape(gradient.shape) for part, gradient in zip(truth, gradients, strict=True)]
    torch.autograd.backward(truth, [gradient.double() for gradient in gradients])
    result = operators.composite_forward(library, *arguments)
    for one, other in zip(result, truth, strict=True):
        assert relative_error(one, other) < 1e-5
    back = operators.differentiate_composite(library, gradients, *arguments, result[2])
    for one, other in zip(back, wide, strict=True):
        assert relative_error(one, other.grad) < 1e-4


@pytest.mark.parametrize(("rays", "samples", "channels"), SIZES)
@pytest.mark.parametrize("stop", [0.0, 1e-2])
def test_dense_agrees_with_float64(library, make, rays, samples, channels, stop) -> None:
    total = rays * samples
    arguments = (
        3.0 * make.uniform(total),
        make(total, channels),
        make.uniform(total) * 4.0 / samples,
        None,
        rays,
        stop,
    )
    gradients = [make(rays, channels), make(rays), make(total)]
    shapes = [(rays, samples), (rays, samples, channels), (rays, samples)]

    def reference(*parts):
        seen = composite_reference(*parts, stop)
        return seen.values, seen.alpha, seen.weights

    compare(library, arguments, gradients, reference, shapes)


@pytest.mark.parametrize("stop", [0.0, 1e-1])
def test_packed_agrees_with_float64(library, make, device, stop) -> None:
    offsets = torch.tensor([0, 0, 1, 30, 30, 31, 97, 140, 140], device=device)
    arguments = (3.0 * make.uniform(140), make(140, 6), 0.3 * make.uniform(140), offsets, 8, stop)
    gradients = [make(8, 6), make(8), make(140)]

    def reference(*parts):
        seen = composite_packed_reference(*parts, offsets, stop)
        return seen.values, seen.alpha, seen.weights

    compare(library, arguments, gradients, reference, [(140,), (140, 6), (140,)])


def test_packed_is_dense_ray_by_ray(cpu) -> None:
    torch.manual_seed(0)
    density, values, lengths = torch.rand(12), torch.randn(12, 3), torch.rand(12)
    packed = composite_packed(density, values, lengths, torch.tensor([0, 5, 5, 12]))
    for ray, (begin, end) in enumerate([(0, 5), (5, 5), (5, 12)]):
        part = slice(begin, end)
        seen = composite_reference(density[part], values[part], lengths[part])
        torch.testing.assert_close(packed.values[ray], seen.values)
        torch.testing.assert_close(packed.alpha[ray], seen.alpha)


def test_offsets_out_of_range_read_nothing_beyond(library, make, device) -> None:
    offsets = torch.tensor([-5, 3, 2, 99], device=device)
    result = operators.composite_forward(library, make.uniform(10), make(10, 2), make.uniform(10), offsets, 3, 0.0)
    assert all(part.isfinite().all() for part in result)


def test_bad_numbers_spoil_only_their_own_ray(library, make, device) -> None:
    density, values, lengths = make.uniform(3, 20), make(3, 20, 4), make.uniform(3, 20)
    density[1, 4], density[2, 5] = float("nan"), float("inf")
    arguments = (density.flatten(), values.flatten(0, 1), lengths.flatten(), None, 3, 0.0)
    seen, alpha, weights = operators.composite_forward(library, *arguments)
    assert seen[0].isfinite().all() and alpha[1].isnan() and seen[1].isnan().all()
    gradients = [torch.ones_like(seen), torch.ones_like(alpha), torch.ones_like(weights)]
    back = operators.differentiate_composite(library, gradients, *arguments, weights)
    assert back[0].view(3, 20)[0].isfinite().all()


def test_small_and_large_densities_keep_their_digits(library, make, device) -> None:
    density = torch.tensor([1e-7, 1e-4, 1e-2, 0.49, 0.51, 5.0, 80.0, 1e4], device=device)
    weights = operators.composite_forward(library, density, make(8, 1), torch.ones(8, device=device), None, 8, 0.0)[2]
    torch.testing.assert_close(weights.double(), -torch.expm1(-density.double()), rtol=1e-6, atol=0.0)


def test_shapes_and_broadcast_lengths(cpu) -> None:
    torch.manual_seed(0)
    density, values = torch.rand(2, 3, 8, requires_grad=True), torch.randn(2, 3, 8, 4)
    lengths = torch.rand(2, 3, 1).expand(2, 3, 8)
    seen, truth = composite(density, values, lengths), composite_reference(density, values, lengths)
    torch.testing.assert_close(seen.values, truth.values)
    torch.testing.assert_close(seen.weights, truth.weights)
    result, expected = (torch.autograd.grad(part.values.sum(), density)[0] for part in (seen, truth))
    torch.testing.assert_close(result, expected)
