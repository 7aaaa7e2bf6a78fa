"""Losses, training loops and checkpoints."""

from s3dnerf.training.config import S3DNeRFConfig
from s3dnerf.training.s3dnerf import train

__all__ = ["S3DNeRFConfig", "train"]
