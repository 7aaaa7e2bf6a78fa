"""Frames over a background from every set of CPU kernels against the reference in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from s3dnerf.ops import composite_background as module
from s3dnerf.ops.backend import VARIABLE
from s3dnerf.ops.composite_background import composite_over, composite_over_reference, launch_forward
from s3dnerf.rendering.threads import use_threads

from .conftest import relative_error

# Batch, pixels per side of the flow.
SIZES = [(1, 2), (2, 10), (3, 36)]


def draw(make, size) -> tuple[Tensor, ...]:
    """Return the arguments; flow and opacity are channels of larger images, as in rendering."""
    batch, side = size
    masks = (make(1, 1, side, side).sigmoid() for _ in range(3))
    flow, alpha = make(batch, 5, side, side)[:, -2:], make(batch, 4, side // 2, side // 2).sigmoid()[:, -3:-2]
    return 1.5 * make(batch, 3, 2 * side, 2 * side), 0.1 * flow, alpha, make(1, 3, 2 * side, 2 * side), *masks


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_agrees_with_float64(cpu_library, make, size) -> None:
    parts = draw(make, size)
    truth = composite_over_reference(*(part.double() for part in parts))
    assert relative_error(launch_forward(cpu_library, *parts), truth) < 1e-5


def test_bad_pixels_stay_visible(cpu_library, make) -> None:
    parts = draw(make, SIZES[2])
    parts[0][1, 2, 30, 40] = float("nan")
    bad = launch_forward(cpu_library, *parts).isnan()
    assert bad[1, 2, 30, 40] and bad.sum() == 1


@pytest.mark.parametrize("threads", [1, 3])
def test_any_number_of_threads_gives_the_same_bits(cpu, make, threads) -> None:
    parts = draw(make, SIZES[2])
    expected = launch_forward(cpu, *parts)
    with use_threads(threads):
        result = launch_forward(cpu, *parts)
    assert torch.equal(result, expected)


def test_gradients_other_sizes_and_backend_pytorch_run_on_the_reference(cpu, make, monkeypatch) -> None:
    parts = draw(make, SIZES[1])
    monkeypatch.setattr(module, "composite_background", None)
    learned = parts[0].clone().requires_grad_()
    assert torch.autograd.grad(composite_over(learned, *parts[1:]).sum(), learned)[0].abs().sum() > 0.0
    larger = [part.repeat_interleave(2, 2).repeat_interleave(2, 3) for part in parts[4:]]
    assert composite_over(*parts[:4], *larger).shape == parts[0].shape
    monkeypatch.setenv(VARIABLE, "pytorch")
    assert torch.equal(composite_over(*parts), composite_over_reference(*parts))


def test_opcheck(cpu, make) -> None:
    torch.library.opcheck(module.composite_background.overload, draw(make, SIZES[1]))
