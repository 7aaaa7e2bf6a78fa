"""Tri-plane lookup of every backend against float64, and against numbers computed by hand."""

from __future__ import annotations

import pytest
import torch

from s3dnerf.ops.triplane import (
    launch_backward,
    launch_forward,
    sample_triplane,
    sample_triplane_reference,
    sample_triplanes,
)
from s3dnerf.rendering.threads import use_threads

from .conftest import relative_error

SIZES = [
    (1, 1, 1, 1),
    (3, 2, 5, 17),
    (12, 16, 16, 333),
    (16, 9, 8, 40),
    (32, 64, 64, 100),
    (37, 1, 7, 65),
    (150, 6, 5, 20),
]
# Maximum error of a pixel's weight if the coordinate is close to a pixel center.
PIXEL_EDGE = 1e-3


def keep_off_centers(positions: torch.Tensor, *sizes: int) -> torch.Tensor:
    """Move coordinates whose pixel depends on rounding, because the slope is discontinuous between pixels."""
    for _ in range(20):
        for size in sizes:
            place = (positions.double() + 1.0) * size / 2.0 - 0.5
            near = (place - place.round()).abs() < PIXEL_EDGE
            positions = torch.where(near, positions + 6.0 * PIXEL_EDGE / size, positions)
    return positions.float()


def test_by_hand() -> None:
    # One channel, 2 x 2 pixels with centers at -1/2 and 1/2. The xy plane holds 1 2 / 3 4, the others are constant.
    planes = torch.zeros(1, 3, 1, 2, 2)
    planes[0, 0, 0] = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    planes[0, 1], planes[0, 2] = 10.0, 100.0
    positions = torch.tensor([[[-0.5, -0.5, 0.3], [0.5, -0.5, 0.0], [0.0, 0.25, 0.9], [-9.0, 9.0, -9.0]]])
    # For the third point, y = 1/4 is three quarters of the way from the upper to the lower row.
    expected = torch.tensor([1.0, 2.0, 0.25 * 1.5 + 0.75 * 3.5, 3.0]) + 110.0
    assert sample_triplane(planes, positions)[0, :, 0].tolist() == pytest.approx((expected / 3).tolist())


@pytest.mark.parametrize(("channels", "height", "width", "points"), SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_agrees_with_float64(library, make, device, channels, height, width, points, dtype) -> None:
    planes = make(2, 3, height, width, channels).to(dtype)
    positions = keep_off_centers(make.uniform(2, points, 3, low=-1.3, high=1.3), height, width)
    gradient = make(2, points, channels)
    wide_planes, wide_positions = planes.double().requires_grad_(), positions.double().requires_grad_()
    truth = sample_triplane_reference(wide_planes.permute(0, 1, 4, 2, 3), wide_positions)
    truth.backward(gradient.double())
    assert relative_error(launch_forward(library, [planes], positions), truth) < 1e-5
    to_positions, to_planes = launch_backward(library, gradient, [planes], positions, True, True)
    assert to_planes.dtype == dtype
    assert relative_error(to_planes, wide_planes.grad) < (1e-4 if dtype == torch.float32 else 1e-2)
    if wide_positions.grad.abs().max() > 0:
        assert relative_error(to_positions, wide_positions.grad) < 1e-4
    else:
        assert to_positions.abs().max() == 0


def test_several_scales_and_any_strides(library, make) -> None:
    coarse = make(2, 3, 4, 5, 7)
    # In the layout of a channels-last convolution: [B, H, W, 3, C] in memory.
    fine = make(2, 9, 8, 3, 20).permute(0, 3, 1, 2, 4)
    shared = make(1, 3, 6, 6, 3).expand(2, -1, -1, -1, -1)
    positions, gradient = make.uniform(2, 50, 3, low=-1.1, high=1.1), make(2, 50, 30)
    scales = [coarse, fine, shared]
    wide = [scale.double().requires_grad_() for scale in scales]
    truth = torch.cat(
        [sample_triplane_reference(scale.permute(0, 1, 4, 2, 3), positions.double()) for scale in wide], -1
    )
    truth.backward(gradient.double())
    assert relative_error(launch_forward(library, scales, positions), truth) < 1e-5
    _, *to_scales = launch_backward(library, gradient, scales, positions, False, True)
    for to_scale, scale in zip(to_scales, wide, strict=True):
        assert relative_error(to_scale, scale.grad) < 1e-4


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e30])
def test_bad_positions_never_leave_the_planes(library, make, device, bad) -> None:
    planes, positions = make(1, 3, 8, 8, 5), make.uniform(1, 40, 3, low=-1.0)
    whole = launch_forward(library, [planes], positions)
    positions[0, 7, 1] = bad
    result = launch_forward(library, [planes], positions)
    others = torch.arange(40, device=device) != 7
    assert torch.equal(result[0, others], whole[0, others])
    assert result[0, 7].isnan().all() if bad != bad else result[0, 7].isfinite().all()
    gradients = launch_backward(library, torch.ones_like(result), [planes], positions, True, True)
    assert gradients[0][0, others].isfinite().all()


def test_public_function_gives_gradients_to_planes_and_positions(cpu) -> None:
    torch.manual_seed(0)
    planes = torch.randn(2, 3, 6, 8, 8, requires_grad=True)
    positions = keep_off_centers(torch.rand(2, 90, 3) * 2 - 1, 8).requires_grad_()
    loss = sample_triplane(planes, positions).square().sum()
    result = torch.autograd.grad(loss, [planes, positions])
    wide = [part.detach().double().requires_grad_() for part in (planes, positions)]
    truth = torch.autograd.grad(sample_triplane_reference(*wide).square().sum(), wide)
    assert all(relative_error(one, other) < 1e-4 for one, other in zip(result, truth, strict=True))


def test_under_autocast_planes_may_be_bfloat16(cpu) -> None:
    torch.manual_seed(0)
    convolution = torch.nn.Conv2d(4, 3 * 6, 1)
    image, positions = torch.randn(2, 4, 8, 8), torch.rand(2, 30, 3)
    with torch.autocast("cpu", torch.bfloat16):
        planes = convolution(image).unflatten(1, (3, 6))
        result = sample_triplanes([planes, planes], positions)
    assert (planes.dtype, result.dtype) == (torch.bfloat16, torch.float32)
    truth = sample_triplane_reference(planes.double(), positions.double())
    assert relative_error(result[..., 6:], truth) < 1e-5
    result.sum().backward()
    assert convolution.weight.grad.isfinite().all()


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_same_twice_for_a_fixed_number_of_threads(cpu, threads: int) -> None:
    torch.manual_seed(0)
    planes, positions = torch.randn(1, 3, 16, 16, 33), torch.rand(1, 5000, 3)
    gradient = torch.randn(1, 5000, 33)
    with use_threads(threads):
        runs = [launch_backward(cpu, gradient, [planes], positions, True, True) for _ in range(2)]
    assert all(torch.equal(one, other) for one, other in zip(*runs, strict=True))


@pytest.mark.parametrize(("batch", "points", "threads"), [(1, 5000, 1), (1, 5003, 2), (2, 1500, 3), (3, 1100, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sorted_points_read_what_points_read_one_by_one(library, make, device, batch, points, threads, dtype) -> None:
    # Large planes with many scattered points are processed in a sorted order; few points and odd channels are not.
    planes = make(batch, 3, 48, 64, 32).to(dtype)
    positions = make.uniform(batch, points, 3, low=-1.2, high=1.2)
    positions[0, 3, 1] = float("nan")
    with use_threads(threads):
        whole = launch_forward(library, [planes], positions)
        parts = [launch_forward(library, [planes], part) for part in positions.split(500, dim=1)]
        odd = launch_forward(library, [planes[..., :31]], positions)
    assert torch.equal(whole.nan_to_num(9e9), torch.cat(parts, dim=1).nan_to_num(9e9))
    torch.testing.assert_close(odd, whole[..., :31], equal_nan=True, rtol=1e-5, atol=1e-5)


def test_points_in_a_good_order_are_read_in_it(library, make, device) -> None:
    planes = make(1, 3, 64, 64, 16)
    along = torch.linspace(-1.0, 1.0, 4000, device=device)
    positions = torch.stack([along, -along, 0.5 * along], dim=-1)[None]
    truth = sample_triplane_reference(planes.permute(0, 1, 4, 2, 3).double(), positions.double())
    assert relative_error(launch_forward(library, [planes], positions), truth) < 1e-5
