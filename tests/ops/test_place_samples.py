"""Samples along rays from every set of CPU kernels against the reference in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from s3dnerf.ops import place_samples as module
from s3dnerf.ops.backend import VARIABLE
from s3dnerf.ops.place_samples import has_kernel, launch_forward
from s3dnerf.rendering.rays import cast_rays
from s3dnerf.rendering.sampling import HEAD, place_samples, sample_rays
from s3dnerf.structures import Camera

from .conftest import relative_error

ELLIPSOID = [*HEAD.center, *HEAD.radii, HEAD.inner_margin, HEAD.outer_margin]
# Batch, rays, samples per ray.
SIZES = [(1, 1, 1), (2, 37, 8), (3, 530, 5)]


def draw(make, size) -> tuple[Tensor, Camera]:
    batch, rays, _ = size
    turn = torch.linalg.qr(make(batch, 3, 3)).Q
    camera = Camera(turn, make.uniform(batch, low=0.5, high=1.0), 0.1 * make(batch, 2))
    return make.uniform(batch, rays, 2, low=-1.0), camera


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_agrees_with_float64(cpu_library, make, size) -> None:
    points, camera = draw(make, size)
    exact = Camera(*(part.double() for part in (camera.rotation, camera.scale, camera.center)))
    truth = place_samples(cast_rays(points.double(), exact), size[2])
    parts = camera.rotation, camera.scale, camera.center
    positions, deltas = launch_forward(cpu_library, points, parts, size[2], ELLIPSOID)
    # The square root amplifies rounding errors at the silhouette.
    assert relative_error(positions, truth.positions) < 1e-3 and relative_error(deltas, truth.deltas) < 1e-3
    difference = (positions - truth.positions).abs().flatten()
    assert difference.quantile(0.9) < 1e-5


def test_stratified_samples_gradients_and_other_types_run_on_the_reference(cpu, make, monkeypatch) -> None:
    points, camera = draw(make, SIZES[1])
    expected = sample_rays(points, camera, 8)
    assert has_kernel(points, camera.scale) and not has_kernel(points.double())
    assert not has_kernel(points, camera.scale.clone().requires_grad_())
    monkeypatch.setattr(module, "place_samples", None)
    stratified = sample_rays(points, camera, 8, torch.Generator().manual_seed(0))
    assert 0.0 < (stratified.positions - expected.positions).abs().max() < 0.2
    monkeypatch.setenv(VARIABLE, "pytorch")
    torch.testing.assert_close(sample_rays(points, camera, 8).positions, expected.positions, atol=1e-3, rtol=0)


def test_opcheck(cpu, make) -> None:
    points, camera = draw(make, SIZES[1])
    parts = [camera.rotation, camera.scale, camera.center]
    torch.library.opcheck(module.place_samples.overload, (points, parts, 8, ELLIPSOID))
