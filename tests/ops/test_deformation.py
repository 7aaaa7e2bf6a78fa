"""The deformation network in every instruction set against float64, and in the model."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from s3dnerf.ops import deformation as module
from s3dnerf.ops.backend import VARIABLE
from s3dnerf.ops.deformation import DeformationArguments, deform, deform_reference, launch_backward, launch_forward
from s3dnerf.rendering.threads import use_threads

from .conftest import relative_error

# Frames, points, regions, hidden width, bottleneck width, outputs.
SIZES = [
    (6, 201, 6, 64, 32, 7),
    (1, 64, 16, 48, 24, 3),
    (2, 1, 1, 5, 3, 1),
    (3, 131, 9, 33, 17, 19),
    (2, 70, 15, 80, 40, 32),
]


def make_parts(make, sizes: tuple[int, ...]) -> list[Tensor]:
    """Return positions, region weights, codes, pose, then weights and biases in turn."""
    batch, points, regions, hidden, narrow, outputs = sizes
    parts = [make(points, hidden), make(points, regions).softmax(-1), make(batch, regions, hidden), make(batch, hidden)]
    for into, out in ((hidden, narrow), (narrow, hidden), (2 * hidden, outputs)):
        parts += [make(out, into) * into**-0.5, 0.3 * make(out)]
    return parts


def pair(parts: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
    return list(zip(parts[4::2], parts[5::2], strict=True))


def describe(parts: list[Tensor], bf16_products: bool = False) -> DeformationArguments:
    return DeformationArguments(*parts[:4], parts[4:], bf16_products)


def find_truth(parts: list[Tensor], gradient: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Return the result and all gradients in float64."""
    wide = [part.detach().double().requires_grad_() for part in parts]
    result = deform_reference(*wide[:4], pair(wide))
    assert result.dtype == torch.float64
    return result.detach(), list(torch.autograd.grad(result, wide, gradient.double()))


def draw_gradient(make, sizes: tuple[int, ...]) -> Tensor:
    return make(sizes[0], sizes[1], sizes[5])


def assert_agree(results: list[Tensor], truths: list[Tensor], tolerance: float) -> None:
    for result, truth in zip(results, truths, strict=True):
        assert result.shape == truth.shape and relative_error(result, truth) < tolerance


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_agrees_with_float64(cpu_library, make, sizes) -> None:
    parts, gradient = make_parts(make, sizes), draw_gradient(make, sizes)
    truth, truths = find_truth(parts, gradient)
    assert relative_error(launch_forward(cpu_library, describe(parts)), truth) < 1e-5
    assert_agree(launch_backward(cpu_library, gradient, describe(parts)), truths, 1e-4)


# Single values may be small differences of large ones.
@pytest.mark.parametrize("sizes", [sizes for sizes in SIZES if sizes[1] > 1], ids=str)
def test_products_in_bfloat16_where_they_are_allowed(cpu_library, make, sizes) -> None:
    parts, gradient = make_parts(make, sizes), draw_gradient(make, sizes)
    truth, truths = find_truth(parts, gradient)
    assert relative_error(launch_forward(cpu_library, describe(parts, True)), truth) < 1e-2
    assert_agree(launch_backward(cpu_library, gradient, describe(parts, True)), truths, 1e-2)


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_any_number_of_threads_gives_the_same_bits_twice(cpu_library, make, threads) -> None:
    parts, gradient = make_parts(make, SIZES[0]), draw_gradient(make, SIZES[0])
    _, truths = find_truth(parts, gradient)
    with use_threads(threads):
        runs = [launch_backward(cpu_library, gradient, describe(parts, True)) for _ in range(2)]
    assert_agree(runs[0], truths, 1e-2)
    assert all(torch.equal(one, other) for one, other in zip(*runs, strict=True))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e30])
@pytest.mark.parametrize("bf16_products", [False, True])
def test_a_bad_position_spoils_only_itself(cpu_library, make, bad, bf16_products) -> None:
    sizes = (3, 100, 6, 20, 10, 7)
    parts, gradient = make_parts(make, sizes), draw_gradient(make, sizes)
    whole = launch_forward(cpu_library, describe(parts, bf16_products))
    whole_gradient = launch_backward(cpu_library, gradient, describe(parts, bf16_products))[0]
    parts[0][17] = bad
    result = launch_forward(cpu_library, describe(parts, bf16_products))
    to_position = launch_backward(cpu_library, gradient, describe(parts, bf16_products))[0]
    others = torch.arange(100) != 17
    assert torch.equal(result[:, others], whole[:, others])
    assert torch.equal(to_position[others], whole_gradient[others])
    if bad != bad:
        assert result[:, 17].isnan().all()


@pytest.mark.parametrize("sizes", [(0, 5, 2, 16, 8, 3), (2, 0, 2, 16, 8, 3)], ids=str)
def test_nothing_to_do(cpu_library, make, sizes) -> None:
    parts, gradient = make_parts(make, sizes), draw_gradient(make, sizes)
    assert launch_forward(cpu_library, describe(parts)).shape == (sizes[0], sizes[1], 3)
    results = launch_backward(cpu_library, gradient, describe(parts))
    assert all(result.eq(0.0).all() for result in results)


def test_sizes_below_one_are_refused(cpu_library, make) -> None:
    parts = make_parts(make, (2, 5, 2, 16, 8, 3))
    parts[2], parts[1] = parts[2][:, :0], parts[1][:, :0]
    with pytest.raises(RuntimeError, match="size"):
        launch_forward(cpu_library, describe(parts))


@pytest.fixture
def learning(cpu, make) -> tuple[list[Tensor], Tensor]:
    """Return the trainable parts, and the gradient with respect to the result."""
    parts = [part.requires_grad_() for part in make_parts(make, SIZES[0])]
    return parts, draw_gradient(make, SIZES[0])


@pytest.mark.parametrize("device", ["cpu"])
def test_learns_in_one_operator(learning, device, monkeypatch) -> None:
    parts, gradient = learning
    truth, truths = find_truth(parts, gradient)
    monkeypatch.setattr(module, "deform_reference", None)
    result = deform(*parts[:4], pair(parts))
    assert relative_error(result, truth) < 1e-5
    assert_agree(torch.autograd.grad(result, parts, gradient), truths, 1e-4)


@pytest.mark.parametrize("device", ["cpu"])
@pytest.mark.parametrize("backend", ["auto", "pytorch"])
def test_autocast_gives_float32_and_gradients_of_their_own_types(learning, device, backend, monkeypatch) -> None:
    monkeypatch.setenv(VARIABLE, backend)
    parts, gradient = learning
    truth, truths = find_truth(parts, gradient)
    with torch.autocast("cpu", torch.bfloat16):
        # In the layout of linear layers.
        halves = [parts[0].bfloat16(), parts[1], parts[2].bfloat16(), parts[3].bfloat16(), *parts[4:]]
        result = deform(*halves[:4], pair(halves))
    assert result.dtype == torch.float32 and relative_error(result, truth) < 2e-2
    results = torch.autograd.grad(result, halves, gradient)
    assert [part.dtype for part in results] == [part.dtype for part in halves]
    assert_agree(results, truths, 3e-2)


@pytest.mark.parametrize("device", ["cpu"])
def test_backend_pytorch_and_float64_run_on_the_reference(learning, device, monkeypatch) -> None:
    parts, _ = learning
    wide = [part.detach().double() for part in parts]
    assert deform(*wide[:4], pair(wide)).dtype == torch.float64
    monkeypatch.setenv(VARIABLE, "pytorch")
    monkeypatch.setattr(module, "deformation", None)
    expected = deform_reference(*parts[:4], pair(parts))
    assert torch.equal(deform(*parts[:4], pair(parts)), expected)


@pytest.mark.parametrize("device", ["cpu"])
def test_opcheck(learning, device) -> None:
    parts, _ = learning
    torch.library.opcheck(module.deformation.overload, (*parts[:4], parts[4:], False))


@pytest.mark.parametrize("device", ["cpu"])
def test_compiles_as_one_graph_with_the_same_gradients(learning, device) -> None:
    parts, gradient = learning

    def evaluate(parts: list[Tensor]) -> Tensor:
        return deform(*parts[:4], list(zip(parts[4::2], parts[5::2], strict=True)))

    eager = torch.autograd.grad(evaluate(parts), parts, gradient)
    compiled = torch.compile(evaluate, fullgraph=True, backend="aot_eager")
    for one, other in zip(torch.autograd.grad(compiled(parts), parts, gradient), eager, strict=True):
        torch.testing.assert_close(one, other)
