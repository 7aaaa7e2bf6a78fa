"""The noise schedule: that of the paper, and that of diffusers."""

from __future__ import annotations

import pytest
import torch

from s3dnerf.models.fd2talk.noise_schedule import NoiseSchedule


def test_the_schedule_is_the_cosine_of_nichol_and_dhariwal() -> None:
    signal = NoiseSchedule(1000).signal.double()
    times = (torch.arange(1, 1001, dtype=torch.float64) / 1000 + 0.008) / 1.008
    expected = (times * torch.pi / 2).cos().square() / torch.tensor(0.008 / 1.008 * torch.pi / 2).cos().square()
    # The schedule limits each step to 0.999, which only the last one reaches.
    assert torch.allclose(signal[:-1], expected[:-1], atol=1e-4)


@pytest.mark.parametrize(("steps", "count"), [(1000, 1), (1000, 7), (1000, 10), (1000, 25), (50, 8), (10, 6)])
def test_it_samples_as_ddim_of_diffusers_does(steps: int, count: int) -> None:
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    theirs = DDIMScheduler(
        num_train_timesteps=steps,
        beta_schedule="squaredcos_cap_v2",
        prediction_type="sample",
        clip_sample=False,
        timestep_spacing="trailing",
    )
    theirs.set_timesteps(count)
    ours, rng = NoiseSchedule(steps), torch.Generator().manual_seed(0)
    torch.testing.assert_close(ours.signal, theirs.alphas_cumprod)
    assert ours.choose_steps(count) == theirs.timesteps.tolist()
    sample = expected = torch.randn(5, 4, generator=rng)
    for step in ours.choose_steps(count):
        clean = torch.randn(5, 4, generator=rng)
        sample = ours.denoise(sample, clean, step, count)
        expected = theirs.step(clean, step, expected).prev_sample
        torch.testing.assert_close(sample, expected, atol=1e-5, rtol=0)
