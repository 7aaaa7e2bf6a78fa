"""Samples along rays: intersections with the ellipsoid, and the division of the shell around it."""

from __future__ import annotations

import math

import pytest
import torch

from s3dnerf.ops.image import make_pixel_grid
from s3dnerf.rendering.rays import Rays, cast_rays
from s3dnerf.rendering.sampling import Samples, SurfacePrior, find_surface, place_samples
from s3dnerf.structures import Camera

PRIOR = SurfacePrior(center=(0.0, -0.2, -0.35), radii=(0.7, 1.1, 0.9), inner_margin=0.2, outer_margin=0.5)


def shoot(origin: list[float], direction: list[float]) -> Rays:
    return Rays(torch.tensor([[origin]]), torch.tensor([[direction]]))


@pytest.mark.parametrize(
    ("origin", "direction", "distance", "margin"),
    [
        # Head-on through the center: the near surface is at z = -0.35 + 0.9.
        ([0.0, -0.2, 0.0], [0.0, 0.0, -1.0], -0.55, 0.2),
        ([0.0, -0.2, 5.0], [0.0, 0.0, -1.0], 4.45, 0.2),
        # From the side: the near surface is at x = -0.7.
        ([0.0, -0.2, -0.35], [1.0, 0.0, 0.0], -0.7, 0.2),
        # Halfway out: the surface is at cos(30 degrees) of the half depth, which also interpolates the margin.
        ([0.35, -0.2, 0.0], [0.0, 0.0, -1.0], 0.35 - 0.9 * math.sqrt(0.75), 0.5 - 0.3 * math.sqrt(0.75)),
        ([0.0, 0.35, 0.0], [0.0, 0.0, -1.0], 0.35 - 0.9 * math.sqrt(0.75), 0.5 - 0.3 * math.sqrt(0.75)),
        # Tangent and miss: the closest approach is where z is that of the center.
        ([0.7, -0.2, 0.0], [0.0, 0.0, -1.0], 0.35, 0.5),
        ([1.5, -0.2, 0.0], [0.0, 0.0, -1.0], 0.35, 0.5),
        ([0.0, 2.0, 1.0], [0.0, 0.0, -1.0], 1.35, 0.5),
    ],
)
def test_surface_by_hand(origin: list[float], direction: list[float], distance: float, margin: float) -> None:
    found, half = find_surface(shoot(origin, direction), PRIOR)
    # At the silhouette the square root amplifies a rounding error of 1e-7 to 3e-4.
    assert found.item() == pytest.approx(distance, abs=1e-3)
    assert half.item() == pytest.approx(margin, abs=1e-3)


def test_surface_points_of_oblique_rays_lie_on_the_ellipsoid() -> None:
    turn = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0)).double()).Q
    camera = Camera(turn[None], torch.tensor([1.0]).double(), torch.tensor([[0.05, 0.1]]).double())
    rays = cast_rays(0.5 * make_pixel_grid(4, 4).flatten(0, 1).double(), camera)
    distance, _ = find_surface(rays, PRIOR)
    points = rays.origins + distance[..., None] * rays.directions
    unit = (points - torch.tensor(PRIOR.center)) / torch.tensor(PRIOR.radii)
    torch.testing.assert_close(unit.norm(dim=-1), torch.ones(1, 16, dtype=torch.float64), atol=1e-6, rtol=0)
    # The nearer of the two intersections: the surface faces the viewer there.
    normal = unit / torch.tensor(PRIOR.radii)
    assert ((normal * rays.directions).sum(-1) < 0).all()


def measure_distances(samples: Samples, rays: Rays) -> torch.Tensor:
    """Return the distances of the samples along their rays, ``[B, N, S]``."""
    return ((samples.positions - rays.origins[..., None, :]) * rays.directions[..., None, :]).sum(-1)


def make_rays() -> Rays:
    return cast_rays(make_pixel_grid(6, 6).flatten(0, 1), Camera(torch.eye(3)[None], torch.ones(1), torch.zeros(1, 2)))


def test_samples_divide_the_slab_evenly() -> None:
    rays = make_rays()
    distance, margin = find_surface(rays, PRIOR)
    samples = place_samples(rays, 5, prior=PRIOR)
    assert samples.positions.shape == (1, 36, 5, 3)
    torch.testing.assert_close(samples.deltas.sum(-1), 2 * margin)
    torch.testing.assert_close(measure_distances(samples, rays).mean(-1), distance)
    steps = measure_distances(samples, rays).diff(dim=-1)
    torch.testing.assert_close(steps, samples.deltas[..., 1:])
    torch.testing.assert_close(measure_distances(samples, rays)[..., 0] - samples.deltas[..., 0] / 2, distance - margin)


def test_positions_lie_on_their_rays_nearest_first() -> None:
    rays = make_rays()
    samples = place_samples(rays, 4, prior=PRIOR)
    distances = measure_distances(samples, rays)
    expected = rays.origins[..., None, :] + distances[..., None] * rays.directions[..., None, :]
    torch.testing.assert_close(samples.positions, expected)
    assert (samples.positions[..., 2].diff(dim=-1) < 0).all()


def test_stratified_samples_stay_in_their_intervals() -> None:
    rays = make_rays()
    middle = place_samples(rays, 8, prior=PRIOR)
    shifts = []
    for seed in range(20):
        samples = place_samples(rays, 8, torch.Generator().manual_seed(seed), PRIOR)
        torch.testing.assert_close(samples.deltas, middle.deltas)
        shifts.append((measure_distances(samples, rays) - measure_distances(middle, rays)) / middle.deltas)
    shift = torch.stack(shifts)
    assert shift.abs().max() <= 0.5 + 1e-5
    # Uniform over the interval: mean 0, standard deviation 1 / sqrt(12), over 5760 draws.
    assert shift.mean().abs() < 0.02
    assert shift.std().item() == pytest.approx(1 / math.sqrt(12), abs=0.01)


def test_same_seed_same_samples() -> None:
    first, again, other = (
        place_samples(make_rays(), 8, torch.Generator().manual_seed(seed), PRIOR).positions for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
