"""All settings of a training run in one place; what a YAML file in configs/ holds."""

from __future__ import annotations

from dataclasses import dataclass, field

from s3dnerf.data.dataset import DataConfig
from s3dnerf.models.s3dnerf import ModelConfig
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
    seed: int = 0
    """Seed of everything random."""
