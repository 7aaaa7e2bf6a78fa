"""Losses, the trainer and its checkpoints."""

from s3dnerf.training.settings import S3DNeRFConfig
from s3dnerf.training.trainer import train

__all__ = ["S3DNeRFConfig", "train"]
