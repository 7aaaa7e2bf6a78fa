"""Images of rendered rays from every set of CPU kernels against the reference in float64."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from s3dnerf.ops import compose_layers as module
from s3dnerf.ops.backend import VARIABLE
from s3dnerf.ops.compose_layers import has_kernel, launch_forward
from s3dnerf.rendering import layers
from s3dnerf.rendering.foveation import FoveatedRays
from s3dnerf.rendering.layers import compose_rays, compose_rays_reference
from s3dnerf.rendering.person_layer import LayerMotion
from s3dnerf.rendering.volume_rendering import RayOutputs
from s3dnerf.structures import Camera, map_tensors

from .conftest import relative_error

# Batch, rays per side, features, foveated rays.
SIZES = [(1, 1, 0, 0), (2, 5, 2, 7), (3, 16, 5, 30), (1, 20, 1, 9)]


@dataclass(frozen=True)
class Scene:
    """Random arguments of :func:`compose_rays_reference`."""

    rays: RayOutputs
    foveated: FoveatedRays
    image: Tensor
    person: Tensor
    motion: LayerMotion

    def launch(self, library) -> tuple[Tensor, Tensor]:
        rays = self.rays.values, self.rays.alpha
        cells = self.foveated.cells, self.foveated.opacity
        return launch_forward(library, *rays, *cells, self.image, self.person, *vars(self.motion).values())

    def compute_truth(self) -> tuple[Tensor, Tensor]:
        exact = map_tensors(self, lambda part: part.double() if part.is_floating_point() else part)
        return compose_rays_reference(exact.rays, exact.foveated, exact.image, exact.person, exact.motion)


def draw(make, size) -> Scene:
    batch, side, features, foveated = size
    count = side * side + foveated
    cells = torch.randint(4 * side * side, (batch, foveated), generator=torch.Generator().manual_seed(3))
    return Scene(
        RayOutputs(make(batch, count, 5 + features), make(batch, count).sigmoid()),
        FoveatedRays(cells, make(batch, foveated).sigmoid(), 2 * side),
        make(batch, 3, 2 * side, 2 * side),
        make(batch, 1, 2 * side, 2 * side).sigmoid(),
        LayerMotion(0.2 * make(batch, 3, 3), 0.2 * make(batch, 2)),
    )


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_agrees_with_float64(cpu_library, make, size) -> None:
    scene = draw(make, size)
    for result, truth in zip(scene.launch(cpu_library), scene.compute_truth(), strict=True):
        assert result.shape == truth.shape
        assert relative_error(result, truth) < 1e-5


def test_a_batch_may_share_one_source(cpu_library, make) -> None:
    scene = draw(make, SIZES[2])
    shared = replace(scene, image=scene.image[:1], person=scene.person[:1])
    copied = replace(scene, image=shared.image.expand_as(scene.image), person=shared.person.expand_as(scene.person))
    for one, other in zip(shared.launch(cpu_library), copied.launch(cpu_library), strict=True):
        assert torch.equal(one, other)


def test_rays_in_one_cell_all_blend_over_what_was_there(cpu_library, make) -> None:
    scene = draw(make, SIZES[1])
    scene.foveated.cells.fill_(17)
    for result, truth in zip(scene.launch(cpu_library), scene.compute_truth(), strict=True):
        assert relative_error(result, truth) < 1e-5


def test_cells_outside_of_the_image_are_refused(cpu, make) -> None:
    scene = draw(make, SIZES[1])
    for cell in (-1, 100):
        scene.foveated.cells[1, 6] = cell
        with pytest.raises(RuntimeError, match="size"):
            scene.launch(cpu)


def make_cameras(batch: int) -> Camera:
    return Camera(torch.eye(3).expand(batch, -1, -1), torch.ones(batch), torch.zeros(batch, 2))


def test_rendering_runs_the_kernel_and_training_the_reference(cpu, make, monkeypatch) -> None:
    scene = draw(make, SIZES[2])
    moved = replace(make_cameras(3), center=torch.full((3, 2), 0.1))
    source = scene.image[:1].expand_as(scene.image), scene.person
    expected = compose_rays(scene.rays, scene.foveated, *source, moved, make_cameras(3))
    learned = replace(scene.rays, values=scene.rays.values.clone().requires_grad_())
    monkeypatch.setattr(layers, "compose_layers", None)
    results = compose_rays(learned, scene.foveated, *source, moved, make_cameras(3))
    for one, other in zip(expected, results, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    assert torch.autograd.grad(results.fine.sum(), learned.values)[0].abs().sum() > 0.0
    assert not has_kernel(scene.rays.values.double())
    monkeypatch.setenv(VARIABLE, "pytorch")
    assert not has_kernel(scene.rays.values)


def test_opcheck(cpu, make) -> None:
    scene = draw(make, SIZES[1])
    cells = scene.foveated.cells, scene.foveated.opacity
    arguments = (scene.rays.values, scene.rays.alpha, *cells, scene.image, scene.person, *vars(scene.motion).values())
    torch.library.opcheck(module.compose_layers.overload, arguments)
