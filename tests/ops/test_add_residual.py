"""Source plus residual, of every set of CPU kernels against float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from s3dnerf.ops import add_residual as module
from s3dnerf.ops.add_residual import add_residual_reference, add_residual_to_source, launch_forward
from s3dnerf.ops.backend import VARIABLE
from s3dnerf.rendering.threads import use_threads

from .conftest import relative_error

# Batch, height and width of the residual.
SIZES = [(1, 2, 2), (2, 4, 6), (1, 16, 32), (3, 18, 34), (2, 34, 128), (1, 50, 14)]


def draw(make, size, scale: float = 0.05) -> tuple[Tensor, Tensor]:
    """Return a source, and residuals of which some are small and some are large."""
    batch, height, width = size
    change = scale * make(batch, 12, height, width) * make(batch, 1, height, width)
    return make(batch, 3, 2 * height, 2 * width), change + 0.05 * make(batch, 12, 1, 1)


def run(library, warped: Tensor, change: Tensor, share: float) -> Tensor:
    return launch_forward(library, warped, change.permute(0, 2, 3, 1), share)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("share", [0.0, 0.6, 1.0])
def test_agrees_with_float64(cpu_library, make, size, share) -> None:
    warped, change = draw(make, size)
    truth = add_residual_reference(warped.double(), change.double(), share)
    result = run(cpu_library, warped, change, share)
    assert result.shape == truth.shape and relative_error(result, truth) < 1e-5
    assert relative_error(result - warped, truth - warped) < 1e-4


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_bfloat16_changes(cpu_library, make, size) -> None:
    warped, change = draw(make, size)
    result = run(cpu_library, warped, change.bfloat16(), 1.0)
    assert torch.equal(result, run(cpu_library, warped, change.bfloat16().float(), 1.0))


def test_the_operator_runs_it_on_channels_last(cpu, make) -> None:
    warped, change = draw(make, SIZES[3])
    change = change.contiguous(memory_format=torch.channels_last)
    assert torch.equal(add_residual_to_source(warped, change, 0.8), run(cpu, warped, change, 0.8))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e30])
def test_bad_values_spoil_only_their_neighbors(cpu_library, make, bad) -> None:
    warped, change = draw(make, SIZES[3])
    whole = run(cpu_library, warped, change, 1.0)
    change[0, 4, 9, 12] = bad
    result = run(cpu_library, warped, change, 1.0)
    far = torch.ones_like(whole, dtype=torch.bool)
    far[0, :, 12:28, 18:34] = False
    assert torch.equal(result[far], whole[far])
    assert not torch.equal(result[~far], whole[~far])


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_any_number_of_threads_gives_the_same_bits(cpu, make, threads) -> None:
    parts = draw(make, SIZES[4])
    expected = run(cpu, *parts, 1.0)
    with use_threads(threads):
        result = run(cpu, *parts, 1.0)
    assert torch.equal(result, expected)


def test_odd_sizes_gradients_float64_and_backend_pytorch_run_on_the_reference(cpu, make, monkeypatch) -> None:
    warped, change = draw(make, SIZES[1])
    with pytest.raises(RuntimeError, match="size"):
        run(cpu, warped[..., :10], change[..., :5], 1.0)
    monkeypatch.setattr(module, "add_residual", None)
    learned = change.clone().requires_grad_()
    assert torch.autograd.grad(add_residual_to_source(warped, learned, 1.0).sum(), learned)[0].abs().max() > 0
    assert add_residual_to_source(warped.double(), change, 1.0).dtype == torch.float64
    assert add_residual_to_source(warped[..., :10], change[..., :5], 0.0).shape == (2, 3, 8, 10)
    monkeypatch.setenv(VARIABLE, "pytorch")
    assert torch.equal(add_residual_to_source(warped, change, 1.0), add_residual_reference(warped, change, 1.0))


def test_opcheck(cpu, make) -> None:
    warped, change = draw(make, SIZES[1])
    torch.library.opcheck(module.add_residual.overload, (warped, change.permute(0, 2, 3, 1).contiguous(), 0.5))
