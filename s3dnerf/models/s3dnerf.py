"""S3D-NeRF: one portrait and speech -> frames, through a deformed radiance field (arXiv 2408.09347)."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn
from torch.nn import functional as F

from s3dnerf.config import from_dict
from s3dnerf.encoding.triplane import sample_triplane
from s3dnerf.face.camera import load_canonical_face
from s3dnerf.face.points import KEPT_POINTS, LIPS_INNER, LIPS_OUTER
from s3dnerf.face.regions import REGIONS
from s3dnerf.models.appearance_encoder import (
    Appearance,
    AppearanceEncoderConfig,
    HierarchicalFacialAppearanceEncoder,
)
from s3dnerf.models.audio_encoder import AudioEncoder, AudioEncoderConfig
from s3dnerf.models.deformation_field import (
    CrossModalFacialDeformationField,
    DeformationConfig,
    RegionCodes,
    describe_poses,
)
from s3dnerf.models.motion_encoder import MotionEncoder
from s3dnerf.models.radiance_field import RadianceField, RadianceFieldConfig
from s3dnerf.models.slot_attention import RegionTokens
from s3dnerf.models.super_resolution import SuperResolution, SuperResolutionConfig, enlarge
from s3dnerf.rendering.compositing import composite
from s3dnerf.rendering.rays import Camera, cast_rays, make_pixel_grid, project_points
from s3dnerf.rendering.sampling import SurfacePriorConfig, place_samples


@dataclass
class ModelConfig:
    """All sizes of the model."""

    ray_size: int = 64
    """Rays a side of the volume-rendered face; frames are four times as large."""
    samples: int = 8
    """Samples a ray."""
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
    surface: SurfacePriorConfig = field(default_factory=SurfacePriorConfig)
    """Where rays are sampled."""

    @property
    def image_size(self) -> int:
        """Side of the frames in pixels."""
        return 4 * self.ray_size


@dataclass(frozen=True)
class Portrait:
    """A batch of portraits with what the face tracker found in them."""

    image: Tensor
    """``[B, 3, S, S]`` in [0, 1]."""
    camera: Camera
    """Pose of the heads."""
    landmarks: Tensor
    """``[B, P, 3]`` in head space."""
    eyes: Tensor
    """``[B, 2]`` eye openness."""


@dataclass(frozen=True)
class Identity:
    """Everything that depends on the portrait alone; encoded once, used for every frame."""

    portrait: Portrait
    appearance: Appearance
    regions: RegionTokens
    """Its face regions (F_agg)."""

    def repeat(self, times: int) -> Identity:
        """Return the batch with each identity repeated ``times`` times in a row."""
        return map_tensors(self, lambda x: x.repeat_interleave(times, dim=0))


@dataclass(frozen=True)
class Rendering:
    """Rendered frames and what the losses look at."""

    image: Tensor
    """``[B, 3, 4r, 4r]``; about [0, 1], not clamped."""
    warped: Tensor
    """``[B, 3, 4r, 4r]`` the portrait warped by the field's flow."""
    coarse: Tensor
    """``[B, 3, r, r]`` the volume-rendered face over the small portrait."""
    alpha: Tensor
    """``[B, 1, r, r]``."""
    flow: Tensor
    """``[B, 2, r, r]`` where in the portrait each ray ends, minus where it started."""
    lattice: Tensor
    """``[B, points, 3 + ambient]`` the deformation on its lattice."""


class S3DNeRF(nn.Module, PyTorchModelHubMixin, library_name="s3dnerf", license="other"):
    """The whole model. ``from_pretrained`` and ``save_pretrained`` come from ``huggingface_hub``."""

    def __init__(self, config: ModelConfig | dict) -> None:
        """Build the model; a dict is what the mixin reads from ``config.json``."""
        super().__init__()
        if isinstance(config, dict):
            config = from_dict(ModelConfig, config, source="config.json")
        self.config = config
        self.appearance_encoder = HierarchicalFacialAppearanceEncoder(config.appearance)
        self.audio_encoder = AudioEncoder(config.audio)
        self.deformation_field = CrossModalFacialDeformationField(
            config.deformation,
            context_channels=config.appearance.widths[3],
            speech_width=config.audio.width,
            regions=len(REGIONS),
            landmarks=len(KEPT_POINTS),
        )
        self.motion_encoder = MotionEncoder(len(KEPT_POINTS), len(REGIONS), config.deformation.code_width)
        self.radiance_field = RadianceField(
            config.radiance, 3 * config.appearance.plane_channels, config.deformation.ambient
        )
        self.super_resolution = SuperResolution(
            config.super_resolution,
            rendered=3 + config.radiance.features + 1,
            detail=config.appearance.widths[0],
        )
        canonical = torch.from_numpy(load_canonical_face()[KEPT_POINTS]).float()
        self.register_buffer("canonical_landmarks", canonical)

    def encode_identity(self, portrait: Portrait) -> Identity:
        """Encode portraits once."""
        appearance = self.appearance_encoder(portrait.image, portrait.camera)
        displacement = portrait.landmarks - self.canonical_landmarks
        regions = self.deformation_field.describe_regions(appearance.context, displacement, portrait.eyes)
        return Identity(portrait, appearance, regions)

    def encode_speech(self, identity: Identity, windows: Tensor) -> Tensor:
        """Speech ``windows [B, samples]`` around frames -> motion codes ``[B, R, code]`` (F_cm)."""
        return self.deformation_field.speech_attention(identity.regions.tokens, self.audio_encoder(windows))

    def articulate(self, motion: Tensor, mean: Tensor) -> Tensor:
        """Widen what ``motion [B, R, code]`` does to lips and jaw, about its ``mean [1, R, code]`` over the speech."""
        widened = mean.lerp(motion, self.config.deformation.articulation)
        moved = torch.arange(motion.shape[1], device=motion.device) <= REGIONS.index("jaw_and_cheeks")
        return torch.where(moved[:, None], widened, motion)

    def drive(self, identity: Identity, motion: Tensor, eyes: Tensor, camera: Camera) -> RegionCodes:
        """Join motion codes ``[B, R, code]``, eye openness ``[B, 2]`` and the pose of the frame."""
        pose = describe_poses(identity.portrait.camera, camera)
        return self.deformation_field.combine_codes(identity.regions.tokens, motion, eyes, pose)

    def render(
        self,
        identity: Identity,
        codes: RegionCodes,
        camera: Camera,
        generator: torch.Generator | None = None,
    ) -> Rendering:
        """Render one frame for each item of the batch; a generator jitters the samples (training)."""
        size, count = self.config.ray_size, self.config.samples
        portrait = identity.portrait
        grid = make_pixel_grid(size, size, portrait.image.device)

        rays = cast_rays(grid.flatten(0, 1), camera)
        samples = place_samples(rays, self.config.surface, count, generator)
        positions = samples.positions.flatten(1, 2)

        lattice = self.deformation_field.deform_lattice(codes)
        deformation = self.deformation_field.lattice.read(lattice, positions)
        offsets, ambient = deformation[..., :3], deformation[..., 3:]
        source = project_points(positions + offsets, portrait.camera)

        appearance = torch.cat([sample_triplane(p, source) for p in identity.appearance.planes], dim=-1)
        radiance = self.radiance_field(appearance, ambient, positions, offsets)
        values = torch.cat([radiance.color, radiance.features, source[..., :2]], dim=-1)
        seen = composite(radiance.density.unflatten(1, (-1, count)), values.unflatten(1, (-1, count)), samples.lengths)

        rendered = seen.values.transpose(1, 2).unflatten(2, (size, size))
        alpha = seen.alpha.unflatten(1, (size, size)).unsqueeze(1)
        clear = 1.0 - alpha
        # What no ray stops at is the portrait's own background, which stands still.
        coarse = rendered[:, :3] + clear * shrink(portrait.image, 4)
        flow = rendered[:, -2:] - alpha * grid.permute(2, 0, 1)
        warped = warp(portrait.image, enlarge(flow, 4))
        detail = warp(identity.appearance.detail, enlarge(flow, 2))
        features = torch.cat([coarse, rendered[:, 3:-2], alpha], dim=1)
        image = self.super_resolution(features, warped, detail)
        return Rendering(image.float(), warped, coarse, alpha, flow, lattice)

    def locate_landmarks(self, identity: Identity, codes: RegionCodes, start: Tensor, rounds: int = 2) -> Tensor:
        """Find where the portrait's landmarks are in the frame: points that the field warps onto them.

        Fixed-point iteration from ``start [B, P, 3]`` (head space); only the last round carries gradients.
        """
        target = identity.portrait.landmarks
        points = start
        for index in range(rounds):
            with torch.set_grad_enabled(torch.is_grad_enabled() and index == rounds - 1):
                points = target - self.deformation_field.deform_points(codes, points).offsets
        return points


LIP_LANDMARKS = torch.from_numpy(KEPT_POINTS.searchsorted(sorted({*LIPS_INNER, *LIPS_OUTER})).astype("int64"))
"""Rows of the kept landmarks that lie on the lips."""


def warp(image: Tensor, flow: Tensor) -> Tensor:
    """Read ``image [B, C, H, W]`` where ``flow [B, 2, H, W]`` (image coordinates, relative) points."""
    grid = make_pixel_grid(*flow.shape[-2:], device=flow.device) + flow.permute(0, 2, 3, 1).float()
    return F.grid_sample(image.float(), grid, padding_mode="border", align_corners=False)


def shrink(image: Tensor, factor: int) -> Tensor:
    """Average ``image [B, C, H, W]`` over squares of ``factor`` pixels."""
    return F.avg_pool2d(image, factor)


def map_tensors(value, function):
    """Apply ``function`` to every tensor in nested dataclasses and lists; None stays None."""
    if value is None:
        return None
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, list):
        return [map_tensors(item, function) for item in value]
    return type(value)(**{part.name: map_tensors(getattr(value, part.name), function) for part in fields(value)})
