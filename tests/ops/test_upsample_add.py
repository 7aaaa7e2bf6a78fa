"""Upsampled maps of every set of CPU kernels against float64, and against numbers computed by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from s3dnerf.ops import upsample_add as module
from s3dnerf.ops.backend import VARIABLE
from s3dnerf.ops.image import upsample
from s3dnerf.ops.upsample_add import add_upsampled, launch_forward
from s3dnerf.rendering.threads import use_threads

from .conftest import relative_error

# Batch, channels, height and width of the coarse map.
SIZES = [(1, 1, 1, 1), (2, 3, 4, 5), (1, 32, 8, 16), (3, 37, 5, 9), (2, 64, 17, 1)]


def draw(make, size) -> tuple[Tensor, Tensor]:
    batch, channels, height, width = size
    return make(batch, channels, height, width), make(batch, channels, 2 * height, 2 * width)


def run(library, coarse: Tensor, fine: Tensor) -> Tensor:
    return launch_forward(library, coarse.permute(0, 2, 3, 1), fine.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def test_by_hand(cpu_library) -> None:
    coarse = torch.tensor([[[[0.0, 4.0], [8.0, 12.0]]]])
    expected = torch.tensor([[0.0, 1.0, 3.0, 4.0]]) + torch.tensor([[0.0], [2.0], [6.0], [8.0]])
    assert torch.equal(run(cpu_library, coarse, torch.full((1, 1, 4, 4), 100.0))[0, 0], 100.0 + expected)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_agrees_with_float64(cpu_library, make, size) -> None:
    coarse, fine = draw(make, size)
    truth = fine.double() + upsample(coarse.double(), 2)
    assert relative_error(run(cpu_library, coarse, fine), truth) < 1e-6


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_bfloat16_is_the_rounded_float32(cpu_library, make, size) -> None:
    coarse, fine = (part.bfloat16() for part in draw(make, size))
    whole = run(cpu_library, coarse.float(), fine.float())
    assert torch.equal(run(cpu_library, coarse, fine), whole.bfloat16())


def test_bad_values_spoil_only_their_neighbors(cpu_library, make) -> None:
    coarse, fine = draw(make, SIZES[3])
    whole = run(cpu_library, coarse, fine)
    coarse[1, 20, 2, 4] = float("nan")
    spoilt = run(cpu_library, coarse, fine).isnan()
    assert spoilt[1, 20, 3:7, 7:11].all() and spoilt.sum() == 16
    assert torch.equal(run(cpu_library, coarse, fine)[~spoilt], whole[~spoilt])


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_any_number_of_threads_gives_the_same_bits(cpu, make, threads) -> None:
    parts = draw(make, SIZES[3])
    expected = run(cpu, *parts)
    with use_threads(threads):
        result = run(cpu, *parts)
    assert torch.equal(result, expected)


def test_the_operator_keeps_channels_last(cpu, make) -> None:
    coarse, fine = (part.contiguous(memory_format=torch.channels_last) for part in draw(make, SIZES[2]))
    result = add_upsampled(coarse, fine)
    assert result.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(result, run(cpu, coarse, fine))


def test_gradients_float64_mixed_types_and_backend_pytorch_run_on_the_reference(cpu, make, monkeypatch) -> None:
    coarse, fine = draw(make, SIZES[1])
    monkeypatch.setattr(module, "upsample_add", None)
    learned = coarse.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(add_upsampled(learned, fine).sum(), learned)
    torch.testing.assert_close(gradient, torch.full_like(gradient, 4.0))
    assert add_upsampled(coarse.double(), fine.double()).dtype == torch.float64
    assert add_upsampled(coarse.bfloat16(), fine).dtype == torch.float32
    monkeypatch.setenv(VARIABLE, "pytorch")
    assert torch.equal(add_upsampled(coarse, fine), fine + upsample(coarse, 2))


def test_opcheck(cpu, make) -> None:
    parts = (part.permute(0, 2, 3, 1).contiguous() for part in draw(make, SIZES[1]))
    torch.library.opcheck(module.upsample_add.overload, tuple(parts))
