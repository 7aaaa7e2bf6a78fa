"""Settings of a training run of S3D-NeRF: the contents of a YAML file in ``configs/``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from s3dnerf.constraints import NonNegativeFloat, NonNegativeInt, PositiveInt, Seed, Share, Text, Width
from s3dnerf.data.config import DataConfig
from s3dnerf.models.s3dnerf.config import ModelConfig
from s3dnerf.training.loop import LoopConfig


@dataclass
class TrainConfig(LoopConfig):
    """Optimization of the model."""

    init_from: Path | None = None
    """Folder of a model with the initial weights; None initializes them randomly."""
    reinit: tuple[Text, ...] = ()
    """Parts, such as audio_encoder, that are initialized randomly even if ``init_from`` is set."""
    freeze: tuple[Text, ...] = ()
    """Parts that are not trained. A speech path trained on few people soon overfits to them."""
    sync_discriminator: Path | None = None
    """Folder of the sync discriminator for the sync loss; None for the shipped one."""
    mouth_steps: NonNegativeInt = 1_500
    """Steps before all others, in which the interior of the mouth is trained on pixels between tracked lips; they take
    a few minutes. It is not trained afterwards. 0 keeps its weights from ``init_from``, or its random ones."""
    eye_steps: NonNegativeInt = 800
    """Steps before all others, in which the interior of the eyes is trained in the same way."""
    batch_size: PositiveInt = 6
    """Frames rendered per batch."""
    motion_steps: NonNegativeInt = 2_000
    """Length of the motion stage: the first steps, which train motion only (landmarks and speech, no images) and are
    fast."""
    coarse_steps: NonNegativeInt = 0
    """Length of the coarse image stage, which follows: steps that render at half the resolution, about three times as
    fast. All other steps render at the full one."""
    compile: bool = False
    """Compile networks with torch.compile: minutes before the first steps, fewer launches on a GPU afterwards. Not
    measured on a GPU yet."""
    speech_from: Share = 0.6
    """Fraction of all steps after which some frames are rendered from speech instead of the tracked face."""

    @model_validator(mode="after")
    def check_steps(self) -> TrainConfig:
        """Check that there is something to train."""
        if self.steps == self.mouth_steps == self.eye_steps == 0:
            raise ValueError("steps, mouth_steps and eye_steps are all 0, so there is nothing to train")
        return self


@dataclass
class LossWeights:
    """Weight of each group of losses. The ratios within a group are constants, see ``LOSS_GROUPS``."""

    image: NonNegativeFloat = 1.0
    """Differences between rendered frames and targets: pixels, structure, gradients, texture and optical flow, with
    extra weight on mouth and eyes."""
    perceptual: NonNegativeFloat = 1.0
    """Differences between the outputs of the face tracker's network for rendered frames and targets."""
    sync: NonNegativeFloat = 1.0
    """One minus the cosine of rendered lips and speech under the frozen sync discriminator."""
    adversarial: NonNegativeFloat = 1.0
    """Image discriminators: adversarial loss and feature matching."""
    landmarks: NonNegativeFloat = 1.0
    """Distances between deformed landmarks and the landmarks of the source."""
    views: NonNegativeFloat = 1.0
    """Differences between landmarks and what is rendered there, seen from random sides."""
    speech: NonNegativeFloat = 1.0
    """Motion from speech: differences between landmarks decoded from motion codes and tracked landmarks."""


@dataclass
class AdversarialConfig:
    """Start and sizes of the image discriminators."""

    start: Share = 0.6
    """Fraction of all steps after which they start; 1 disables them."""
    widths: Annotated[tuple[Width, ...], Field(min_length=1)] = (16, 32, 64, 96)
    """Channels before each halving of the feature map."""


@dataclass
class S3DNeRFConfig:
    """Settings of the model, its data and its training."""

    model: ModelConfig = field(default_factory=ModelConfig)
    """Architecture of the model."""
    data: DataConfig = field(default_factory=DataConfig)
    """Training data."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """Optimization."""
    losses: LossWeights = field(default_factory=LossWeights)
    """Weights of the losses."""
    adversarial: AdversarialConfig = field(default_factory=AdversarialConfig)
    """Image discriminators."""
    seed: Seed = 0
    """Random seed."""

    @model_validator(mode="after")
    def check_sizes(self) -> S3DNeRFConfig:
        """Check that frames share sources evenly, and that discriminator crops can be halved often enough."""
        batch, frames = self.train.batch_size, self.data.frames
        if batch % frames:
            raise ValueError(f"train.batch_size ({batch}) should be a multiple of data.frames ({frames})")
        crop, halvings = self.model.ray_size, len(self.adversarial.widths)
        if self.adversarial.start < 1 and crop % 2**halvings:
            reason = f"model.ray_size ({crop}) should be a multiple of {2**halvings}"
            raise ValueError(f"{reason} (2 ** {halvings}, one halving for each of adversarial.widths)")
        return self
