"""Sampling of motion windows by DDIM with classifier-free guidance."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from s3dnerf.face.coefficients import CHANNELS
from s3dnerf.face.expression_basis import CHANNEL_COUNT, EXPRESSION_SIZE
from s3dnerf.models.fd2talk.config import MotionSamplingConfig
from s3dnerf.models.fd2talk.lip_expert import LipExpert
from s3dnerf.models.fd2talk.motion_diffusion import MotionDiffusion
from s3dnerf.models.fd2talk.motion_transformer import MotionCondition
from s3dnerf.models.fd2talk.noise_schedule import NoiseSchedule

GUIDED_CHANGE = 0.1
"""Standard deviations by which full guidance of the lip expert moves the expression in one step."""


@torch.inference_mode()
def sample_motion(
    model: MotionDiffusion,
    condition: MotionCondition,
    noise: Tensor,
    sampling: MotionSamplingConfig,
    lip_speech: Tensor | None = None,
) -> Tensor:
    """Sample B windows of motion.

    Args:
        model: in evaluation mode.
        condition: of B windows of T frames.
        noise: ``[B, T, 34]`` standard normal; it determines the motion.
        sampling: steps and guidance.
        lip_speech: ``[B, T, E]`` speech around each frame as the lip expert knows it, if it guides the lips.

    Returns:
        ``[B, T, 34]`` standardized motion.
    """
    schedule = NoiseSchedule(model.config.diffusion_steps)
    prepared = model.prepare(condition, make_guidance(sampling).to(noise.device))
    motion = noise
    for number, step in enumerate(schedule.choose_steps(sampling.steps)):
        time = torch.full((len(noise),), step / schedule.steps, device=noise.device)
        clean = model.denoise(motion, time, prepared)
        if lip_speech is not None and 2 * number >= sampling.steps:
            clean = guide_lips(model.lip_expert, clean, lip_speech, sampling.expert_guidance)
        motion = schedule.denoise(motion, clean, step, sampling.steps)
    return torch.where(condition.is_known[..., None], condition.known, motion)


def make_guidance(sampling: MotionSamplingConfig) -> Tensor:
    """Return the scale of classifier-free guidance of each channel, ``[34]``; 1 is none."""
    guidance = torch.full((CHANNEL_COUNT,), sampling.guidance)
    guidance[CHANNELS["expression"]] = sampling.expression_guidance
    return guidance


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
