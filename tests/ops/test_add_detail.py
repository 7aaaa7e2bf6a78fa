"""Enlarged frames with detail from every set of CPU kernels against PyTorch's interpolation in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from s3dnerf.ops import add_detail as module
from s3dnerf.ops.add_detail import DETAIL_SCALE, has_kernel, launch_forward, pack_detail
from s3dnerf.ops.backend import VARIABLE
from s3dnerf.ops.image import warp_image
from s3dnerf.rendering.threads import use_threads

# Batch, channels, pixels per side of the frame, of the flow, and of the enlarged frame.
SIZES = [(1, 3, 1, 1, 2), (2, 3, 12, 6, 29), (1, 4, 16, 8, 64), (2, 3, 32, 16, 150)]


def draw(make, size) -> tuple[Tensor, ...]:
    """Return the arguments; the flow is a channel of a larger image and leads beyond the border, as in rendering."""
    batch, channels, side, flow_side, large = size
    image = make.uniform(batch, channels, side, side, low=-0.1, high=1.1)
    shares = (2.0 * make(batch, 2, side, side)).sigmoid()
    shares[:, 0, : side // 2] = 0.0
    shares[:, 1, side // 2 :] = 0.0
    flow = 0.3 * make(batch, 5, flow_side, flow_side)[:, -2:]
    return image, shares, flow, *(pack_detail(0.3 * make(1, 3, large, large)) for _ in range(2))


def find_truth(image: Tensor, shares: Tensor, flow: Tensor, moving: Tensor, still: Tensor) -> Tensor:
    """Return the frames in float64 before rounding, ``[B, N, N, C]`` in levels of 8 bits."""
    side = len(moving)
    image, shares, flow = image.double(), shares.double(), flow.double()
    moving, still = (part[..., :3].permute(2, 0, 1)[None].double() / DETAIL_SCALE for part in (moving, still))
    shares, flow = (F.interpolate(part, size=(side, side), mode="bilinear") for part in (shares, flow))
    moved = warp_image(moving.expand(len(flow), -1, -1, -1), flow)
    large = F.interpolate(image, size=(side, side), mode="bicubic")
    large[:, :3] += shares[:, :1] * moved + shares[:, 1:] * still
    return 255.0 * large.clamp(0.0, 1.0).permute(0, 2, 3, 1)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_agrees_with_float64(cpu_library, make, size) -> None:
    parts = draw(make, size)
    frames = launch_forward(cpu_library, *parts)
    assert frames.dtype == torch.uint8
    truth = find_truth(*parts)
    assert frames.shape == truth.shape
    assert (frames - truth).abs().max() < 0.5 + 2e-3


def test_detail_is_stored_to_a_hundredth_of_a_level(make) -> None:
    detail = make.uniform(1, 3, 20, 20, low=-1.99, high=1.99)
    packed = pack_detail(detail)
    assert packed.dtype == torch.int16 and packed[..., 3].eq(0).all()
    assert (packed[..., :3].permute(2, 0, 1)[None] / DETAIL_SCALE - detail).abs().max() < 0.01 / 255
    assert pack_detail(torch.tensor([[[[5.0]], [[-5.0]], [[0.0]]]])).flatten().tolist() == [32767, -32768, 0, 0]


def test_bad_flow_and_colors_stay_where_they_are(cpu_library, make) -> None:
    parts = draw(make, SIZES[2])
    expected = launch_forward(cpu_library, *parts).int()
    image, _, flow, *_ = parts
    for part in (image, flow):
        kept = part[0, 0, 5, 5].clone()
        for bad in (float("nan"), float("inf"), -float("inf")):
            part[0, 0, 5, 5] = bad
            changed = (launch_forward(cpu_library, *parts).int() != expected).any(dim=3).nonzero()
            center, reach = 64 // part.shape[-1] * 5.5, 64 // part.shape[-1] * 2.5
            assert ((changed[:, 1:] + 0.5 - center).abs() < reach).all()
        part[0, 0, 5, 5] = kept


def test_a_batch_of_nothing_is_nothing(cpu_library, make) -> None:
    image, shares, flow, *detail = draw(make, SIZES[1])
    assert launch_forward(cpu_library, image[:0], shares[:0], flow[:0], *detail).shape == (0, 29, 29, 3)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_any_number_of_threads_gives_the_same_bytes(cpu, make, threads) -> None:
    parts = draw(make, SIZES[3])
    expected = launch_forward(cpu, *parts)
    with use_threads(threads):
        result = launch_forward(cpu, *parts)
    assert torch.equal(result, expected)


def test_gradients_other_types_and_backend_pytorch_have_no_kernel(cpu, make, monkeypatch) -> None:
    parts = draw(make, SIZES[1])[:3]
    assert has_kernel(*parts)
    assert not has_kernel(parts[0].clone().requires_grad_(), *parts[1:])
    assert not has_kernel(parts[0].bfloat16(), *parts[1:])
    monkeypatch.setenv(VARIABLE, "pytorch")
    assert not has_kernel(*parts)


def test_opcheck(cpu, make) -> None:
    torch.library.opcheck(module.add_detail.overload, draw(make, SIZES[1]))
