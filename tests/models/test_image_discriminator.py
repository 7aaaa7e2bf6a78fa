"""The image discriminator: variance preserved by its layers, its receptive inputs, and training."""

from __future__ import annotations

import math

import pytest
import torch

from s3dnerf.models.image_discriminator import (
    EqualizedConvolution,
    EqualizedLinear,
    ImageDiscriminator,
    ImageDiscriminatorConfig,
    activate,
)

SMALL = ImageDiscriminatorConfig(side=16, widths=(8, 16))


def test_equalized_layers_keep_the_variance() -> None:
    torch.manual_seed(0)
    assert EqualizedLinear(256, 512)(torch.randn(64, 256)).std().item() == pytest.approx(1.0, abs=0.05)
    inside = EqualizedConvolution(32, 64, 3)(torch.randn(8, 32, 16, 16))[..., 1:-1, 1:-1]
    assert inside.std().item() == pytest.approx(1.0, abs=0.05)


def test_activation_by_hand() -> None:
    assert activate(torch.tensor([-1.0, 2.0])).tolist() == pytest.approx([-0.2 * math.sqrt(2), 2 * math.sqrt(2)])


def test_maps_halve_and_every_parameter_gets_a_gradient() -> None:
    torch.manual_seed(0)
    network = ImageDiscriminator(SMALL)
    judgement = network(torch.rand(3, 3, 16, 16))
    assert judgement.logits.shape == (3,)
    assert [feature.shape for feature in judgement.features] == [(3, 16, 8, 8), (3, 16, 4, 4)]
    judgement.logits.square().sum().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in network.parameters())


def test_equal_pictures_are_told_from_varied_ones_by_their_spread() -> None:
    torch.manual_seed(0)
    network = ImageDiscriminator(SMALL)
    one = torch.rand(1, 3, 16, 16)
    alone = network(one).logits
    torch.testing.assert_close(network(one.expand(4, -1, -1, -1)).logits, alone.expand(4))
    varied = network(torch.cat([one, torch.rand(3, 3, 16, 16)])).logits
    assert (varied[0] - alone[0]).abs() > 1e-4


def test_it_learns_to_tell_sharp_from_blurred() -> None:
    torch.manual_seed(0)
    network = ImageDiscriminator(SMALL)
    optimizer = torch.optim.Adam(network.parameters(), 2e-3, betas=(0.0, 0.99))
    for _ in range(60):
        sharp = torch.rand(16, 3, 16, 16)
        blurred = torch.nn.functional.avg_pool2d(sharp, 3, 1, 1)
        margin = network(sharp).logits - network(blurred).logits
        optimizer.zero_grad()
        torch.nn.functional.softplus(-margin).mean().backward()
        optimizer.step()
    sharp = torch.rand(64, 3, 16, 16)
    blurred = torch.nn.functional.avg_pool2d(sharp, 3, 1, 1)
    assert (network(sharp).logits > network(blurred).logits).float().mean() > 0.95
