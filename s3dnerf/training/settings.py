"""All settings of a training run in one place; what a YAML file in configs/ holds."""

from __future__ import annotations

from dataclasses import dataclass, field

from pydantic import model_validator

from s3dnerf.constraints import Seed
from s3dnerf.data.config import DataConfig
from s3dnerf.models.s3dnerf.config import ModelConfig
from s3dnerf.training.adversarial import AdversarialConfig
from s3dnerf.training.losses import LossWeights
from s3dnerf.training.trainer import TrainConfig


@dataclass
class S3DNeRFConfig:
    """Settings of the model, its data and its training."""

    model: ModelConfig = field(default_factory=ModelConfig)
    """Sizes of the model."""
    data: DataConfig = field(default_factory=DataConfig)
    """Training data."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """Optimization."""
    losses: LossWeights = field(default_factory=LossWeights)
    """Weights of the loss terms."""
    adversarial: AdversarialConfig = field(default_factory=AdversarialConfig)
    """Discriminators of pictures."""
    seed: Seed = 0
    """Seed of everything random."""

    @model_validator(mode="after")
    def check_sizes(self) -> S3DNeRFConfig:
        """Frames share sources evenly, and what the discriminators see fits into a frame."""
        batch, frames = self.train.batch_size, self.data.frames
        if batch % frames:
            raise ValueError(f"train.batch_size ({batch}) should be a multiple of data.frames ({frames})")
        side, size = self.adversarial.network.side, self.model.image_size
        if self.adversarial.start < 1 and side > size:
            reason = f"adversarial.network.side ({side}) should be at most the {size} pixels of a frame"
            raise ValueError(f"{reason} (4 * model.ray_size), or adversarial.start 1")
        return self
