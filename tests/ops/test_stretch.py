"""Deformed lattices from every set of CPU kernels against the reference in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from s3dnerf.ops import stretch as module
from s3dnerf.ops.backend import VARIABLE
from s3dnerf.ops.stretch import add_stretch, add_stretch_reference, launch_forward

from .conftest import relative_error

# Batch, ambient coordinates, points along x, y and z.
SIZES = [(1, 1, (2, 2, 2)), (2, 4, (5, 9, 3))]


def draw(make, size) -> tuple[Tensor, Tensor, Tensor, tuple[int, int, int]]:
    batch, ambient, points = size
    count = points[0] * points[1] * points[2]
    heights = make.uniform(points[1], low=0.1, high=1.0).cumsum(0)
    return make(batch, count, 3), make(batch, count, ambient), heights, points


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_agrees_with_float64(cpu_library, make, size) -> None:
    *parts, points = draw(make, size)
    truth = add_stretch_reference(*(part.double() for part in parts), points)
    assert relative_error(launch_forward(cpu_library, *parts, points), truth) < 1e-5


def test_columns_of_one_tensor_are_read_in_place(cpu_library, make) -> None:
    offsets, ambient, heights, points = draw(make, SIZES[1])
    both = torch.cat([offsets, ambient], dim=-1)
    expected = launch_forward(cpu_library, offsets, ambient, heights, points)
    assert torch.equal(launch_forward(cpu_library, both[..., :3], both[..., 3:], heights, points), expected)


def test_gradients_float64_and_backend_pytorch_run_on_the_reference(cpu, make, monkeypatch) -> None:
    offsets, ambient, heights, points = draw(make, SIZES[1])
    monkeypatch.setattr(module, "stretch", None)
    learned = offsets.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(add_stretch(learned, ambient, heights, points).sum(), learned)
    assert torch.equal(gradient, torch.ones_like(gradient))
    assert add_stretch(offsets.double(), ambient.double(), heights.double(), points).dtype == torch.float64
    monkeypatch.setenv(VARIABLE, "pytorch")
    assert add_stretch(offsets, ambient, heights, points).shape == (2, 135, 7)


def test_opcheck(cpu, make) -> None:
    *parts, points = draw(make, SIZES[1])
    torch.library.opcheck(module.stretch.overload, (*parts, list(points)))
