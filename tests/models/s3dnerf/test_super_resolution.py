"""Super-resolution: initially the warped source, uses all its inputs, upsamples without a shift."""

from __future__ import annotations

import pytest
import torch

from s3dnerf.models.layers import ResidualBlock
from s3dnerf.models.s3dnerf.super_resolution import SuperResolution, SuperResolutionConfig
from s3dnerf.ops.image import upsample

BLOCKS = [(1, 1, 2), (0, 1, 1), (2, 2, 1)]


def make_network(*blocks: int) -> SuperResolution:
    torch.manual_seed(0)
    return SuperResolution(SuperResolutionConfig((4, 6, 8), blocks), rendered=7, detail=5)


@pytest.fixture(params=BLOCKS, ids=str)
def network(one_thread: None, request: pytest.FixtureRequest) -> SuperResolution:
    return make_network(*request.param)


def draw_inputs() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    shapes = {"rendered": (2, 7, 8, 8), "inputs": (2, 12 + 5 + 7, 16, 16), "warped": (2, 3, 32, 32)}
    return {name: torch.rand(shape, generator=generator) for name, shape in shapes.items()}


def test_starts_as_the_warped_photograph(network: SuperResolution) -> None:
    inputs = draw_inputs()
    assert torch.equal(network(**inputs), inputs["warped"])


@pytest.mark.parametrize("name", ["rendered", "inputs"])
def test_residual_depends_on_every_input(network: SuperResolution, name: str) -> None:
    torch.nn.init.normal_(network.leave.weight, std=0.1)
    inputs = draw_inputs()
    changed = {**inputs, name: inputs[name] + 0.2}
    residual, other = (network(**given) - given["warped"] for given in (inputs, changed))
    assert residual.shape == (2, 3, 32, 32)
    assert (residual - other).abs().max() > 1e-4


@pytest.mark.parametrize("blocks", BLOCKS, ids=str)
def test_setting_gives_the_number_of_residual_blocks(blocks: tuple[int, int, int]) -> None:
    network = make_network(*blocks)
    levels = (network.fine_in, network.fine_out, network.middle_in, network.middle_out, network.coarse)
    counts = [sum(isinstance(part, ResidualBlock) for part in level.modules()) for level in levels]
    fine, middle, coarse = blocks
    assert counts == [fine, fine, middle, middle, coarse]


def test_finest_level_without_blocks_is_not_linear(one_thread: None) -> None:
    network = make_network(0, 1, 1)
    torch.nn.init.normal_(network.leave.weight, std=0.1)
    torch.nn.init.zeros_(network.up_fine.weight)  # leaves the path at the finest level
    inputs = draw_inputs()
    none, half, full = (
        network(**{**inputs, "inputs": factor * inputs["inputs"]}) - inputs["warped"] for factor in (0.0, 0.5, 1.0)
    )
    assert (none + full - 2.0 * half).abs().max() > 1e-4


def test_enlarging_keeps_places() -> None:
    # A ramp stays the same ramp in image coordinates: pixel i of 8 at (2 i + 1) / 8 - 1.
    small, large = ((2 * torch.arange(n) + 1) / n - 1 for n in (8, 32))
    enlarged = upsample(small.expand(1, 1, 8, 8), 4)
    torch.testing.assert_close(enlarged[0, 0, 5, 2:-2], large[2:-2])
