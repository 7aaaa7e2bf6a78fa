"""The convolution in bfloat16 against float64, and against numbers computed by hand."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from s3dnerf.ops import convolution_bf16 as module
from s3dnerf.ops.backend import VARIABLE, Library
from s3dnerf.ops.convolution import Convolution, convolve, convolve_reference
from s3dnerf.ops.convolution_bf16 import launch_forward
from s3dnerf.rendering.threads import use_threads

from .conftest import FOREIGN, relative_error, use_variant

# Batch, channels in and out, height and width: full and partial tiles, one and two of them in each direction.
SIZES = [
    *((1, 1, 1, 1, 1), (2, 5, 7, 9, 13), (1, 32, 12, 4, 40), (3, 20, 64, 17, 6)),
    *((2, 48, 33, 8, 140), (1, 64, 80, 33, 16), (1, 3, 32, 20, 17)),
]
ROUNDING = 2.0**-8
"""Largest relative error of rounding to bfloat16."""


@pytest.fixture(params=["avx512bf16", "amx"])
def library(cpu: Library, request: pytest.FixtureRequest) -> Iterator[Library]:
    """Use the kernels for AMX, and those for AVX512_BF16."""
    if FOREIGN:
        pytest.skip("its instructions are not emulated")
    yield from use_variant(cpu, request.param)


def draw(make, sizes, stride: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return input, weight, bias and addend in channels-last format."""
    batch, inputs, outputs, height, width = sizes
    addend = make(batch, (height - 1) // stride + 1, (width - 1) // stride + 1, outputs).bfloat16()
    return make(batch, height, width, inputs).bfloat16(), make(outputs, inputs, 3, 3), make(outputs), addend


def find_truth(parts, stride: int, before: bool, behind: bool) -> Tensor:
    """Compute in float64 what the kernel computes of rounded inputs."""
    x, weight, bias, addend = parts
    x = F.silu(x.double()).bfloat16() if before else x
    result = F.conv2d(x.double().permute(0, 3, 1, 2), weight.bfloat16().double(), bias.double(), stride, padding=1)
    result = result.permute(0, 2, 3, 1) + (0.0 if addend is None else addend.double())
    return F.silu(result) if behind else result


def test_by_hand(library) -> None:
    # Every pixel becomes the sum of its 3 x 3 neighborhood; border pixels have fewer neighbors.
    x = torch.arange(1.0, 26.0).view(1, 5, 5, 1).bfloat16()
    ones, half = torch.ones(1, 1, 3, 3), torch.tensor([0.5])
    result = launch_forward(library, x, ones, half, None, 1, False, False)[0, :, :, 0]
    assert result[0, 0] == 1 + 2 + 6 + 7 + 0.5 and result[2, 2] == torch.tensor(9 * 13 + 0.5).bfloat16()
    every_second = launch_forward(library, x, ones, half, None, 2, False, False)[0, :, :, 0]
    assert torch.equal(every_second, result[::2, ::2])


@pytest.mark.parametrize("place", range(9))
def test_each_tap_reads_its_neighbor(library, make, place) -> None:
    weight = torch.zeros(2, 2, 9)
    weight[[0, 1], [1, 0], place] = 1.0
    x = make(1, 6, 37, 2).bfloat16()
    result = launch_forward(library, x, weight.view(2, 2, 3, 3), torch.zeros(2), None, 1, False, False)
    moved = F.pad(x[0], (0, 0, 1, 1, 1, 1))[place // 3 :, place % 3 :][:6, :37]
    assert torch.equal(result[0], moved.flip(2))


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("before", "behind"), [(False, False), (True, False), (False, True), (True, True)])
def test_agrees_with_float64(library, make, sizes, stride, before, behind) -> None:
    parts = draw(make, sizes, stride)
    result = launch_forward(library, *parts, stride, before, behind)
    assert result.dtype == torch.bfloat16
    assert relative_error(result, find_truth(parts, stride, before, behind)) < ROUNDING
    without = launch_forward(library, *parts[:3], None, stride, before, behind)
    assert relative_error(without, find_truth((*parts[:3], None), stride, before, behind)) < ROUNDING


def test_activation_is_as_exact_as_bfloat16(library) -> None:
    # All values of bfloat16 from -100 to 100; the center tap alone passes them on.
    values = torch.arange(-(2**15), 2**15).to(torch.int16).view(torch.bfloat16)
    values = values[values.abs() <= 100.0]
    weight = torch.zeros(1, 1, 3, 3)
    weight[..., 1, 1] = 1.0
    for before, behind in ((True, False), (False, True)):
        result = launch_forward(library, values.view(1, 1, -1, 1), weight, torch.zeros(1), None, 1, before, behind)
        expected = F.silu(values.double())
        error = (result.flatten().double() - expected).abs()
        assert (error <= (1.03 * ROUNDING) * expected.abs() + 1e-36).all()


def test_large_values_stay_finite(library) -> None:
    x = torch.tensor([-3e38, -1e4, 1e4, 3e38]).view(1, 1, 4, 1).bfloat16()
    weight = torch.zeros(1, 1, 3, 3)
    weight[..., 1, 1] = 1.0
    result = launch_forward(library, x, weight, torch.zeros(1), None, 1, True, False).flatten()
    assert torch.equal(result, torch.tensor([0.0, 0.0, *x.flatten()[2:].tolist()]).bfloat16())


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_any_number_of_threads_gives_the_same_bits(library, make, threads) -> None:
    parts = draw(make, (2, 20, 33, 40, 33), 2)
    expected = launch_forward(library, *parts, 2, True, True)
    with use_threads(threads):
        assert torch.equal(launch_forward(library, *parts, 2, True, True), expected)


def test_memory_around_the_map_is_not_read(library, make) -> None:
    x, weight, bias, _ = draw(make, SIZES[4], 1)
    expected = launch_forward(library, x, weight, bias, None, 1, False, False)
    among = torch.full((3, *x.shape[1:]), torch.nan, dtype=torch.bfloat16)
    among[1] = x[0]
    assert torch.equal(launch_forward(library, among[1:2], weight, bias, None, 1, False, False), expected[:1])


def test_the_layer_uses_it_under_autocast(library, make) -> None:
    x, addend = make(1, 20, 24, 18), make(1, 7, 12, 9)
    layer = Convolution(20, 7, 3, stride=2, padding=1)
    with torch.inference_mode():
        truth = convolve_reference(x, layer.weight, layer.bias, addend, True, True, 2)
        with torch.autocast("cpu", torch.bfloat16):
            result = layer(x, addend, True, True)
    assert result.dtype == torch.bfloat16 and result.is_contiguous(memory_format=torch.channels_last)
    assert relative_error(result, truth) < 4 * ROUNDING


def test_the_compiler_traces_the_layer(library, make) -> None:
    layer, x = Convolution(4, 3, 3, padding=1), make(1, 4, 9, 8)

    def run(x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return layer(x, activate_output=True)

    with torch.no_grad():
        assert torch.equal(torch.compile(run, backend="aot_eager", fullgraph=True)(x), run(x))


def test_other_tensors_run_on_pytorch(cpu, make, monkeypatch) -> None:
    monkeypatch.setattr(module, "convolution_bf16", None)
    x, weight, bias = make(1, 4, 9, 8), make(3, 4, 3, 3), make(3)
    with torch.autocast("cpu", torch.bfloat16):
        learned = weight.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(convolve(x, learned, bias).sum(), learned)
        assert gradient.isfinite().all()
        assert convolve(x, weight, None).dtype == torch.bfloat16
        monkeypatch.setenv(VARIABLE, "pytorch")
        assert torch.equal(convolve(x, weight, bias), convolve_reference(x, weight, bias))


@pytest.mark.parametrize("autocast", [True, False])
@pytest.mark.parametrize("stride", [1, 2])
def test_other_shapes_run_on_pytorch(cpu, make, stride, autocast) -> None:
    x, weight, bias = make(2, 4, 40, 40), make(3, 4, 3, 3), make(3)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        for addend in (make(1, 3, 1, 1), make(40 // stride)):
            result = convolve(x, weight, bias, addend, stride=stride)
            assert torch.equal(result, convolve_reference(x, weight, bias, addend, stride=stride))
        assert torch.equal(
            convolve(x[0], weight, bias, stride=stride), convolve_reference(x[0], weight, bias, stride=stride)
        )
        for wrong in ((x[:, :2], weight, bias), (x, weight, bias[:2]), (x, weight, bias, make(2, 3, 39, 39))):
            with pytest.raises(RuntimeError):
                convolve(*wrong, stride=stride)


@pytest.mark.parametrize("variant", ["plain", "avx2", "avx512"])
def test_other_processors_run_on_pytorch(cpu, make, monkeypatch, variant) -> None:
    monkeypatch.setattr(module, "convolution_bf16", None)
    x, weight, bias = make(1, 4, 9, 8), make(3, 4, 3, 3), make(3)
    for library in use_variant(cpu, variant):
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(convolve(x, weight, bias), convolve_reference(x, weight, bias))
        x_rows = x.permute(0, 2, 3, 1).bfloat16()
        with pytest.raises(RuntimeError, match="storage type"):
            launch_forward(library, x_rows, weight, bias, None, 1, False, False)


def test_nothing_to_do_and_bad_sizes(library, make) -> None:
    weight, bias = make(3, 2, 3, 3), make(3)
    x = make(1, 4, 4, 2).bfloat16()
    assert launch_forward(library, x[:0], weight, bias, None, 1, False, False).shape == (0, 4, 4, 3)
    with pytest.raises(RuntimeError, match="size"):
        launch_forward(library, x, weight, bias, None, 3, False, False)


def test_operator_is_well_formed(library, make) -> None:
    x, weight, bias, addend = draw(make, SIZES[1], 2)
    torch.library.opcheck(module.convolution_bf16.overload, (x, weight, bias, addend, 2, True, True))
