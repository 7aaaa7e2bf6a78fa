"""Volume compositing against a float64 loop, limiting cases, and gradients."""

from __future__ import annotations

import math

import numpy as np
import torch

from s3dnerf.ops.composite import composite


def composite_ray(
    density: np.ndarray, values: np.ndarray, lengths: np.ndarray
) -> tuple[np.ndarray, float, list[float]]:
    """Composite one ray, front to back, in float64."""
    clear, total, weights = 1.0, np.zeros(values.shape[-1]), []
    for sigma, value, length in zip(density, values, lengths, strict=True):
        weight = clear * (1.0 - math.exp(-sigma * length))
        total = total + weight * value
        weights.append(weight)
        clear *= math.exp(-sigma * length)
    return total, 1.0 - clear, weights


def draw_rays(rays: int, samples: int, channels: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    density = rng.exponential(3.0, (rays, samples)) * rng.integers(0, 2, (rays, samples))
    return density, rng.standard_normal((rays, samples, channels)), rng.uniform(0.01, 0.5, (rays, samples))


def test_agreement_with_a_float64_loop() -> None:
    density, values, lengths = draw_rays(50, 12, 7)
    expected = [composite_ray(*ray) for ray in zip(density, values, lengths, strict=True)]
    for dtype, tolerance in ((torch.float64, 1e-13), (torch.float32, 2e-6)):
        got = composite(*(torch.from_numpy(part).to(dtype) for part in (density, values, lengths)))
        for index, part in enumerate((got.values, got.alpha, got.weights)):
            wanted = np.stack([ray[index] for ray in expected])
            np.testing.assert_allclose(part.numpy(), wanted, rtol=0, atol=tolerance * max(1, np.abs(wanted).max()))


def test_weights_sum_to_alpha() -> None:
    density, values, lengths = (torch.from_numpy(part) for part in draw_rays(30, 9, 1))
    seen = composite(density, values, lengths)
    torch.testing.assert_close(seen.weights.sum(-1), seen.alpha)
    torch.testing.assert_close(seen.alpha, 1 - torch.exp(-(density * lengths).sum(-1)))


def test_an_opaque_front_sample_hides_the_rest() -> None:
    density = torch.tensor([[1e4, 3.0, 5.0]])
    seen = composite(density, torch.tensor([[[1.0], [2.0], [3.0]]]), torch.ones(1, 3))
    torch.testing.assert_close(seen.weights, torch.tensor([[1.0, 0.0, 0.0]]))
    torch.testing.assert_close(seen.values, torch.tensor([[1.0]]))
    assert seen.alpha.item() == 1.0


def test_empty_space_shows_nothing() -> None:
    seen = composite(torch.zeros(2, 4), torch.ones(2, 4, 3), torch.ones(2, 4))
    assert not seen.values.any() and not seen.alpha.any() and not seen.weights.any()


def test_thin_fog_is_not_lost_to_rounding() -> None:
    # 1 - exp(-1e-9) is 0 in float32 unless expm1 is used.
    seen = composite(torch.full((1, 4), 1e-9), torch.ones(1, 4, 1), torch.ones(1, 4))
    np.testing.assert_allclose(seen.alpha.item(), 4e-9, rtol=1e-5)


def test_half_then_half_by_hand() -> None:
    # Each sample transmits half of the light: 1/2 of the first, 1/4 of the second, 1/8 of the third.
    density = torch.full((1, 3), math.log(2.0))
    seen = composite(density, torch.tensor([[[8.0, 0.0], [8.0, 8.0], [8.0, 16.0]]]), torch.ones(1, 3))
    torch.testing.assert_close(seen.values, torch.tensor([[7.0, 4.0]]))
    torch.testing.assert_close(seen.alpha, torch.tensor([0.875]))


def test_splitting_a_sample_changes_nothing() -> None:
    density, values, lengths = (torch.from_numpy(part) for part in draw_rays(10, 6, 3))
    whole = composite(density, values, lengths)
    halves = composite(
        density.repeat_interleave(2, -1), values.repeat_interleave(2, -2), (lengths / 2).repeat_interleave(2, -1)
    )
    torch.testing.assert_close(halves.values, whole.values)
    torch.testing.assert_close(halves.alpha, whole.alpha)


def test_channels_do_not_mix() -> None:
    density, values, lengths = (torch.from_numpy(part) for part in draw_rays(5, 6, 20))
    together = composite(density, values, lengths).values
    for channel in range(20):
        alone = composite(density, values[..., channel : channel + 1], lengths).values
        torch.testing.assert_close(together[..., channel : channel + 1], alone)


def test_leading_dimensions_are_kept() -> None:
    seen = composite(torch.rand(2, 3, 4, 5), torch.rand(2, 3, 4, 5, 6), torch.rand(2, 3, 4, 5))
    assert seen.values.shape == (2, 3, 4, 6)
    assert seen.alpha.shape == (2, 3, 4) and seen.weights.shape == (2, 3, 4, 5)


def test_gradients() -> None:
    density, values, lengths = (torch.from_numpy(part) for part in draw_rays(3, 5, 2))
    inputs = (density + 0.1, values, lengths)
    for part in inputs:
        part.requires_grad_()
    torch.autograd.gradcheck(lambda *parts: tuple(vars(composite(*parts)).values()), inputs)


def test_mixed_precision_leaves_compositing_alone() -> None:
    parts = tuple(torch.from_numpy(part).float() for part in draw_rays(20, 8, 5))
    with torch.autocast("cpu", torch.bfloat16):
        seen = composite(*parts)
    assert torch.equal(seen.values, composite(*parts).values)
