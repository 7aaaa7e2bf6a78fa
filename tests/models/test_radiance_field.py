"""Radiance field: ranges of what it returns, and dependence on all that it is given."""

from __future__ import annotations

import pytest
import torch

from s3dnerf.models.radiance_field import RadianceField, RadianceFieldConfig

CHANNELS = {"appearance": 12, "ambient": 4, "positions": 3, "offsets": 3}


@pytest.fixture
def field() -> RadianceField:
    torch.manual_seed(0)
    return RadianceField(RadianceFieldConfig(hidden=16, features=5), plane_features=12, ambient=4)


def draw_inputs() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {name: torch.randn(2, 7, count, generator=generator) for name, count in CHANNELS.items()}


def test_density_is_not_negative_and_color_within_one(field: RadianceField) -> None:
    radiance = field(**{name: 20 * value for name, value in draw_inputs().items()})
    assert radiance.density.shape == (2, 7) and (radiance.density >= 0).all()
    assert radiance.color.shape == (2, 7, 3) and ((radiance.color >= 0) & (radiance.color <= 1)).all()
    assert radiance.features.shape == (2, 7, 5)


@pytest.mark.parametrize("name", CHANNELS)
def test_every_input_matters(field: RadianceField, name: str) -> None:
    inputs = draw_inputs()
    before = field(**inputs)
    after = field(**{**inputs, name: inputs[name] + 0.1})
    for part in ("density", "color", "features"):
        assert (getattr(before, part) - getattr(after, part)).abs().max() > 1e-5


def test_samples_do_not_mix(field: RadianceField) -> None:
    inputs = draw_inputs()
    one = field(**{name: value[1:, 3:4] for name, value in inputs.items()})
    torch.testing.assert_close(one.color, field(**inputs).color[1:, 3:4])
