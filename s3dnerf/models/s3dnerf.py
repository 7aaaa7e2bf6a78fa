"""S3D-NeRF: one portrait and speech -> frames, through a deformed radiance field (arXiv 2408.09347)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Annotated

import torch
from huggingface_hub import PyTorchModelHubMixin
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from s3dnerf.config import check_config, from_dict
from s3dnerf.constraints import PositiveInt
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
    MAX_SPEECH_STEPS,
    CrossModalFacialDeformationField,
    DeformationConfig,
    PositionFeatures,
    RegionCodes,
    describe_poses,
)
from s3dnerf.models.motion_encoder import MotionDecoder, MotionEncoder
from s3dnerf.models.mouth_interior import (
    INNER_LIPS,
    MouthInterior,
    MouthInteriorConfig,
    MouthTones,
    measure_need,
    measure_opening,
    measure_tones,
)
from s3dnerf.models.radiance_field import RadianceField, RadianceFieldConfig
from s3dnerf.models.slot_attention import RegionTokens
from s3dnerf.models.source_expression import SourceExpression
from s3dnerf.models.super_resolution import SuperResolution, SuperResolutionConfig
from s3dnerf.ops.image import downsample, make_pixel_grid, upsample
from s3dnerf.ops.warp_source import warp_source_image
from s3dnerf.rendering.fovea import FoveaConfig, place_fovea
from s3dnerf.rendering.hair import look_past_rays, mark_hair, show_behind
from s3dnerf.rendering.mouth import UPPER_LIP, find_kept, look_into_mouth
from s3dnerf.rendering.rays import Camera, cast_rays
from s3dnerf.rendering.sampling import SurfacePriorConfig, place_samples
from s3dnerf.rendering.volume_rendering import DeformedField, interpolate_lattice, render_rays


@dataclass
class ModelConfig:
    """All sizes of the model."""

    ray_size: Annotated[PositiveInt, Field(ge=4, le=1024, multiple_of=4)] = 64
    """Rays a side of the volume-rendered face, a multiple of 4; frames are four times as large."""
    samples: Annotated[PositiveInt, Field(le=1024)] = 8
    """Samples a ray."""
    fovea: FoveaConfig = field(default_factory=FoveaConfig)
    """Where rays are twice as dense."""
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
    mouth: MouthInteriorConfig = field(default_factory=MouthInteriorConfig)
    """Inside of the mouth."""
    surface: SurfacePriorConfig = field(default_factory=SurfacePriorConfig)
    """Where rays are sampled."""

    @property
    def image_size(self) -> int:
        """Side of the frames in pixels."""
        return 4 * self.ray_size

    @model_validator(mode="after")
    def check_speech(self) -> ModelConfig:
        """The attention to speech has a place for every token of a window."""
        if self.deformation.fusion == "attention" and self.audio.steps > MAX_SPEECH_STEPS:
            sizes = f"audio.window ({self.audio.window}) and audio.logmel.hop ({self.audio.logmel.hop})"
            reason = f"should give the attention at most {MAX_SPEECH_STEPS} tokens of speech"
            raise ValueError(f"{sizes} {reason}, and give {self.audio.steps}")
        return self


@dataclass(frozen=True)
class Portrait:
    """A batch of portraits with what the face tracker found in them."""

    image: Tensor | None
    """``[B, 3, S, S]`` in [0, 1]; None where only movement counts."""
    camera: Camera
    """Pose of the heads."""
    landmarks: Tensor
    """``[B, P, 3]`` in head space."""
    eyes: Tensor
    """``[B, 2]`` eye openness."""
    matte: Tensor | None
    """``[B, 1, S, S]`` or smaller: how much of each pixel is the person, in [0, 1]; None where only movement counts."""


@dataclass(frozen=True)
class Identity:
    """Everything that depends on the portrait alone; encoded once, used for every frame."""

    portrait: Portrait
    appearance: Appearance | None
    """None where only movement counts."""
    regions: RegionTokens
    """Its face regions (F_agg)."""
    state: Tensor
    """``[B, R, code]`` motion codes that the portrait seems to show: a smile, lips that happen to be parted."""
    hair: Tensor | None
    """``[B, 1, 2r, 2r]`` how much of each pixel moves with the head, whatever rays see there; None likewise."""
    tones: MouthTones | None
    """Light on the mouth; None likewise."""

    def leave_pictures(self) -> Identity:
        """Return what moves the face alone, which is little to copy; it cannot be rendered."""
        portrait = replace(self.portrait, image=None, matte=None)
        return replace(self, portrait=portrait, appearance=None, hair=None, tones=None)

    def repeat(self, times: int) -> Identity:
        """Return the batch with each identity repeated ``times`` times in a row."""
        return map_tensors(self, lambda x: x.repeat_interleave(times, dim=0))

    def expand(self, times: int) -> Identity:
        """Return a batch of ``times`` views of the one identity in this; nothing is copied."""
        return map_tensors(self, lambda x: x.expand(times, *x.shape[1:]))


@dataclass(frozen=True)
class Rendering:
    """Rendered frames and what the losses look at."""

    image: Tensor
    """``[B, 3, 4r, 4r]``; about [0, 1], not clamped."""
    warped: Tensor
    """``[B, 3, 4r, 4r]`` the portrait warped by the field's flow."""
    coarse: Tensor
    """``[B, 3, r, r]`` the volume-rendered face over what lies behind it."""
    fine: Tensor
    """``[B, 3, 2r, 2r]`` the same, enlarged, with what the denser rays saw of mouth and eyes."""
    alpha: Tensor
    """``[B, 1, r, r]``."""
    flow: Tensor
    """``[B, 2, 2r, 2r]`` where in the portrait each ray ends, minus where it started."""
    lattice: Tensor
    """``[B, points, 3 + ambient]`` the deformation on its lattice."""


class S3DNeRF(nn.Module, PyTorchModelHubMixin, library_name="s3dnerf", license="other"):
    """The whole model. ``from_pretrained`` and ``save_pretrained`` come from ``huggingface_hub``."""

    def __init__(self, config: ModelConfig | dict) -> None:
        """Build the model; a dict is what the mixin reads from ``config.json``."""
        super().__init__()
        if isinstance(config, dict):
            config = from_dict(ModelConfig, config, source="config.json")
        check_config(config, "model")
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
        sizes = len(KEPT_POINTS), len(REGIONS), config.deformation.code_width
        self.motion_encoder, self.motion_decoder = MotionEncoder(*sizes), MotionDecoder(*sizes)
        self.source_expression = SourceExpression(len(KEPT_POINTS))
        self.radiance_field = RadianceField(
            config.radiance, 3 * config.appearance.plane_channels, config.deformation.ambient
        )
        self.super_resolution = SuperResolution(
            config.super_resolution,
            rendered=3 + config.radiance.features + 1,
            detail=config.appearance.widths[0],
        )
        self.mouth_interior = MouthInterior(config.mouth)
        canonical = torch.from_numpy(load_canonical_face()[KEPT_POINTS]).float()
        self.register_buffer("canonical_landmarks", canonical)
        self.register_buffer("inner_lips", INNER_LIPS, persistent=False)
        self.register_buffer("apart", LIPS_APART[INNER_LIPS], persistent=False)

    def encode_identity(self, portrait: Portrait) -> Identity:
        """Encode portraits once."""
        appearance = self.appearance_encoder(portrait.image, portrait.camera)
        displacement = portrait.landmarks - self.canonical_landmarks
        regions = self.deformation_field.describe_regions(appearance.context, displacement, portrait.eyes)
        state = self.motion_encoder(self.source_expression(displacement))
        hair = tones = None
        if portrait.matte is not None:
            hair = mark_hair(portrait.matte, portrait.camera, 2 * self.config.ray_size)
            tones = measure_tones(portrait.image, portrait.landmarks, portrait.camera)
        return Identity(portrait, appearance, regions, state, hair, tones)

    def encode_speech(self, identity: Identity, windows: Tensor, run: int = 1) -> Tensor:
        """Speech ``windows [B, samples]`` around frames, in runs of consecutive ones -> motion codes ``[B, R, code]``
        (F_cm)."""
        return self.deformation_field.speech_attention(identity.regions.tokens, self.audio_encoder(windows, run))

    def rest(self, identity: Identity) -> Tensor:
        """Motion codes ``[B, R, code]`` of silence, in which lips are closed."""
        silence = identity.state.new_zeros(len(identity.state), self.config.audio.samples)
        return self.encode_speech(identity, silence)

    def articulate(self, motion: Tensor) -> Tensor:
        """Prepare the motion codes ``[T, R, code]`` of a recording's frames for rendering.

        They are smoothed in time, and what they do to lips and jaw is widened about its mean over the recording.
        """
        config = self.config.deformation
        motion = smooth_in_time(motion, config.smoothing)
        widened = motion.mean(dim=0, keepdim=True).lerp(motion, config.articulation)
        moved = torch.arange(motion.shape[1], device=motion.device) <= REGIONS.index("jaw_and_cheeks")
        return torch.where(moved[:, None], widened, motion)

    def trust_portrait(self, identity: Identity) -> Identity:
        """Prepare an identity for rendering: of the expression that its portrait seems to show, believe a share."""
        still = identity.portrait.landmarks.new_zeros(1, *self.canonical_landmarks.shape)
        usual = self.motion_encoder(still).to(identity.state)
        state = usual.lerp(identity.state, self.config.deformation.portrait_trust)
        return replace(identity, state=state)

    def articulate_eyes(self, identity: Identity, eyes: Tensor) -> Tensor:
        """Prepare the eye openness ``[B, 2]`` of frames for rendering: widened about that of the portrait."""
        return identity.portrait.eyes.lerp(eyes, self.config.deformation.eye_articulation)

    def drive(
        self, identity: Identity, motion: Tensor, eyes: Tensor, camera: Camera, state: Tensor | None = None
    ) -> RegionCodes:
        """Join motion codes ``[B, R, code]``, eye openness ``[B, 2]`` and the pose of the frame.

        What counts is the change from the portrait. ``state [B, R, code]`` are its motion codes where they are known
        (in training); otherwise what the portrait seems to show stands for them.
        """
        change = motion - (identity.state if state is None else state)
        pose = describe_poses(identity.portrait.camera, camera)
        opened = eyes - identity.portrait.eyes
        return self.deformation_field.combine_codes(identity.regions.tokens, change, opened, pose)

    def render(
        self,
        identity: Identity,
        codes: RegionCodes,
        camera: Camera,
        generator: torch.Generator | None = None,
        lattice_points: PositionFeatures | None = None,
    ) -> Rendering:
        """Render one frame for each item of the batch; a generator jitters the samples (training).

        ``lattice_points`` spares those who render many frames to find out the same about the lattice each time.
        """
        size, count = self.config.ray_size, self.config.samples
        portrait = identity.portrait
        fovea = place_fovea(camera, self.config.fovea, 2 * size)
        grid = make_pixel_grid(size, size, portrait.image.device).flatten(0, 1)
        points = torch.cat([grid.expand(len(fovea.points), -1, -1), fovea.points], dim=1)

        samples = place_samples(cast_rays(points, camera), self.config.surface, count, generator)
        shape = self.deformation_field.lattice
        lattice = self.deformation_field.deform_lattice(codes, lattice_points)
        field = DeformedField(
            lattice=lattice,
            lattice_size=shape.size,
            lattice_center=shape.center,
            lattice_focus=shape.focus,
            lattice_extent=shape.extent,
            planes=identity.appearance.planes,
            camera=portrait.camera,
            radiance=self.radiance_field,
        )
        seen = render_rays(field, samples.positions, samples.deltas, 0.0 if self.training else EARLY_STOP_EPS)

        alpha = seen.alpha[..., None]
        flow = seen.values[..., -2:] - alpha * points
        rendered = torch.cat([seen.values[..., :-2], alpha, flow], dim=-1).transpose(1, 2)
        coarse = rendered[..., : size * size].unflatten(2, (size, size))
        fine = fovea.paste(rendered[..., size * size :], upsample(coarse, 2))
        # One portrait behind many frames is shrunk once.
        image = portrait.image[:1] if portrait.image.stride(0) == 0 else portrait.image
        behind = look_past_rays(
            downsample(image, 2).expand(len(fine), -1, -1, -1), identity.hair, camera, portrait.camera
        )
        coarse, fine = show_behind(coarse, downsample(behind, 2)), show_behind(fine, behind)
        warped, inputs = warp_source_image(portrait.image, identity.appearance.detail, fine)
        image = self.super_resolution(coarse[:, :-2], inputs, warped).float()
        image = self.open_mouth(image, identity, field, camera)
        return Rendering(image, warped, coarse[:, :3], fine[:, :3], coarse[:, -3:-2], fine[:, -2:], lattice)

    def open_mouth(self, image: Tensor, identity: Identity, field: DeformedField, camera: Camera) -> Tensor:
        """Put the inside of the mouth between the lips of frames ``image [B, 3, S, S]`` that open further than before.

        What the portrait shows of it is taken from there, the rest is painted. Where lips close, the warp is right.
        """
        portrait, tones, size = identity.portrait, identity.tones, image.shape[-1]
        lips = portrait.landmarks[:, self.inner_lips]
        outline = locate_points(
            lambda points: interpolate_lattice(field, points)[..., :3],
            lips,
            lips + self.apart,
            MOUTH_ROUNDS,
            MOUTH_PACE,
        )
        patch = place_fovea(camera, replace(self.config.fovea, eye=(0.0, 0.0)), size)
        opening = look_into_mouth(outline, lips[:, UPPER_LIP], camera, patch.points, size)
        # Most of the patch is lips and chin: these are spared the network.
        inside = opening.coverage.topk(math.ceil(MOUTH_SHARE * opening.coverage.shape[1])).indices
        patch, opening = patch.take(inside), opening.take(inside)
        kept = find_kept(outline, lips, camera, portrait.camera, patch.points, size)
        shown = F.grid_sample(portrait.image.float(), kept.places[:, None], "bicubic", "border", align_corners=False)
        colors = self.mouth_interior(opening, tones).lerp(shown[:, :, 0], kept.share[:, None])
        share = opening.coverage * measure_need(measure_opening(outline), tones.opening)[:, None]
        return patch.paste(patch.cut(image).lerp(colors, share[:, None]), image)

    def locate_landmarks(self, identity: Identity, codes: RegionCodes, start: Tensor, rounds: int = 2) -> Tensor:
        """Find where the portrait's landmarks are in the frame.

        Searches from ``start [B, P, 3]`` (head space); the result has the same shape and no gradients.
        """

        def deform(points: Tensor) -> Tensor:
            return self.deformation_field.deform_points(codes, points).offsets

        return locate_points(deform, identity.portrait.landmarks, start, rounds)


EARLY_STOP_EPS = 1e-3
"""Transmittance behind which samples are skipped, except in training."""
LIP_LANDMARKS = torch.from_numpy(KEPT_POINTS.searchsorted(sorted({*LIPS_INNER, *LIPS_OUTER})).astype("int64"))
"""Rows of the kept landmarks that lie on the lips."""
LIPS_APART = torch.zeros(len(KEPT_POINTS), 3)
"""Moves the points of a face's lips apart, up by 0.08 head units and down by 0.16: all points between open lips warp to
where the portrait's lips meet, so that a search for the lips' edges has to come from outside."""
for outline in (LIPS_OUTER, LIPS_INNER):
    LIPS_APART[KEPT_POINTS.searchsorted(outline[1:10]), 1] = -0.16
    LIPS_APART[KEPT_POINTS.searchsorted(outline[11:20]), 1] = 0.08
MOUTH_ROUNDS, MOUTH_PACE = 8, 0.5
"""Rounds of the search for the edges of the lips, and its pace: lips that close over an open portrait are squeezed."""
MOUTH_SHARE = 0.25
"""Share of the denser patch around the mouth that lies between the lips, at most; 0.13 was the widest mouth seen."""


@torch.no_grad()
def locate_points(
    deform: Callable[[Tensor], Tensor], target: Tensor, start: Tensor, rounds: int, pace: float = 1.0
) -> Tensor:
    """Find the points of frames that a warp takes to points ``target [B, P, 3]`` of the portrait.

    Fixed-point iteration from ``start [B, P, 3]`` (head space); ``deform`` returns the offsets at points. All steps but
    the last go ``pace`` of their way: where things are squeezed together (offsets change faster than places do), whole
    steps miss the point by more each time. No gradients.
    """
    points = start
    for _ in range(rounds - 1):
        points = points.lerp(target - deform(points), pace)
    return target - deform(points)


def smooth_in_time(series: Tensor, sigma: float) -> Tensor:
    """Smooth ``series [T, ...]`` by a Gaussian of ``sigma`` frames; its ends are held. Zero leaves it as it is."""
    reach = math.ceil(3.0 * sigma)
    if reach == 0:
        return series
    steps = torch.arange(-reach, reach + 1, device=series.device)
    weights = torch.softmax(-0.5 * (steps / sigma).square(), dim=0).to(series.dtype)
    nearby = (torch.arange(len(series), device=series.device)[:, None] + steps).clamp(0, len(series) - 1)
    return sum(weight * series[rows] for weight, rows in zip(weights, nearby.T, strict=True))


def map_tensors(value, function):
    """Apply ``function`` to every tensor in nested dataclasses and lists; anything else stays as it is."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, list):
        return [map_tensors(item, function) for item in value]
    if not is_dataclass(value):
        return value
    return type(value)(**{part.name: map_tensors(getattr(value, part.name), function) for part in fields(value)})
