"""Stage 1 of FD2Talk: two diffusion transformers that predict expression and head pose from speech.

The paper (arXiv 2408.09384) states the pair of transformers, cross-attention to speech with an alignment mask, 1000
diffusion steps and a lip expert. What it leaves open is chosen here: clean motion as the target of the prediction, a
cosine schedule, windows of 100 frames that continue the last 10, and coefficients of a basis of our own in the place of
a 3DMM (:mod:`s3dnerf.face.coefficients`).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from s3dnerf.config import check_config
from s3dnerf.face.coefficients import CHANNELS
from s3dnerf.face.expression_basis import CHANNEL_COUNT, EXPRESSION_SIZE
from s3dnerf.models.fd2talk.config import MotionDiffusionConfig, MotionTransformerConfig
from s3dnerf.models.fd2talk.frame_speech import FrameSpeech
from s3dnerf.models.fd2talk.lip_expert import LipExpert
from s3dnerf.models.fd2talk.motion_transformer import MotionCondition, MotionTransformer
from s3dnerf.models.pretrained import PretrainedModel, load_model

SHIPPED = Path(__file__).parents[2] / "weights" / "fd2talk_motion"
"""Folder of the model that ships with the package."""


class MotionDiffusion(PretrainedModel):
    """Predicts clean motion of all 34 channels from noisy motion and speech."""

    mean: Tensor
    """``[34]`` of the training motion, and likewise:"""
    std: Tensor
    rate_std: Tensor
    """``[34]`` standard deviation of the change per frame of standardized motion."""
    log_speed_mean: Tensor
    log_speed_std: Tensor

    def __init__(self, config: MotionDiffusionConfig) -> None:
        """Build the networks."""
        super().__init__()
        check_config(config, "motion diffusion")
        self.config = config
        self.speech = FrameSpeech(config.features, config.pretrained)
        channels = self.speech.channels
        others = CHANNEL_COUNT if config.layout == "one" else CHANNEL_COUNT - EXPRESSION_SIZE
        aligned = config.alignment_mask
        if config.layout != "expression":
            self.pose = MotionTransformer(config.pose, others, channels, aligned)
        if config.layout != "one":
            self.expression = MotionTransformer(config.expression, EXPRESSION_SIZE, channels, aligned)
        self.lip_expert = LipExpert(config.lip_expert, EXPRESSION_SIZE)
        for name in ("mean", "std", "rate_std"):
            self.register_buffer(name, torch.zeros(CHANNEL_COUNT) if name == "mean" else torch.ones(CHANNEL_COUNT))
        self.register_buffer("log_speed_mean", torch.zeros(()))
        self.register_buffer("log_speed_std", torch.ones(()))

    def forward(self, noisy: Tensor, time: Tensor, condition: MotionCondition) -> Tensor:
        """Predict clean motion.

        Args:
            noisy: ``[B, T, 34]`` standardized motion with noise.
            time: ``[B]`` noise level in [0, 1]: the diffusion step divided by the number of steps.
            condition: what the motion depends on.

        Returns:
            ``[B, T, 34]`` standardized motion.
        """
        if self.config.layout == "one":
            return self.pose(noisy, time, self.narrow(condition, self.config.pose))
        first, last = slice(0, EXPRESSION_SIZE), slice(EXPRESSION_SIZE, CHANNEL_COUNT)
        expression = self.predict_part(self.expression, first, noisy, time, condition)
        if self.config.layout == "expression":
            rest = self.standardize(torch.from_numpy(make_rest()).to(noisy))[last].expand_as(noisy[..., last])
            others = torch.where(condition.is_known[..., None], condition.known[..., last], rest)
        else:
            others = self.predict_part(self.pose, last, noisy, time, condition)
        return torch.cat([expression, others], dim=-1)

    def predict_part(
        self, transformer: MotionTransformer, columns: slice, noisy: Tensor, time: Tensor, condition: MotionCondition
    ) -> Tensor:
        """Predict the channels of one transformer."""
        own = self.narrow(condition, transformer.config)
        own = replace(own, known=own.known[..., columns])
        return transformer(noisy[..., columns], time, own)

    def narrow(self, condition: MotionCondition, config: MotionTransformerConfig) -> MotionCondition:
        """Return the condition with the margins of speech that one transformer sees."""
        first = self.config.speech_past - config.speech_past
        last = condition.speech.shape[1] - (self.config.speech_future - config.speech_future)
        return replace(condition, speech=condition.speech[:, first:last])

    def standardize(self, motion: Tensor) -> Tensor:
        """Standardize motion coefficients ``[..., 34]`` by the statistics of the training data."""
        return (motion - self.mean) / self.std

    def restore(self, motion: Tensor) -> Tensor:
        """Invert :meth:`standardize`."""
        return motion * self.std + self.mean

    def standardize_speed(self, speed: Tensor) -> Tensor:
        """Return the condition ``liveliness`` of mean speeds of the head in degrees per second."""
        return (speed.log() - self.log_speed_mean) / self.log_speed_std


def make_rest() -> np.ndarray:
    """Return the channels ``[34]`` of a face at rest in its source: no change, and eyes open as usual."""
    rest = np.zeros(CHANNEL_COUNT, np.float32)
    rest[CHANNELS["eyes"]] = 1.0
    return rest


def load_motion_diffusion(folder: str | Path = SHIPPED, device: torch.device | str = "cpu") -> MotionDiffusion:
    """Load a model for inference: in evaluation mode, with frozen parameters.

    ``folder`` may also be a hub id. Raises UserError if it holds no such model.
    """
    model = load_model(MotionDiffusion, MotionDiffusionConfig, folder).to(device)
    return model.eval().requires_grad_(False)
