"""Volume rendering of any field function: a sphere of constant density against its closed form."""

from __future__ import annotations

import torch
from torch import Tensor

from s3dnerf.ops.image import make_pixel_grid
from s3dnerf.rendering.rays import cast_rays
from s3dnerf.rendering.sampling import Samples
from s3dnerf.rendering.volume_rendering import average_rays, render_rays
from s3dnerf.structures import Camera

RADIUS, DENSITY, SAMPLES = 0.8, 1.7, 4000


def sphere(positions: Tensor) -> tuple[Tensor, Tensor]:
    """A sphere of constant density with the color two."""
    density = DENSITY * (positions.norm(dim=-1) < RADIUS)
    return density, torch.full((*positions.shape[:-1], 1), 2.0).to(positions)


def sample_sphere(rotation: Tensor) -> tuple[Samples, Tensor]:
    """Place samples along rays of a camera. Returns the lengths of their chords of the sphere as well."""
    camera = Camera(rotation[None], torch.ones(1).double(), torch.zeros(1, 2).double())
    rays = cast_rays(make_pixel_grid(9, 9).flatten(0, 1).double(), camera)
    # The origins lie in the plane through the center of the sphere.
    steps = (torch.arange(SAMPLES).double() + 0.5) / SAMPLES * 2.0 - 1.0
    positions = rays.origins[..., None, :] + steps[:, None] * rays.directions[..., None, :]
    chord = 2.0 * (RADIUS**2 - rays.origins.norm(dim=-1).square()).clamp(min=0.0).sqrt()
    return Samples(positions, torch.full(positions.shape[:3], 2.0 / SAMPLES).double()), chord


def test_a_sphere_absorbs_by_the_length_of_its_chords() -> None:
    samples, chord = sample_sphere(torch.eye(3).double())
    expected = 1.0 - torch.exp(-DENSITY * chord)
    outputs = render_rays(sphere, samples.positions, samples.deltas)
    torch.testing.assert_close(outputs.alpha, expected, atol=2e-3, rtol=0)
    torch.testing.assert_close(outputs.values[..., 0], 2.0 * expected, atol=4e-3, rtol=0)
    assert (expected == 0).any() and expected.max() > 0.9


def test_the_depth_of_a_sphere_seen_from_the_side() -> None:
    rotation = torch.linalg.matrix_exp(torch.tensor([[0.0, 0.2, 0.9], [-0.2, 0.0, 0.4], [-0.9, -0.4, 0.0]]).double())
    samples, chord = sample_sphere(rotation)
    camera = Camera(rotation[None], torch.ones(1).double(), torch.zeros(1, 2).double())
    outputs = average_rays(sphere, samples, camera)
    # Light enters at half a chord, and gets as far as the mean of an exponential distribution cut off at the chord.
    reached = 1.0 / DENSITY - chord * torch.exp(-DENSITY * chord) / -torch.expm1(-DENSITY * chord)
    seen = chord > 0.1
    torch.testing.assert_close(outputs.values[..., 0][seen], torch.full((int(seen.sum()),), 2.0).double())
    torch.testing.assert_close(outputs.values[..., 1][seen], (chord / 2.0 - reached)[seen], atol=4e-3, rtol=0)
    assert seen.sum() > 30


def test_rays_stop_behind_little_transmittance() -> None:
    positions = torch.zeros(1, 1, 8, 3)
    deltas = torch.full((1, 1, 8), 0.5)

    def opaque(positions: Tensor) -> tuple[Tensor, Tensor]:
        return torch.full(positions.shape[:-1], 2.0), torch.ones(*positions.shape[:-1], 1)

    # Transmittance before the samples: 1, e^-1, e^-2, ...; samples below 0.3 are skipped.
    outputs = render_rays(opaque, positions, deltas, early_stop_eps=0.3)
    torch.testing.assert_close(outputs.alpha, torch.full((1, 1), 1.0 - float(torch.tensor(-2.0).exp())))
