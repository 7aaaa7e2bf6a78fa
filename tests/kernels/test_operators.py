"""The operators inside PyTorch: registration, fake twins, torch.compile, autocast."""

from __future__ import annotations

import ctypes

import pytest
import torch

from s3dnerf.encoding import operators as encoding
from s3dnerf.encoding.hash_grid import HashGrid, HashGridConfig
from s3dnerf.encoding.triplane import sample_triplanes
from s3dnerf.models.convolution import ConvolutionStructure
from s3dnerf.rendering import operators as rendering
from s3dnerf.rendering.compositing import composite
from s3dnerf.rendering.detail import DetailStructure
from s3dnerf.rendering.enlarging import EnlargingStructure
from s3dnerf.rendering.photograph import PhotographStructure
from s3dnerf.rendering.warp import WarpStructure

STRUCTURES = (
    encoding.HashGridStructure,
    encoding.TriplaneStructure,
    rendering.CompositeStructure,
    rendering.FieldStructure,
    WarpStructure,
    PhotographStructure,
    ConvolutionStructure,
    DetailStructure,
    EnlargingStructure,
)

pytestmark = pytest.mark.usefixtures("cpu")


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("which", range(len(STRUCTURES)))
def test_structures_are_as_large_as_in_c(cpu, emulated, which: int) -> None:
    for library in (cpu, emulated):
        assert library.handle.s3d_structure_size(which) == ctypes.sizeof(STRUCTURES[which])


def test_opcheck_hash_grid() -> None:
    grid = HashGrid(HashGridConfig(levels=3, log2_hashmap_size=6))
    lists = [[getattr(level, name) for level in grid.levels] for name in ("scale", "resolution", "entries")]
    torch.library.opcheck(encoding.hash_grid, (torch.rand(9, 3, requires_grad=True), grid.table, *lists))


def test_opcheck_triplane() -> None:
    planes = [torch.randn(2, 3, 4, 4, channels, requires_grad=True) for channels in (3, 16)]
    torch.library.opcheck(encoding.triplane, (planes, torch.rand(2, 9, 3, requires_grad=True)))


@pytest.mark.parametrize("packed", [False, True])
def test_opcheck_composite(packed: bool) -> None:
    offsets = torch.tensor([0, 4, 12]) if packed else None
    parts = (torch.rand(12), torch.randn(12, 3), torch.rand(12))
    parts = tuple(part.requires_grad_() for part in parts)
    torch.library.opcheck(rendering.composite, (*parts, offsets, 2, 0.0))


def look(grid: HashGrid, planes: list[torch.Tensor], positions: torch.Tensor) -> torch.Tensor:
    """A small renderer out of all operators that have gradients."""
    features = torch.cat([grid(0.5 + 0.5 * positions), sample_triplanes(planes, positions)], dim=-1)
    values = features.sin().unflatten(1, (-1, 5))
    seen = composite(values[..., 0].square(), values, torch.full_like(values[..., 0], 0.1))
    return seen.values.square().sum() + seen.alpha.sum()


def test_compiles_as_one_graph_with_the_same_gradients() -> None:
    grid = HashGrid(HashGridConfig(levels=3, log2_hashmap_size=6))
    planes = [torch.randn(2, 3, channels, 4, 4, requires_grad=True) for channels in (3, 16)]
    positions = (torch.rand(2, 20, 3) * 2 - 1).requires_grad_()
    wanted = [grid.table, *planes, positions]
    eager = torch.autograd.grad(look(grid, planes, positions), wanted)
    compiled = torch.compile(look, fullgraph=True, backend="aot_eager")
    result = torch.autograd.grad(compiled(grid, planes, positions), wanted)
    for one, other in zip(result, eager, strict=True):
        torch.testing.assert_close(one, other)


def test_autocast_changes_nothing() -> None:
    grid = HashGrid(HashGridConfig(levels=3, log2_hashmap_size=6))
    planes = [torch.randn(2, 3, 3, 4, 4)]
    positions = torch.rand(2, 20, 3)
    plain = look(grid, planes, positions)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(look(grid, planes, positions), plain)
