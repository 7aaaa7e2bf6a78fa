"""Diffusion of the latents of frames: adding noise, and sampling."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from s3dnerf.models.fd2talk.frame_config import FrameDiffusionConfig
from s3dnerf.models.fd2talk.frame_diffusion import FrameCondition, FrameDiffusion
from s3dnerf.models.fd2talk.noise_schedule import NoiseSchedule

FIRST_SHIFT, LAST_SHIFT = 0.04, 0.999
"""Fractions of the way from the frame to the coarse frame at the first and last step of :class:`ResidualShift`."""


class FrameScheduler(Protocol):
    """Adds noise to latents, and samples them."""

    steps: int
    """Diffusion steps, of which training samples one."""

    def add_noise(self, clean: Tensor, coarse: Tensor, noise: Tensor, step: Tensor) -> Tensor:
        """Return noisy latents at steps ``[B]``; all others ``[B, C, h, w]``."""

    def sample(self, model: FrameDiffusion, condition: FrameCondition, noise: Tensor) -> Tensor:
        """Sample clean latents ``[B, C, h, w]``; ``noise``, of the same shape, determines them."""


class ResidualShift:
    """Diffusion from coarse to clean latents in few steps (ResShift; Yue et al., 2023).

    At step t of 0 to T - 1, latents are ``clean + shift_t (coarse - clean) + sigma sqrt(shift_t) noise``. The
    shifts are a geometric series.
    """

    def __init__(self, steps: int, sigma: float) -> None:
        self.steps, self.sigma = steps, sigma
        self.shifts = FIRST_SHIFT * (LAST_SHIFT / FIRST_SHIFT) ** torch.linspace(0.0, 1.0, steps)
        """``[T]``, ascending."""

    def add_noise(self, clean: Tensor, coarse: Tensor, noise: Tensor, step: Tensor) -> Tensor:
        """See :class:`FrameScheduler`."""
        shift = self.shifts.to(clean.device)[step][:, None, None, None]
        return clean + shift * (coarse - clean) + self.sigma * shift.sqrt() * noise

    @torch.inference_mode()
    def sample(self, model: FrameDiffusion, condition: FrameCondition, noise: Tensor) -> Tensor:
        """See :class:`FrameScheduler`. The same noise serves all steps, so sampling is deterministic."""
        latents = condition.coarse + self.sigma * noise
        for step in reversed(range(self.steps)):
            clean = model(latents, torch.full((len(latents),), step, device=latents.device), condition)
            if step == 0:
                return clean
            latents = self.add_noise(clean, condition.coarse, noise, torch.full((len(clean),), step - 1))
        raise AssertionError("there is at least one step")


class NoiseDiffusion:
    """Diffusion from noise with the cosine schedule of motion diffusion, sampled by DDIM."""

    def __init__(self, steps: int, sampling_steps: int) -> None:
        self.steps, self.sampling_steps = steps, sampling_steps
        self.schedule = NoiseSchedule(steps)

    def add_noise(self, clean: Tensor, coarse: Tensor, noise: Tensor, step: Tensor) -> Tensor:
        """See :class:`FrameScheduler`."""
        signal = self.schedule.signal.to(clean.device)[step][:, None, None, None]
        return signal.sqrt() * clean + (1.0 - signal).sqrt() * noise

    @torch.inference_mode()
    def sample(self, model: FrameDiffusion, condition: FrameCondition, noise: Tensor) -> Tensor:
        """See :class:`FrameScheduler`."""
        latents = noise
        for step in self.schedule.choose_steps(self.sampling_steps):
            clean = model(latents, torch.full((len(noise),), step, device=noise.device), condition)
            latents = self.schedule.denoise(latents, clean, step, self.sampling_steps)
        return latents


def make_frame_scheduler(config: FrameDiffusionConfig) -> FrameScheduler:
    """Return the diffusion of the settings."""
    if config.start == "noise":
        return NoiseDiffusion(config.diffusion_steps, config.sampling_steps)
    return ResidualShift(config.diffusion_steps, config.noise)
