"""What each step of S3D-NeRF's training trains."""

from __future__ import annotations

from s3dnerf.data.batch import BatchContent
from s3dnerf.training.config import TrainConfig

MOTION_INTERVAL = 2
"""Steps between motion losses in the image stages."""


class Curriculum:
    """The stages of a run: motion alone, then images too, at half the resolution before the full one."""

    def __init__(self, config: TrainConfig, image_size: int, motion_interval: int = MOTION_INTERVAL) -> None:
        self.config, self.image_size, self.motion_interval = config, image_size, motion_interval

    def __call__(self, step: int) -> BatchContent:
        """Return the content of the batches of a step."""
        fine_from = self.config.motion_steps + self.config.coarse_steps
        size = self.image_size // 2 if self.config.coarse_steps and step < fine_from else self.image_size
        images = step >= self.config.motion_steps
        return BatchContent(size, images, speech=not images or step % self.motion_interval == 0)


def find_missing_stage(config: TrainConfig) -> str:
    """Return one line about the image stage that a run does not reach; empty if it reaches both."""
    steps, motion, coarse = config.steps, config.motion_steps, config.coarse_steps
    if 0 < steps <= motion:
        return f"no images are trained: train.motion_steps ({motion}) is not less than train.steps ({steps})"
    if 0 < steps <= motion + coarse and coarse:
        stages = f"train.motion_steps + train.coarse_steps ({motion + coarse})"
        return f"no images of the full size are trained: {stages} is not less than train.steps ({steps})"
    return ""
