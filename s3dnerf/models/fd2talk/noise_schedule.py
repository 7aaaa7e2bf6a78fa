"""The noise schedule of motion and frames, and its sampler."""

from __future__ import annotations

import math

import torch
from torch import Tensor

MAX_NOISE = 0.999
"""Largest fraction of the variance that one step replaces by noise."""


class NoiseSchedule:
    """The cosine schedule of Nichol and Dhariwal (2021), sampled by DDIM (Song et al., 2021) without new noise.

    It equals ``DDIMScheduler`` of diffusers with ``squaredcos_cap_v2``, predictions of the clean sample and trailing
    steps, and stands here because importing diffusers takes longer than a second of video. A test compares the two.
    """

    def __init__(self, steps: int) -> None:
        """Prepare a diffusion of so many steps."""
        self.steps = steps

        def keep(time: float) -> float:
            return math.cos((time + 0.008) / 1.008 * math.pi / 2.0) ** 2

        noise = [min(1.0 - keep((step + 1) / steps) / keep(step / steps), MAX_NOISE) for step in range(steps)]
        self.signal = (1.0 - torch.tensor(noise)).cumprod(dim=0)
        """``[steps]`` the square of the fraction of the sample that is left after each step."""

    def choose_steps(self, count: int) -> list[int]:
        """Return the ``count`` steps at which sampling predicts, from the noisiest on."""
        return [round(self.steps - place * self.steps / count) - 1 for place in range(count)]

    def denoise(self, noisy: Tensor, clean: Tensor, step: int, count: int) -> Tensor:
        """Return the sample at the next of ``count`` steps.

        Args:
            noisy: the sample at ``step``.
            clean: the prediction of it without noise.
            step: one of :meth:`choose_steps`.
            count: number of steps of the whole sampling.
        """
        following = step - self.steps // count
        signal = float(self.signal[step])
        left = float(self.signal[following]) if following >= 0 else 1.0
        noise = (noisy - math.sqrt(signal) * clean) / math.sqrt(1.0 - signal)
        return math.sqrt(left) * clean + math.sqrt(1.0 - left) * noise
