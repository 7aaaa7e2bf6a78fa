"""Building blocks: preserved sizes, zero initialization, positional encoding computed by hand."""

from __future__ import annotations

import math

import pytest
import torch

from s3dnerf.models.layers import ResidualBlock, encode_sine, make_convolution, make_mlp, zero_initialize


@pytest.mark.parametrize(("kernel", "stride", "side"), [(3, 1, 12), (1, 1, 12), (3, 2, 6), (5, 2, 6)])
def test_convolutions_keep_or_halve_the_size(kernel: int, stride: int, side: int) -> None:
    layer = make_convolution(3, 5, stride=stride, kernel=kernel)
    assert layer(torch.rand(2, 3, 12, 12)).shape == (2, 5, side, side)


def test_residual_block_starts_as_the_identity() -> None:
    x = torch.randn(2, 4, 6, 6)
    assert torch.equal(ResidualBlock(4)(x), x)


def test_zero_initialized_layer_adds_nothing() -> None:
    assert not zero_initialize(torch.nn.Linear(4, 3))(torch.randn(5, 4)).any()


def test_mlp_has_no_activation_at_its_end() -> None:
    assert [type(layer).__name__ for layer in make_mlp(2, 3, 4)] == ["Linear", "SiLU", "Linear"]
    assert make_mlp(2, 3, 4)(torch.rand(7, 2)).shape == (7, 4)


def test_sine_encoding_by_hand() -> None:
    root = math.sqrt(0.5)
    encoded = encode_sine(torch.tensor([[0.25, -0.5]]), 2)
    expected = [0.25, -0.5, root, -1.0, root, 0.0, 1.0, 0.0, 0.0, -1.0]
    torch.testing.assert_close(encoded, torch.tensor([expected]), atol=1e-6, rtol=0)
