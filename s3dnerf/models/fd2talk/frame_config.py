"""Settings of stage 2 of FD2Talk: frames from motion."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field, model_validator

from s3dnerf.constraints import NonNegativeFloat, PositiveInt, Width

LATENT_STRIDE = 8
"""Pixels per latent along each axis."""


@dataclass
class FrameAutoencoderConfig:
    """Sizes of the autoencoder."""

    widths: tuple[Width, Width] = (64, 96)
    """Channels at a quarter and an eighth of the size of the frame."""
    channels: Width = 8
    """Channels of the latents."""


@dataclass
class FrameDenoiserConfig:
    """Sizes of the denoising UNet."""

    widths: tuple[Width, Width, Width] = (32, 64, 128)
    """Channels at the size of the latents, a half and a quarter of it. The coarsest attends to the source."""
    layers: Annotated[PositiveInt, Field(le=8)] = 1
    """Residual blocks at each size."""
    heads: Annotated[PositiveInt, Field(le=64)] = 4
    """Attention heads."""
    groups: PositiveInt = 16
    """Groups of the group normalization."""

    @model_validator(mode="after")
    def check_widths(self) -> FrameDenoiserConfig:
        """Check that heads and groups divide the channels."""
        for name in ("heads", "groups"):
            if any(width % getattr(self, name) for width in self.widths):
                raise ValueError(f"widths {list(self.widths)} should be multiples of {name} ({getattr(self, name)})")
        return self


@dataclass
class FrameDiffusionConfig:
    """Architecture of the frame diffusion model."""

    image_size: Annotated[PositiveInt, Field(ge=64, le=1024, multiple_of=32)] = 256
    """Side of the frames in pixels."""
    start: Literal["warped", "noise"] = "warped"
    """"warped": the diffusion leads from the latents of the warped portrait to those of the frame, in few steps.
    "noise": from noise, as in the paper; the warped portrait is a condition only."""
    diffusion_steps: Annotated[PositiveInt, Field(ge=2, le=10_000)] = 4
    """Steps of the diffusion: 4 from the warped portrait, 1000 from noise."""
    sampling_steps: Annotated[PositiveInt, Field(le=1000)] = 4
    """Steps of sampling, at most ``diffusion_steps``; from the warped portrait always as many: 4, from noise 25."""
    noise: NonNegativeFloat = 1.0
    """Standard deviation of the noise that is added to the latents of the warped portrait, relative to the latents'.
    With less than their distance, noisy latents tell the frame, and errors of the first step grow in the others."""
    sees_previous: bool = False
    """Whether each frame sees the one before, as the paper has it. A model that has learnt little copies its errors."""
    autoencoder: FrameAutoencoderConfig = field(default_factory=FrameAutoencoderConfig)
    """Turns frames into latents and back."""
    denoiser: FrameDenoiserConfig = field(default_factory=FrameDenoiserConfig)
    """Predicts the latents of a frame."""

    @model_validator(mode="after")
    def check_steps(self) -> FrameDiffusionConfig:
        """Check that the numbers of steps fit each other."""
        if self.start == "warped" and self.sampling_steps != self.diffusion_steps:
            raise ValueError(
                f"sampling_steps ({self.sampling_steps}) should be diffusion_steps ({self.diffusion_steps}) "
                "if start is 'warped'"
            )
        if self.sampling_steps > self.diffusion_steps:
            raise ValueError(
                f"sampling_steps ({self.sampling_steps}) should be at most diffusion_steps ({self.diffusion_steps})"
            )
        return self
