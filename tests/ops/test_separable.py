"""Chains of separable convolutions: the kernel equals the reference for every kind of layer."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from s3dnerf.ops.backend import inspect_backend
from s3dnerf.ops.separable import GateLayer, SeparableChain, SeparableLayer, StemLayer, chain_reference
from s3dnerf.rendering.threads import use_threads

CHAINS = {
    "blaze": lambda: [
        SeparableLayer(24, 24, residual=1, activation="prelu"),
        SeparableLayer(24, 42, stride=2, residual=1, activation="prelu"),
        SeparableLayer(42, 48, residual=1, activation="relu"),
    ],
    "bottleneck": lambda: [
        SeparableLayer(20, 16, stride=2, symmetric=True, activation="relu"),
        SeparableLayer(16, 8, activation="relu"),
        SeparableLayer(8, 16, residual=2, activation="relu"),
    ],
    "stem": lambda: [StemLayer(3, 24, kernel=5, activation="relu"), SeparableLayer(24, 8, kernel=1)],
    "symmetric stem": lambda: [StemLayer(3, 16, activation="prelu", symmetric=True)],
    "gated": lambda: [
        SeparableLayer(32, 40, kernel=1, activation="hardswish"),
        SeparableLayer(40, None, kernel=5, middle="hardswish"),
        GateLayer(40, 10),
        SeparableLayer(40, 32, kernel=1, residual=4),
        SeparableLayer(32, None, kernel=5, stride=2, middle="relu"),
    ],
    # Input and output have whole packs of channels and are used where they lie.
    "in place": lambda: [
        SeparableLayer(16, 32, kernel=1, activation="hardswish"),
        SeparableLayer(32, 16, activation="relu"),
        SeparableLayer(16, 16, residual=3, activation="prelu"),
    ],
    "gate in place": lambda: [GateLayer(16, 4), SeparableLayer(16, 16, kernel=1, residual=2)],
    "depthwise": lambda: [SeparableLayer(16, None, middle="relu", residual=1)],
}


@pytest.fixture(autouse=True)
def kernels() -> None:
    if not inspect_backend("cpu").present:
        pytest.skip("the CPU kernels are not built")


def make_chain(name: str) -> SeparableChain:
    torch.manual_seed(0)
    chain = SeparableChain(*CHAINS[name]())
    for module in chain.modules():
        if isinstance(module, nn.PReLU):
            nn.init.uniform_(module.weight, -0.5, 0.5)
    return chain.requires_grad_(False)


@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize("threads", [1, 2])
def test_kernel_equals_the_reference(name: str, threads: int) -> None:
    chain = make_chain(name)
    first = chain[0]
    x = torch.randn(2, first.inputs, 12, 20, generator=torch.Generator().manual_seed(1))
    with use_threads(threads):
        result = chain(x)
    expected = chain_reference(chain, x)
    assert result.shape == expected.shape
    torch.testing.assert_close(result, expected, atol=2e-5, rtol=2e-5)


def test_shapes_may_change_between_calls() -> None:
    chain = make_chain("blaze")
    for size in (8, 64, 16):
        x = torch.randn(1, 24, size, size)
        torch.testing.assert_close(chain(x), chain_reference(chain, x), atol=2e-5, rtol=2e-5)


def test_loaded_weights_replace_packed_ones() -> None:
    chain, x = make_chain("blaze"), torch.randn(1, 24, 8, 8)
    chain(x)
    chain.load_state_dict({name: 2 * value for name, value in chain.state_dict().items()})
    torch.testing.assert_close(chain(x), chain_reference(chain, x), atol=2e-4, rtol=2e-4)


def test_gradients_reach_the_input() -> None:
    chain, x = make_chain("gated"), torch.randn(1, 32, 8, 8, requires_grad=True)
    chain(x).sum().backward()
    assert x.grad is not None and x.grad.abs().sum() > 0


WRONG_CHAINS = {
    "channels": lambda: [SeparableLayer(16, 16), SeparableLayer(24, 16)],
    "residual before the chain": lambda: [SeparableLayer(16, 16, residual=2)],
    "residual of another size": lambda: [SeparableLayer(16, 16, stride=2), SeparableLayer(16, 16, residual=2)],
    "residual of an image": lambda: [StemLayer(16, 16), SeparableLayer(16, 16, residual=2)],
}


@pytest.mark.parametrize("name", WRONG_CHAINS)
def test_wrong_plans_are_rejected(name: str) -> None:
    chain = SeparableChain(*WRONG_CHAINS[name]()).requires_grad_(False)
    with pytest.raises(RuntimeError, match="out of range"):
        chain(torch.randn(1, 16, 8, 8))
