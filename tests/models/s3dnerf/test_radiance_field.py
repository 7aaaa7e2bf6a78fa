"""Radiance field: its layers are those of its network, and densities and colors are within their ranges."""

from __future__ import annotations

import copy

import pytest
import torch

from s3dnerf.models.s3dnerf.radiance_field import RadianceField, RadianceFieldConfig
from s3dnerf.rendering.volume_rendering import DeformedField, RayOutputs, render_rays_reference
from s3dnerf.structures import Camera


@pytest.fixture
def network() -> RadianceField:
    torch.manual_seed(0)
    return RadianceField(RadianceFieldConfig(hidden=16, features=5), plane_features=12, ambient=4)


def see(network: RadianceField, lattice: torch.Tensor, planes: torch.Tensor, scale: float = 1.0) -> RayOutputs:
    """Render single samples, so that every value is the value of the sample times its opacity."""
    camera = Camera(torch.eye(3)[None], torch.tensor([0.8]), torch.zeros(1, 2))
    shape = ((2, 2, 2), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (1.0, 1.0, 1.0))
    network = copy.deepcopy(network)
    for weight, _ in network.layers:
        weight.data.mul_(scale)
    field = DeformedField(lattice, *shape, [planes], camera, network)
    positions = torch.rand(1, 9, 1, 3, generator=torch.Generator().manual_seed(1)) - 0.5
    with torch.no_grad():
        return render_rays_reference(field, positions, torch.full((1, 9, 1), 0.5))


def draw() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return 0.1 * torch.randn(1, 8, 7, generator=generator), torch.randn(1, 3, 12, 4, 4, generator=generator)


def test_layers_are_those_of_the_network(network: RadianceField) -> None:
    x = torch.randn(3, 12 + 4 + 3 + 21)
    result = x
    for weight, bias in network.layers[:-1]:
        result = torch.nn.functional.silu(result @ weight.T + bias)
    weight, bias = network.layers[-1]
    torch.testing.assert_close(result @ weight.T + bias, network.network(x))
    assert weight.shape == (1 + 3 + 5, 16)


def test_density_is_not_negative_and_color_within_one(network: RadianceField) -> None:
    seen = see(network, *draw(), scale=20.0)
    color = seen.values[..., :3] / seen.alpha[..., None].clamp(min=1e-6)
    assert (seen.alpha >= 0).all() and (seen.alpha <= 1).all() and seen.alpha.max() > 0.5
    assert ((color > -1e-6) & (color < 1 + 1e-5)).all()
    assert seen.values.shape == (1, 9, 3 + 5 + 2)


@pytest.mark.parametrize("part", ["offsets", "ambient", "planes"])
def test_every_input_matters(network: RadianceField, part: str) -> None:
    lattice, planes = draw()
    before = see(network, lattice, planes)
    if part == "planes":
        planes = planes + 0.1
    else:
        lattice[..., slice(0, 3) if part == "offsets" else slice(3, 7)] += 0.1
    after = see(network, lattice, planes)
    assert (before.values - after.values)[..., :8].abs().max() > 1e-5
    assert (before.alpha - after.alpha).abs().max() > 1e-5
