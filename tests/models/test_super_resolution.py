"""Super-resolution: starts as the warped photograph, sees all its inputs, enlarges without a shift."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from s3dnerf.models.super_resolution import AGREEMENT, SuperResolution, SuperResolutionConfig, keep_detail
from s3dnerf.rendering.photograph import enlarge


@pytest.fixture
def network(one_thread: None) -> SuperResolution:
    torch.manual_seed(0)
    return SuperResolution(SuperResolutionConfig(widths=(4, 6, 8)), rendered=7, detail=5)


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


def test_enlarging_keeps_places() -> None:
    # A ramp stays the same ramp in image coordinates: pixel i of 8 at (2 i + 1) / 8 - 1.
    small, large = ((2 * torch.arange(n) + 1) / n - 1 for n in (8, 32))
    enlarged = enlarge(small.expand(1, 1, 8, 8), 4)
    torch.testing.assert_close(enlarged[0, 0, 5, 2:-2], large[2:-2])


def make_change(level: float, detail: float) -> torch.Tensor:
    """Two by two pixels of each color: a level, and a checkerboard on top of it that averages to nothing."""
    board = detail * torch.tensor([1.0, -1.0, -1.0, 1.0]).repeat(3)
    return (level + board).view(1, 12, 1, 1).expand(1, 12, 8, 8)


def test_detail_of_a_small_change_is_left_to_the_photograph() -> None:
    assert keep_detail(make_change(0.0, 0.02), 1.0).abs().max() < 1e-7
    # Half of it, if half is asked for; what is not detail stays.
    torch.testing.assert_close(keep_detail(make_change(0.0, 0.02), 0.5).abs(), torch.full((1, 3, 16, 16), 0.01))
    kept = keep_detail(make_change(0.01, 0.02), 1.0)
    agreement = math.exp(-((0.01 / AGREEMENT) ** 2))
    torch.testing.assert_close((kept - 0.01).abs(), torch.full((1, 3, 16, 16), 0.02 * (1.0 - agreement)))


def test_large_changes_keep_their_detail() -> None:
    change = make_change(0.5, 0.2)
    torch.testing.assert_close(keep_detail(change, 1.0), F.pixel_shuffle(change, 2))


def test_without_a_share_the_network_decides() -> None:
    change = torch.randn(2, 12, 6, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(keep_detail(change, 0.0), F.pixel_shuffle(change, 2))


def test_mixed_precision_keeps_detail_alike() -> None:
    change = make_change(0.01, 0.02).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        mixed = keep_detail(change, 1.0)
    assert mixed.dtype == torch.float32
    torch.testing.assert_close(mixed, keep_detail(change.float(), 1.0))
