"""The convolution of every set of CPU kernels against float64, and against numbers computed by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from s3dnerf.ops import convolution as module
from s3dnerf.ops.backend import VARIABLE
from s3dnerf.ops.convolution import (
    Convolution,
    convolve,
    convolve_reference,
    launch_backward,
    launch_forward,
)

from .conftest import relative_error

# Batch, channels in and out, height and width: full and partial tiles, full and partial registers of channels.
SIZES = [(1, 1, 1, 1, 1), (2, 5, 7, 9, 13), (1, 32, 12, 4, 40), (3, 20, 64, 17, 6), (2, 48, 33, 8, 140)]


@pytest.fixture
def everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the kernel also process small images."""
    monkeypatch.setattr(module, "MIN_PIXELS", 1)


def draw(make, sizes) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return input, weight, bias and addend in channels-last format."""
    batch, inputs, outputs, height, width = sizes
    x, addend = make(batch, height, width, inputs), make(batch, height, width, outputs)
    return x, make(outputs, inputs, 3, 3), make(outputs), addend


def find_truth(x: Tensor, weight: Tensor, bias: Tensor, addend: Tensor, before: bool, behind: bool) -> Tensor:
    x = F.silu(x) if before else x
    result = F.conv2d(x.permute(0, 3, 1, 2), weight, bias, padding=1).permute(0, 2, 3, 1) + addend
    return F.silu(result) if behind else result


def draw_layer(make, sizes) -> tuple[Convolution, Tensor, Tensor]:
    x, weight, bias, addend = draw(make, sizes)
    layer = Convolution(sizes[1], sizes[2], 3, padding=1)
    layer.weight, layer.bias = nn.Parameter(weight), nn.Parameter(bias)
    return layer, x.permute(0, 3, 1, 2), addend.permute(0, 3, 1, 2)


def test_by_hand(cpu_library) -> None:
    # Every pixel becomes the sum of its 3 x 3 neighborhood; border pixels have fewer neighbors.
    x = torch.arange(1.0, 26.0).view(1, 5, 5, 1)
    result = launch_forward(cpu_library, x, torch.ones(1, 1, 3, 3), torch.tensor([0.5]), None, False, False)
    expected = {(0, 0): 1 + 2 + 6 + 7, (2, 2): 9 * 13, (4, 4): 19 + 20 + 24 + 25, (0, 2): 2 + 3 + 4 + 7 + 8 + 9}
    for (row, column), value in expected.items():
        assert result[0, row, column, 0].item() == pytest.approx(value + 0.5, abs=1e-4)


@pytest.mark.parametrize("place", range(9))
def test_each_tap_reads_its_neighbor(cpu_library, make, place) -> None:
    weight = torch.zeros(1, 1, 9)
    weight[..., place] = 1.0
    x = make(1, 6, 7, 1)
    result = launch_forward(cpu_library, x, weight.view(1, 1, 3, 3), torch.zeros(1), None, False, False)
    moved = F.pad(x[0, :, :, 0], (1, 1, 1, 1))[place // 3 :, place % 3 :][:6, :7]
    assert torch.allclose(result[0, :, :, 0], moved, atol=1e-5)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize(("before", "behind"), [(False, False), (True, False), (False, True), (True, True)])
def test_agrees_with_float64(cpu_library, make, sizes, before, behind) -> None:
    parts = draw(make, sizes)
    result = launch_forward(cpu_library, *parts, before, behind)
    assert relative_error(result, find_truth(*(part.double() for part in parts), before, behind)) < 1e-5


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_gradients_agree_with_float64(cpu_library, everywhere, make, sizes) -> None:
    layer, x, addend = draw_layer(make, sizes)
    truth = Convolution(sizes[1], sizes[2], 3, padding=1).double()
    truth.load_state_dict(layer.state_dict())
    ours = [x.requires_grad_(), addend.requires_grad_(), *layer.parameters()]
    others = [x.detach().double().requires_grad_(), addend.detach().double().requires_grad_(), *truth.parameters()]
    gradient = make(*addend.shape)
    found = torch.autograd.grad(layer(x, addend, True, True), ours, gradient)
    expected = torch.autograd.grad(truth(*others[:2], True, True), others, gradient.double())
    for one, other in zip(found, expected, strict=True):
        assert relative_error(one, other) < 1e-4


@pytest.mark.parametrize("sizes", SIZES[1:4], ids=str)
def test_gradients_of_gradients_agree_with_float64(cpu_library, everywhere, make, sizes) -> None:
    # Second derivatives, as the R1 penalty needs them: of the input gradient with respect to everything else.
    x, weight, bias, _ = draw(make, sizes)
    parts = (x.permute(0, 3, 1, 2), weight, bias)

    def differentiate(function, dtype: torch.dtype) -> list[Tensor]:
        x, weight, bias = (part.to(dtype).requires_grad_() for part in parts)
        result = F.leaky_relu(function(function(x, weight, bias), weight.transpose(0, 1), bias.new_ones(x.shape[1])))
        (gradient,) = torch.autograd.grad(result.square().sum(), x, create_graph=True)
        return torch.autograd.grad(gradient.square().sum(), [x, weight, bias])

    results, truths = differentiate(convolve, torch.float32), differentiate(convolve_reference, torch.float64)
    for result, truth in zip(results, truths, strict=True):
        assert relative_error(result, truth) < 1e-4


def test_same_bits_for_as_many_threads(cpu_library, make) -> None:
    x, weight, bias, addend = draw(make, SIZES[-1])
    gradient = make(*addend.shape)
    for run in (
        lambda: launch_forward(cpu_library, x, weight, bias, addend, True, True),
        lambda: launch_backward(cpu_library, x, gradient)[0],
        lambda: launch_backward(cpu_library, x, gradient)[1],
    ):
        assert torch.equal(run(), run())


def test_nan_stays_in_its_tile(cpu_library, make) -> None:
    x, weight, bias, addend = draw(make, SIZES[-1])
    x[0, 1, 1] = torch.nan
    result = launch_forward(cpu_library, x, weight, bias, addend, True, True)
    assert result[0, :3, :3].isnan().all()
    assert not result[0, :, 6:].isnan().any() and not result[1].isnan().any()


def test_nothing_to_do(cpu_library, make) -> None:
    weight, bias = make(3, 2, 3, 3), make(3)
    assert launch_forward(cpu_library, make(0, 4, 4, 2), weight, bias, None, False, False).shape == (0, 4, 4, 3)
    by_weight, by_bias = launch_backward(cpu_library, make(0, 4, 4, 2), make(0, 4, 4, 3))
    assert not by_weight.any() and not by_bias.any()


def test_other_layers_and_types_run_on_pytorch(everywhere, make, monkeypatch) -> None:
    monkeypatch.setattr(module, "convolution", None)
    x = make(1, 4, 9, 8)
    for layer in (
        Convolution(4, 3, 3, stride=2, padding=1),
        Convolution(4, 3, 1),
        Convolution(4, 3, 3, padding=1).double(),
    ):
        like = x.to(layer.weight.dtype)
        assert torch.equal(layer(like), nn.Conv2d.forward(layer, like))
    usual = Convolution(4, 3, 3, padding=1)
    with torch.autocast("cpu", torch.bfloat16):
        assert usual(x).dtype == torch.bfloat16
    monkeypatch.setenv(VARIABLE, "pytorch")
    assert torch.equal(usual(x), nn.Conv2d.forward(usual, x))


def test_small_pictures_run_on_pytorch(make, monkeypatch) -> None:
    monkeypatch.setattr(module, "convolution", None)
    layer = Convolution(2, 2, 3, padding=1)
    x = make(1, 2, 8, 8)
    assert torch.equal(layer(x, activate_output=True), F.silu(nn.Conv2d.forward(layer, x)))


@pytest.mark.parametrize("flags", [(False, False), (True, True)], ids=str)
def test_operator_is_well_formed(cpu, make, flags) -> None:
    x, weight, bias, addend = draw(make, SIZES[1])
    if not any(flags):
        x, weight, bias, addend = (part.requires_grad_() for part in (x, weight, bias, addend))
    torch.library.opcheck(module.convolution.overload, (x, weight, bias, addend, *flags))
    torch.library.opcheck(module.convolution_backward.overload, (x.detach(), make(*addend.shape)))
