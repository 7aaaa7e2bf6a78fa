"""Settings of S3D-NeRF: the architecture and the inference settings.

Next to the weights, ``config.json`` holds the architecture and ``render_config.json`` the inference settings. Files of
earlier versions, which held both under other names, are read through :data:`SETTING_ALIASES`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import Field, model_validator

from s3dnerf.config import from_dict
from s3dnerf.constraints import NonNegativeFloat, PositiveInt, Share
from s3dnerf.models.audio_encoder import AudioEncoderConfig
from s3dnerf.models.pretrained import CONFIG_FILE, rename_settings
from s3dnerf.models.s3dnerf.appearance_encoder import AppearanceEncoderConfig
from s3dnerf.models.s3dnerf.deformation_field import MAX_SPEECH_STEPS, DeformationConfig
from s3dnerf.models.s3dnerf.radiance_field import RadianceFieldConfig
from s3dnerf.models.s3dnerf.super_resolution import SuperResolutionConfig

RENDER_CONFIG_FILE = "render_config.json"


@dataclass
class ModelConfig:
    """Architecture of the model."""

    ray_size: Annotated[PositiveInt, Field(ge=4, le=1024, multiple_of=4)] = 64
    """Rays per side of the volume-rendered face, a multiple of 4; frames are four times as large."""
    samples: Annotated[PositiveInt, Field(le=1024)] = 8
    """Samples per ray."""
    appearance: AppearanceEncoderConfig = field(default_factory=AppearanceEncoderConfig)
    """Hierarchical facial appearance encoder."""
    audio: AudioEncoderConfig = field(default_factory=AudioEncoderConfig)
    """Audio encoder."""
    deformation: DeformationConfig = field(default_factory=DeformationConfig)
    """Cross-modal facial deformation field."""
    radiance: RadianceFieldConfig = field(default_factory=RadianceFieldConfig)
    """Canonical radiance field."""
    super_resolution: SuperResolutionConfig = field(default_factory=SuperResolutionConfig)
    """Super-resolution."""
    eye_interior: bool = True
    """Whether the model can generate eyes that a source shows closed. Models of earlier versions cannot."""

    @property
    def image_size(self) -> int:
        """Side of the frames in pixels."""
        return 4 * self.ray_size

    @model_validator(mode="after")
    def check_speech(self) -> ModelConfig:
        """Check that the attention to speech has a position for every token of a window."""
        if self.deformation.fusion == "attention" and self.audio.steps > MAX_SPEECH_STEPS:
            reason = f"should give the attention at most {MAX_SPEECH_STEPS} tokens of speech"
            raise ValueError(f"audio.window ({self.audio.window}) {reason}, and gives {self.audio.steps}")
        return self


@dataclass
class RenderConfig:
    """Inference settings. The defaults have no effect, as in training."""

    motion_scale: NonNegativeFloat = 1.0
    """Scale of the motion of lips and jaw about its mean over the speech. Rendering narrows openings that are as thin
    as a ray; larger motion codes compensate for this."""
    eye_motion_scale: NonNegativeFloat = 1.0
    """Scale of the change of eye openness relative to the source; the opening between lids is also as thin as a ray."""
    motion_smoothing: NonNegativeFloat = 0.0
    """Standard deviation, in frames, of the Gaussian that smooths motion codes in time."""
    source_expression_scale: Share = 1.0
    """Fraction of the expression estimated in the source that is treated as expression. The rest is attributed to the
    person's own face shape: one image does not show whether lips are full or pursed."""
    source_detail_scale: Share = 1.0
    """Fraction of the source's own detail that is kept where super-resolution changes little; 0 keeps none."""


SETTING_ALIASES = {
    "deformation.articulation": "render.motion_scale",
    "deformation.eye_articulation": "render.eye_motion_scale",
    "deformation.smoothing": "render.motion_smoothing",
    "deformation.portrait_trust": "render.source_expression_scale",
    "super_resolution.kept_detail": "render.source_detail_scale",
    "deformation.lattice.size": "deformation.lattice_size",
    "deformation.lattice.center": None,
    "deformation.lattice.reach": None,
    "deformation.lattice.focus": None,
    "deformation.heads": None,
    "deformation.ambient": None,
    "audio.logmel": None,
    "fovea": None,
    "mouth": None,
    "surface": None,
}
"""Names in the ``config.json`` of earlier versions -> current names; None for settings that have become constants."""
PARAMETER_ALIASES = {
    "deformation_field.warp.to_shares.": "deformation_field.network.region_head.",
    "deformation_field.warp.narrow.": "deformation_field.network.down.",
    "deformation_field.warp.widen.": "deformation_field.network.up.",
    "deformation_field.warp.": "deformation_field.network.",
    "deformation_field.to_portrait.": "deformation_field.to_identity_code.",
}
"""Prefixes of parameter names in the weights of earlier versions -> current prefixes; the first match applies."""


def read_configs(
    architecture: Mapping[str, Any], render: Mapping[str, Any] | None = None, source: str = CONFIG_FILE
) -> tuple[ModelConfig, RenderConfig]:
    """Read the contents of ``config.json`` and ``render_config.json``, including those of earlier versions.

    Args:
        architecture: contents of ``config.json``.
        render: contents of ``render_config.json``, if there is one.
        source: name of the first file in error messages.

    Raises:
        UserError: a name is unknown or a value is invalid.
    """
    tree = {"render": dict(render or {}), "eye_interior": False, **rename_settings(architecture, SETTING_ALIASES)}
    tree["deformation"] = {"body_motion": False, **tree.get("deformation", {})}
    render_tree = tree.pop("render")
    return from_dict(ModelConfig, tree, source), from_dict(RenderConfig, render_tree, RENDER_CONFIG_FILE)


def rename_parameter(name: str) -> str:
    """Return the current name of a parameter."""
    for old, new in PARAMETER_ALIASES.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name
