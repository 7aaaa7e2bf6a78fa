"""Detail is kept where the source is right, on cases computed by hand."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from s3dnerf.ops.add_residual import DETAIL_THRESHOLD, add_residual_to_source


def make_change(level: float, detail: float) -> Tensor:
    """Return 2 x 2 pixels per color: a level plus a zero-mean checkerboard."""
    board = detail * torch.tensor([1.0, -1.0, -1.0, 1.0]).repeat(3)
    return (level + board).view(1, 12, 1, 1).expand(1, 12, 8, 8)


def keep_detail(change: Tensor, share: float) -> Tensor:
    """Return the residual that is added to a black source."""
    height, width = change.shape[2:]
    return add_residual_to_source(torch.zeros(len(change), 3, 2 * height, 2 * width), change, share)


def test_detail_of_a_small_change_is_left_to_the_photograph() -> None:
    assert keep_detail(make_change(0.0, 0.02), 1.0).abs().max() < 1e-7
    # A detail scale of one half keeps half of the detail; the rest is unaffected.
    torch.testing.assert_close(keep_detail(make_change(0.0, 0.02), 0.5).abs(), torch.full((1, 3, 16, 16), 0.01))
    kept = keep_detail(make_change(0.01, 0.02), 1.0)
    agreement = math.exp(-((0.01 / DETAIL_THRESHOLD) ** 2))
    torch.testing.assert_close((kept - 0.01).abs(), torch.full((1, 3, 16, 16), 0.02 * (1.0 - agreement)))


def test_large_changes_keep_their_detail() -> None:
    change = make_change(0.5, 0.2)
    torch.testing.assert_close(keep_detail(change, 1.0), F.pixel_shuffle(change, 2))


def test_without_a_share_the_network_decides() -> None:
    change = torch.randn(2, 12, 6, 8, generator=torch.Generator().manual_seed(0))
    warped = torch.rand(2, 3, 12, 16, generator=torch.Generator().manual_seed(1))
    assert torch.equal(add_residual_to_source(warped, change, 0.0), warped + F.pixel_shuffle(change, 2))


def test_mixed_precision_keeps_detail_alike() -> None:
    change = make_change(0.01, 0.02).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        mixed = keep_detail(change, 1.0)
    assert mixed.dtype == torch.float32
    torch.testing.assert_close(mixed, keep_detail(change.float(), 1.0))


def test_gradients_reach_photograph_and_change() -> None:
    generator = torch.Generator().manual_seed(0)
    warped = torch.rand(1, 3, 4, 8, generator=generator, dtype=torch.float64, requires_grad=True)
    change = (0.05 * torch.randn(1, 12, 2, 4, generator=generator, dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(lambda *parts: add_residual_to_source(*parts, 0.7), (warped, change))
