"""Settings of stage 1 of FD2Talk: motion from speech."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field, model_validator

from s3dnerf.constraints import NonNegativeFloat, PositiveFloat, PositiveInt, Share, ShareBelowOne, Text, Width

Frames = Annotated[int, Field(ge=0, le=250)]
"""Frames at 25 a second, up to ten seconds."""


@dataclass
class MotionTransformerConfig:
    """Sizes of one diffusion transformer, and the frames that it sees."""

    width: Width = 120
    """Channels of a frame."""
    blocks: Annotated[PositiveInt, Field(le=64)] = 4
    """Transformer blocks."""
    heads: Annotated[PositiveInt, Field(le=64)] = 4
    """Attention heads."""
    speech_past: Frames = 3
    """Frames of speech before a frame that it attends to: the alignment mask."""
    speech_future: Frames = 3
    """Likewise after it."""
    motion_reach: Frames = 40
    """Frames of motion on either side that a frame attends to."""
    dropout: ShareBelowOne = 0.1
    """Dropout probability of speech features and of the hidden layers."""

    @model_validator(mode="after")
    def check_heads(self) -> MotionTransformerConfig:
        """Check that the heads divide the channels."""
        if self.width % self.heads:
            raise ValueError(f"width ({self.width}) should be a multiple of heads ({self.heads})")
        return self


@dataclass
class PoseTransformerConfig(MotionTransformerConfig):
    """Sizes of the pose transformer. Heads move before the voice, so it hears more of the future."""

    speech_past: Frames = 6
    """Frames of speech before a frame that it attends to: the alignment mask."""
    speech_future: Frames = 12
    """Likewise after it."""


@dataclass
class LipExpertConfig:
    """The tower of the lip expert over lip coefficients; its other tower is that of the sync discriminator."""

    frames: Annotated[PositiveInt, Field(le=64)] = 5
    """Consecutive frames that are compared with speech together: those of the sync discriminator."""
    width: Width = 192
    """Channels of the hidden layers."""
    embedding: Width = 128
    """Length of the embeddings: that of the sync discriminator."""


@dataclass
class MotionSamplingConfig:
    """How motion is sampled. Training fits all but steps and guidance of the pose on people held out of it."""

    steps: Annotated[PositiveInt, Field(le=1000)] = 6
    """Denoising steps. With more, heads have less motion above 1.5 Hz."""
    guidance: NonNegativeFloat = 1.5
    """Scale of classifier-free guidance (Ho and Salimans, 2022) of pose, lids and gaze; 1 is none."""
    expression_guidance: NonNegativeFloat = 1.0
    """Likewise of the expression; lips open wider with more."""
    expert_guidance: Share = 0.0
    """Scale of the guidance of the lips by the lip expert, in the second half of the steps; 0 is none."""
    speed: PositiveFloat = 10.0
    """Mean speed of the head in degrees per second that the model is asked for at liveliness 1."""
    brow_factor: PositiveFloat = 1.0
    """Factor of the height of the brows over that of the mean face."""
    fast_factor: Annotated[PositiveFloat, Field(ge=0.25, le=4.0)] = 1.0
    """Factor of head motion above 1.5 Hz."""


@dataclass
class MotionDiffusionConfig:
    """Architecture of the motion diffusion model."""

    frames: Annotated[PositiveInt, Field(ge=8, le=1000)] = 100
    """Frames that are generated together."""
    known_frames: Annotated[PositiveInt, Field(le=100)] = 10
    """Last frames of the motion so far, on which the next ones depend."""
    diffusion_steps: Annotated[PositiveInt, Field(ge=2, le=10_000)] = 1000
    """Steps of the cosine noise schedule (Nichol and Dhariwal, 2021)."""
    features: Literal["moonshine", "wav2vec2", "hubert"] = "moonshine"
    """Speech features, see ``AudioEncoderConfig``."""
    pretrained: Text | None = None
    """Folder or hub name of the wav2vec 2.0 or HuBERT model."""
    layout: Literal["two", "one", "expression"] = "two"
    """"two": a transformer for expression and one for pose, eyes and gaze; "one": the pose transformer predicts all;
    "expression": there is no pose transformer, and head, eyes and gaze rest."""
    alignment_mask: bool = True
    """Whether a frame attends to its own speech only; otherwise to that of the whole window."""
    expression: MotionTransformerConfig = field(default_factory=MotionTransformerConfig)
    """Predicts the expression."""
    pose: PoseTransformerConfig = field(default_factory=PoseTransformerConfig)
    """Predicts head pose, eye openness and gaze."""
    lip_expert: LipExpertConfig = field(default_factory=LipExpertConfig)
    """Judges whether generated lips match the speech."""
    sampling: MotionSamplingConfig = field(default_factory=MotionSamplingConfig)
    """How motion is sampled."""

    @property
    def speech_past(self) -> int:
        """Frames of speech before the first frame of a window that the model needs."""
        return max(self.expression.speech_past, self.pose.speech_past)

    @property
    def speech_future(self) -> int:
        """Frames of speech after the last frame of a window that the model needs."""
        return max(self.expression.speech_future, self.pose.speech_future)

    @model_validator(mode="after")
    def check_window(self) -> MotionDiffusionConfig:
        """Check that known frames are fewer than generated ones, and that pre-trained features have a source."""
        if self.known_frames >= self.frames:
            raise ValueError(f"known_frames ({self.known_frames}) should be less than frames ({self.frames})")
        if self.features != "moonshine" and self.pretrained is None:
            raise ValueError(f"features '{self.features}' need pretrained, the folder or hub id of the model")
        return self
