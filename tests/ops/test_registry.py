"""The operators in PyTorch: binary interface, registration, fake kernels, torch.compile, autocast."""

from __future__ import annotations

import pytest
import torch

from s3dnerf.encoding.hash_grid import HashGrid, HashGridConfig
from s3dnerf.ops import composite as composite_module
from s3dnerf.ops import hash_grid as hash_grid_module
from s3dnerf.ops import triplane as triplane_module
from s3dnerf.ops.composite import composite
from s3dnerf.ops.registry import OPERATORS, abi_hash, describe_structure, list_structures
from s3dnerf.ops.triplane import sample_triplanes

pytestmark = pytest.mark.usefixtures("cpu")


@pytest.mark.parametrize("index", range(len(OPERATORS)), ids=list(OPERATORS))
def test_structures_mirror_the_header(build, index: int) -> None:
    structure = list_structures()[index]
    assert describe_structure(structure) == build.describe_structures()[structure.__name__]


def test_libraries_carry_the_hash_of_the_interface(build, cpu, emulated) -> None:
    assert build.abi_hash() == abi_hash()
    for library in (cpu, emulated):
        assert library.handle.s3d_abi_hash().decode() == abi_hash()


def test_opcheck_hash_grid() -> None:
    grid = HashGrid(HashGridConfig(levels=3, log2_hashmap_size=6))
    lists = [[getattr(level, name) for level in grid.levels] for name in ("scale", "resolution", "entries")]
    torch.library.opcheck(
        hash_grid_module.hash_grid.overload, (torch.rand(9, 3, requires_grad=True), grid.table, *lists)
    )


def test_opcheck_triplane() -> None:
    planes = [torch.randn(2, 3, 4, 4, channels, requires_grad=True) for channels in (3, 16)]
    torch.library.opcheck(triplane_module.triplane.overload, (planes, torch.rand(2, 9, 3, requires_grad=True)))


def test_opcheck_composite() -> None:
    parts = (torch.rand(12), torch.randn(12, 3), torch.rand(12))
    parts = tuple(part.requires_grad_() for part in parts)
    torch.library.opcheck(composite_module.composite_op.overload, (*parts, 2, 0.0))


def look(grid: HashGrid, planes: list[torch.Tensor], positions: torch.Tensor) -> torch.Tensor:
    """Return a small renderer built from all operators that have gradients."""
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
