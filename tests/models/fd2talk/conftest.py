"""A small motion diffusion model with random weights."""

from __future__ import annotations

import pytest
import torch

from s3dnerf.models.fd2talk.config import MotionDiffusionConfig, MotionTransformerConfig, PoseTransformerConfig
from s3dnerf.models.fd2talk.motion_diffusion import MotionDiffusion


def make_small(**settings: object) -> MotionDiffusion:
    """Return a model whose zero-initialized layers are random too."""
    torch.manual_seed(0)
    sizes = {"width": 16, "blocks": 2, "heads": 2, "motion_reach": 6}
    model = MotionDiffusion(
        MotionDiffusionConfig(
            frames=20,
            known_frames=4,
            expression=MotionTransformerConfig(**sizes, speech_past=2, speech_future=1),
            pose=PoseTransformerConfig(**sizes, speech_past=1, speech_future=4),
            **settings,
        )
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
        model.mean.normal_()
        model.std.uniform_(0.5, 2.0)
    return model.eval()


@pytest.fixture(scope="session")
def small_model() -> MotionDiffusion:
    return make_small()
