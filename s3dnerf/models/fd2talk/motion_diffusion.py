"""Stage 1 of FD2Talk: two diffusion transformers that predict expression and head pose from speech.

The paper (arXiv 2408.09384) states the pair of transformers, cross-attention to speech with an alignment mask, 1000
diffusion steps and a lip expert. What it leaves open is chosen here: clean motion as the target of the prediction, a
cosine schedule, windows of 100 frames that continue the last 10, and coefficients of a basis of our own in the place of
a 3DMM (:mod:`s3dnerf.face.coefficients`).
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor

from s3dnerf.config import check_config
from s3dnerf.face.coefficients import CHANNELS
from s3dnerf.face.expression_basis import CHANNEL_COUNT, EXPRESSION_SIZE
from s3dnerf.models.fd2talk.config import MotionDiffusionConfig
from s3dnerf.models.fd2talk.frame_speech import FrameSpeech
from s3dnerf.models.fd2talk.lip_expert import LipExpert
from s3dnerf.models.fd2talk.motion_transformer import MotionCondition, MotionTransformer, PreparedCondition
from s3dnerf.models.pretrained import PretrainedModel, load_model

SHIPPED = Path(__file__).parents[2] / "weights" / "fd2talk_motion"
"""Folder of the model that ships with the package."""


EXPRESSION, OTHERS = slice(0, EXPRESSION_SIZE), slice(EXPRESSION_SIZE, CHANNEL_COUNT)
COLUMNS = {
    "two": {"expression": EXPRESSION, "pose": OTHERS},
    "one": {"pose": slice(0, CHANNEL_COUNT)},
    "expression": {"expression": EXPRESSION},
}
"""Channels that each transformer predicts, by the layout of the model."""


@dataclass(frozen=True)
class PreparedPart:
    """A condition as one transformer takes it, which is the same for all noise levels."""

    condition: PreparedCondition
    """Of B windows; with guidance, of 2 B: as they are, and once more without speech."""
    guidance: Tensor | None
    """``[C]`` scale of classifier-free guidance, if there is any."""


@dataclass(frozen=True)
class PreparedMotion:
    """A condition as the transformers take it, which is the same for all noise levels."""

    known: Tensor
    """``[B, T, 34]`` known motion; a face at rest where it is not known."""
    parts: dict[str, PreparedPart]
    """By transformer."""


class MotionDiffusion(PretrainedModel):
    """Predicts clean motion of all 34 channels from noisy motion and speech."""

    mean: Tensor
    """``[34]`` of the training motion, and likewise:"""
    std: Tensor
    rate_std: Tensor
    """``[34]`` standard deviation of the change per frame of standardized motion."""
    rest: Tensor
    """``[34]`` channels of a face at rest."""
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
        self.register_buffer("rest", torch.from_numpy(make_rest()), persistent=False)
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
        return self.denoise(noisy, time, self.prepare(condition))

    def prepare(self, condition: MotionCondition, guidance: Tensor | None = None) -> PreparedMotion:
        """Compute what does not depend on the noise, once for all steps of sampling.

        Args:
            condition: of B windows.
            guidance: ``[34]`` scale of classifier-free guidance on speech (Ho and Salimans, 2022), 1 by default. A
                transformer whose channels all have 1 predicts half as many windows.
        """
        parts = {}
        for name, columns in COLUMNS[self.config.layout].items():
            scale = None if guidance is None or bool((guidance[columns] == 1.0).all()) else guidance[columns]
            windows = condition if scale is None else repeat_without_speech(condition)
            parts[name] = PreparedPart(self.prepare_part(name, columns, windows), scale)
        rest = self.standardize(self.rest)
        return PreparedMotion(torch.where(condition.is_known[..., None], condition.known, rest), parts)

    def prepare_part(self, name: str, columns: slice, condition: MotionCondition) -> PreparedCondition:
        """Prepare the condition of one transformer: its channels, and the speech that it hears."""
        transformer = self.get_transformer(name)
        first = self.config.speech_past - transformer.config.speech_past
        last = condition.speech.shape[1] - (self.config.speech_future - transformer.config.speech_future)
        known = condition.known[..., columns]
        return transformer.prepare(replace(condition, known=known, speech=condition.speech[:, first:last]))

    def denoise(self, noisy: Tensor, time: Tensor, prepared: PreparedMotion) -> Tensor:
        """Predict clean motion, see :meth:`forward`, under a prepared condition."""
        clean = prepared.known.clone()
        for name, columns in COLUMNS[self.config.layout].items():
            own, part, times = prepared.parts[name], noisy[..., columns], time
            if own.guidance is not None:
                part, times = part.repeat(2, 1, 1), time.repeat(2)
            predicted = self.get_transformer(name).denoise(part, times, own.condition)
            if own.guidance is not None:
                heard, unheard = predicted.chunk(2)
                predicted = unheard + own.guidance * (heard - unheard)
            clean[..., columns] = predicted
        return clean

    def get_transformer(self, name: str) -> MotionTransformer:
        """Return the transformer of a name in ``COLUMNS``."""
        return cast(MotionTransformer, getattr(self, name))

    def standardize(self, motion: Tensor) -> Tensor:
        """Standardize motion coefficients ``[..., 34]`` by the statistics of the training data."""
        return (motion - self.mean) / self.std

    def restore(self, motion: Tensor) -> Tensor:
        """Invert :meth:`standardize`."""
        return motion * self.std + self.mean

    def standardize_speed(self, speed: Tensor) -> Tensor:
        """Return the condition ``liveliness`` of mean speeds of the head in degrees per second."""
        return (speed.log() - self.log_speed_mean) / self.log_speed_std


def repeat_without_speech(condition: MotionCondition) -> MotionCondition:
    """Return the condition of 2 B windows: as they are, and once more without speech."""
    twice = {item.name: torch.cat([getattr(condition, item.name)] * 2) for item in fields(condition)}
    twice["has_speech"] = torch.cat([condition.has_speech, torch.zeros_like(condition.has_speech)])
    return MotionCondition(**twice)


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
