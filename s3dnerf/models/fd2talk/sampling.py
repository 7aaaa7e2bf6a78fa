"""Sampling of motion windows with the samplers of ``diffusers``, which is imported when they are made."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from s3dnerf.face.coefficients import CHANNELS
from s3dnerf.face.expression_basis import CHANNEL_COUNT, EXPRESSION_SIZE
from s3dnerf.models.fd2talk.config import MotionSamplingConfig
from s3dnerf.models.fd2talk.lip_expert import LipExpert
from s3dnerf.models.fd2talk.motion_diffusion import MotionDiffusion
from s3dnerf.models.fd2talk.motion_transformer import MotionCondition

GUIDED_CHANGE = 0.1
"""Standard deviations by which full guidance of the lip expert moves the expression in one step."""


def make_scheduler(diffusion_steps: int) -> Any:
    """Return a DDIM scheduler (Song et al., 2021) with a cosine schedule that predicts clean motion."""
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    return DDIMScheduler(
        num_train_timesteps=diffusion_steps,
        beta_schedule="squaredcos_cap_v2",
        prediction_type="sample",
        clip_sample=False,
        timestep_spacing="trailing",
    )


@torch.inference_mode()
def sample_motion(
    model: MotionDiffusion,
    condition: MotionCondition,
    noise: Tensor,
    sampling: MotionSamplingConfig,
    scheduler: Any | None = None,
    lip_speech: Tensor | None = None,
) -> Tensor:
    """Sample B windows of motion.

    Args:
        model: in evaluation mode.
        condition: of B windows of T frames.
        noise: ``[B, T, 34]`` standard normal; it determines the motion.
        sampling: steps and guidance.
        scheduler: see :func:`make_scheduler`; made by default.
        lip_speech: ``[B, T, E]`` speech around each frame as the lip expert knows it, if it guides the lips.

    Returns:
        ``[B, T, 34]`` standardized motion.
    """
    scheduler = scheduler or make_scheduler(model.config.diffusion_steps)
    scheduler.set_timesteps(sampling.steps)
    motion = noise
    for number, step in enumerate(scheduler.timesteps):
        time = torch.full((len(noise),), float(step) / model.config.diffusion_steps, device=noise.device)
        clean = predict_guided(model, motion, time, condition, sampling)
        if lip_speech is not None and 2 * number >= sampling.steps:
            clean = guide_lips(model.lip_expert, clean, lip_speech, sampling.expert_guidance)
        motion = scheduler.step(clean, step, motion).prev_sample
    return torch.where(condition.is_known[..., None], condition.known, motion)


def predict_guided(
    model: MotionDiffusion, noisy: Tensor, time: Tensor, condition: MotionCondition, sampling: MotionSamplingConfig
) -> Tensor:
    """Predict clean motion with classifier-free guidance on speech: ``unheard + guidance (heard - unheard)``."""
    if sampling.guidance == sampling.expression_guidance == 1.0:
        return model(noisy, time, condition)
    twice = {item.name: torch.cat([getattr(condition, item.name)] * 2) for item in fields(condition)}
    twice["has_speech"] = torch.cat([condition.has_speech, torch.zeros_like(condition.has_speech)])
    both = model(noisy.repeat(2, 1, 1), time.repeat(2), MotionCondition(**twice))
    heard, unheard = both.chunk(2)
    guidance = torch.full((CHANNEL_COUNT,), sampling.guidance, device=noisy.device)
    guidance[CHANNELS["expression"]] = sampling.expression_guidance
    return unheard + guidance * (heard - unheard)


def guide_lips(expert: LipExpert, clean: Tensor, lip_speech: Tensor, scale: float) -> Tensor:
    """Move predicted expressions along the gradient by which they match the speech better.

    Args:
        expert: the lip expert.
        clean: ``[B, T, 34]`` predicted standardized motion.
        lip_speech: see :func:`sample_motion`.
        scale: 1 moves the coefficients of a window by ``GUIDED_CHANGE`` standard deviations, root mean square.
    """
    half = expert.config.frames // 2
    # Tensors of inference mode have no gradients.
    with torch.inference_mode(False), torch.enable_grad():
        expression = clean[..., :EXPRESSION_SIZE].clone().requires_grad_()
        speech = F.normalize(lip_speech[:, half : clean.shape[1] - half].clone(), dim=-1)
        (gradient,) = torch.autograd.grad((expert(expression) * speech).sum(), expression)
    size = gradient.square().mean(dim=(1, 2), keepdim=True).sqrt().clamp(min=1e-9)
    guided = clean[..., :EXPRESSION_SIZE] + scale * GUIDED_CHANGE * gradient / size
    return torch.cat([guided, clean[..., EXPRESSION_SIZE:]], dim=-1)
