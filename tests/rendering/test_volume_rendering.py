"""Volume rendering of any field function: a sphere of constant density against its closed form."""

from __future__ import annotations

import torch
from torch import Tensor

from s3dnerf.ops.image import make_pixel_grid
from s3dnerf.rendering.rays import cast_rays
from s3dnerf.rendering.volume_rendering import render_rays
from s3dnerf.structures import Camera

RADIUS, DENSITY, SAMPLES = 0.8, 1.7, 4000


def sphere(positions: Tensor) -> tuple[Tensor, Tensor]:
    """A sphere of constant density with the color two."""
    density = DENSITY * (positions.norm(dim=-1) < RADIUS)
    return density, torch.full((*positions.shape[:-1], 1), 2.0).to(positions)


def test_a_sphere_absorbs_by_the_length_of_its_chords() -> None:
    camera = Camera(torch.eye(3).double()[None], torch.ones(1).double(), torch.zeros(1, 2).double())
    rays = cast_rays(make_pixel_grid(9, 9).flatten(0, 1).double(), camera)
    # The origins lie in the plane through the center of the sphere.
    steps = (torch.arange(SAMPLES).double() + 0.5) / SAMPLES * 2.0 - 1.0
    positions = rays.origins[..., None, :] + steps[:, None] * rays.directions[..., None, :]
    deltas = torch.full(positions.shape[:3], 2.0 / SAMPLES).double()
    distance = rays.origins.norm(dim=-1)
    chord = 2.0 * (RADIUS**2 - distance.square()).clamp(min=0.0).sqrt()
    expected = 1.0 - torch.exp(-DENSITY * chord)
    outputs = render_rays(sphere, positions, deltas)
    torch.testing.assert_close(outputs.alpha, expected, atol=2e-3, rtol=0)
    torch.testing.assert_close(outputs.values[..., 0], 2.0 * expected, atol=4e-3, rtol=0)
    assert (expected == 0).any() and expected.max() > 0.9


def test_rays_stop_behind_little_transmittance() -> None:
    positions = torch.zeros(1, 1, 8, 3)
    deltas = torch.full((1, 1, 8), 0.5)

    def opaque(positions: Tensor) -> tuple[Tensor, Tensor]:
        return torch.full(positions.shape[:-1], 2.0), torch.ones(*positions.shape[:-1], 1)

    # Transmittance before the samples: 1, e^-1, e^-2, ...; samples below 0.3 are skipped.
    outputs = render_rays(opaque, positions, deltas, early_stop_eps=0.3)
    torch.testing.assert_close(outputs.alpha, torch.full((1, 1), 1.0 - float(torch.tensor(-2.0).exp())))
