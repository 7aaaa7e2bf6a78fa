"""S3D-NeRF: one source image and speech -> frames, through a deformed radiance field (arXiv 2408.09347)."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from s3dnerf.config import check_config, to_dict
from s3dnerf.face.camera import load_canonical_face
from s3dnerf.face.points import KEPT_POINTS, LIPS_INNER, LIPS_OUTER
from s3dnerf.face.regions import REGIONS
from s3dnerf.hub import find_model
from s3dnerf.models.audio_encoder import AudioEncoder
from s3dnerf.models.pretrained import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    PretrainedModel,
    fill_model,
    read_config,
    read_json,
    read_weights,
)
from s3dnerf.models.s3dnerf.appearance_encoder import HierarchicalFacialAppearanceEncoder
from s3dnerf.models.s3dnerf.config import (
    RENDER_CONFIG_FILE,
    ModelConfig,
    RenderConfig,
    read_configs,
    rename_parameter,
)
from s3dnerf.models.s3dnerf.deformation_field import (
    AMBIENT_COORDINATES,
    CrossModalFacialDeformationField,
    PositionFeatures,
    RegionCodes,
    encode_poses,
)
from s3dnerf.models.s3dnerf.edge_search import find_search_box, locate_edges
from s3dnerf.models.s3dnerf.eye_interior import LIDS, LIDS_APART, EyeInterior, compute_closed_weight
from s3dnerf.models.s3dnerf.identity import Identity, MotionIdentity, Rendering
from s3dnerf.models.s3dnerf.motion_encoder import MotionDecoder, MotionEncoder
from s3dnerf.models.s3dnerf.motion_smoothing import smooth_gaussian
from s3dnerf.models.s3dnerf.mouth_interior import (
    INNER_LIPS,
    MouthInterior,
    compute_interior_weight,
    measure_mouth_colors,
    measure_opening,
    measure_smile,
)
from s3dnerf.models.s3dnerf.radiance_field import RadianceField
from s3dnerf.models.s3dnerf.source_expression import SourceExpression, scale_estimate, separate_expressions
from s3dnerf.models.s3dnerf.super_resolution import SuperResolution
from s3dnerf.ops.constant import constant, select_rows
from s3dnerf.ops.image import downsample, make_pixel_grid
from s3dnerf.ops.warp_source import warp_source_image
from s3dnerf.paths import is_file
from s3dnerf.rendering.background import Background, composite_background
from s3dnerf.rendering.body_motion import fade_to_border, fit_body_offsets
from s3dnerf.rendering.foveation import FoveatedRays, place_foveated_rays
from s3dnerf.rendering.layers import compose_rays
from s3dnerf.rendering.opening import UPPER_LIP, find_source_interior, measure_opening_at
from s3dnerf.rendering.person_layer import resize_matte
from s3dnerf.rendering.rays import project_points
from s3dnerf.rendering.sampling import Samples, sample_rays
from s3dnerf.rendering.source_blending import SourceView, blend_images, blend_views, weigh_views
from s3dnerf.rendering.volume_rendering import DeformedField, render_rays
from s3dnerf.structures import Camera, Source

EARLY_STOP_EPS = 1e-3
"""Transmittance below which the remaining samples of a ray are skipped, except in training."""
LIP_LANDMARKS = torch.from_numpy(KEPT_POINTS.searchsorted(sorted({*LIPS_INNER, *LIPS_OUTER})).astype("int64"))
"""Rows of the kept landmarks that lie on the lips."""
LIPS_APART = torch.zeros(len(INNER_LIPS), 3)
"""Offsets that part the inner edges of the lips, up by 0.08 and down by 0.16 head units. All points between open lips
deform to the line where the lips of the source meet, so the search for the edges of the lips has to start outside."""
LIPS_APART[1:10, 1], LIPS_APART[11:20, 1] = -0.16, 0.08
MOUTH_FRACTION = 0.25
"""Upper bound of the fraction of the mouth's foveated cells between the lips; the largest fraction observed is 0.13."""


@dataclass(frozen=True)
class FrameRays:
    """The rays of frames, the same for all source images."""

    foveated: FoveatedRays
    """The last rays, which are denser around mouth and eyes."""
    samples: Samples
    """Samples along all rays."""


class S3DNeRF(PretrainedModel):
    """The whole model.

    Encode a source once, encode speech, and render frames::

        identity = model.encode_identity(source)
        motion = model.encode_speech(identity.expand(len(windows)), windows)
        rendering = model(identity.expand(len(motion)), motion, eyes, camera)
    """

    canonical_landmarks: Tensor
    inner_lips: Tensor
    lips_apart: Tensor

    def __init__(self, config: ModelConfig, render_config: RenderConfig | None = None) -> None:
        """Build the model.

        Args:
            config: the architecture.
            render_config: inference settings, see :meth:`prepare_motion`. The defaults have no effect.

        Raises:
            UserError: the value of a setting is invalid.
        """
        super().__init__()
        check_config(config, "model")
        self.config, self.render_config = config, render_config or RenderConfig()
        check_config(self.render_config, "rendering")
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
        self.radiance_field = RadianceField(config.radiance, 3 * config.appearance.plane_channels, AMBIENT_COORDINATES)
        self.super_resolution = SuperResolution(
            config.super_resolution,
            rendered=3 + config.radiance.features + 1,
            detail=config.appearance.widths[0],
        )
        self.mouth_interior = MouthInterior()
        self.eye_interior = EyeInterior() if config.eye_interior else None
        canonical = torch.from_numpy(load_canonical_face()[KEPT_POINTS]).float()
        self.register_buffer("canonical_landmarks", canonical)
        self.register_buffer("inner_lips", INNER_LIPS, persistent=False)
        self.register_buffer("lips_apart", LIPS_APART, persistent=False)

    @classmethod
    def load(cls, source: str | Path) -> S3DNeRF:
        """Load a model in evaluation mode from a folder or the Hugging Face hub. Earlier versions are supported.

        Args:
            source: folder with ``config.json`` and ``model.safetensors``, or a hub id.

        Raises:
            UserError: a file is missing or broken, or the weights do not match the settings.
        """
        folder = find_model(source, (CONFIG_FILE, RENDER_CONFIG_FILE, WEIGHTS_FILE))
        render = read_json(folder / RENDER_CONFIG_FILE) if is_file(folder / RENDER_CONFIG_FILE) else None
        model = cls(*read_configs(read_config(folder, source), render, str(folder / CONFIG_FILE)))
        weights = {rename_parameter(name): value for name, value in read_weights(folder, source).items()}
        fill_model(model, weights, folder / WEIGHTS_FILE)
        return model.eval()

    from_pretrained = load

    def encode_identity(self, source: Source) -> Identity:
        """Encode sources with mattes, once for all frames."""
        assert source.matte is not None, "rendering needs a matte"
        appearance = self.appearance_encoder(source.image, source.camera)
        motion = self._encode_motion_identity(source, appearance.context)
        return Identity(
            **vars(motion),
            image=source.image,
            appearance=appearance,
            matte=source.matte,
            person=resize_matte(source.matte, source.image.shape[-1] // 2),
            mouth_colors=measure_mouth_colors(source.image, source.landmarks, source.camera),
            resolution=torch.full_like(source.camera.scale, source.resolution),
        )

    def encode_motion_identity(self, source: Source) -> MotionIdentity:
        """Encode the part of an identity that motion depends on."""
        return self._encode_motion_identity(source, self.appearance_encoder(source.image, source.camera).context)

    def _encode_motion_identity(self, source: Source, context: Tensor) -> MotionIdentity:
        displacement = source.landmarks - self.canonical_landmarks
        regions = self.deformation_field.encode_regions(context, displacement, source.eyes)
        source_motion = self.motion_encoder(self.source_expression(displacement))
        return MotionIdentity(source.camera, source.landmarks, source.eyes, regions, source_motion)

    def encode_speech(self, identity: MotionIdentity, windows: Tensor, consecutive: int = 1) -> Tensor:
        """Encode speech ``windows [B, samples]`` around frames as motion codes ``[B, R, code]`` (F_cm).

        Every ``consecutive`` windows belong to consecutive frames; the audio that they share is encoded once.
        """
        speech = self.audio_encoder(windows, consecutive)
        return self.deformation_field.speech_attention(identity.regions.tokens, speech)

    def encode_silence(self, identity: MotionIdentity) -> Tensor:
        """Return the motion codes ``[B, R, code]`` of silence, for which lips are closed."""
        motion = identity.source_motion
        return self.encode_speech(identity, motion.new_zeros(len(motion), self.config.audio.samples))

    def prepare_motion(self, motion: Tensor) -> Tensor:
        """Apply the inference settings to the motion codes ``[T, R, code]`` of a whole recording.

        The codes are smoothed in time. Those of lips and jaw are scaled about their mean over the recording.
        """
        motion = smooth_gaussian(motion, self.render_config.motion_smoothing)
        return self.scale_motion(motion, motion.mean(dim=0, keepdim=True))

    def scale_motion(self, motion: Tensor, mean: Tensor) -> Tensor:
        """Scale the motion codes ``[T, R, code]`` of lips and jaw about their ``mean [1, R, code]``."""
        scaled = mean.lerp(motion, self.render_config.motion_scale)
        moved = torch.arange(motion.shape[1], device=motion.device) <= REGIONS.index("jaw_and_cheeks")
        return torch.where(moved[:, None], scaled, motion)

    def prepare_identity(self, identity: Identity) -> Identity:
        """Apply the inference settings to an identity, and find closed eyes, which are generated where they open.

        The expression estimated in the source is scaled, less so if the mouth is closed or wide open.
        """
        neutral = identity.landmarks.new_zeros(1, *self.canonical_landmarks.shape)
        neutral = self.motion_encoder(neutral).to(identity.source_motion)
        scale = scale_estimate(identity.mouth_colors.opening, self.render_config.source_expression_scale)
        closed = compute_closed_weight(identity.eyes)
        is_painted = self.eye_interior is not None and bool((closed > 0.0).any())
        return replace(
            identity,
            source_motion=neutral.lerp(identity.source_motion, scale[:, None, None].to(neutral)),
            closed_eyes=closed if is_painted else None,
        )

    def prepare_images(self, identities: Sequence[Identity]) -> list[Identity]:
        """Apply the inference settings to one person in several images ``[1, ...]``, as :meth:`prepare_identity` does.

        What the images show together determines the expression in each of them better than one alone.
        """
        first, *rest = identities
        prepared = [self.prepare_identity(first), *rest]
        if not rest:
            return prepared
        displacement = torch.cat([identity.landmarks for identity in identities]) - self.canonical_landmarks
        opening = torch.cat([identity.mouth_colors.opening for identity in identities])
        scale = scale_estimate(opening, self.render_config.source_expression_scale)
        motion = self.motion_encoder(separate_expressions(self.source_expression, displacement, scale))
        return [
            replace(identity, source_motion=codes[None])
            for identity, codes in zip(prepared, motion.to(first.source_motion), strict=True)
        ]

    def anchor_body(self, identity: Identity) -> Identity:
        """Return an identity whose body does not move at the border of the frame, for frames pasted into a picture."""
        size = identity.person.shape[-1]
        points = self.deformation_field.lattice.points.expand(len(identity.eyes), -1, -1)
        return replace(
            identity,
            body_reach=fade_to_border(project_points(points, identity.camera)[..., :2]),
            person=identity.person * fade_to_border(make_pixel_grid(size, size, points.device)),
            others=[self.anchor_body(other) for other in identity.others],
        )

    def prepare_eyes(self, identity: MotionIdentity, eyes: Tensor) -> Tensor:
        """Apply the inference settings to eye openness ``[B, 2]``: scale its change relative to the source."""
        return identity.eyes.lerp(eyes, self.render_config.eye_motion_scale)

    def prepare_other_eyes(self, identity: MotionIdentity, other: MotionIdentity, eyes: Tensor) -> Tensor:
        """Return eye openness ``[B, 2]`` prepared for another image, given what is prepared for the first one."""
        return eyes + (self.render_config.eye_motion_scale - 1.0) * (identity.eyes - other.eyes)

    def forward(
        self,
        identity: Identity,
        motion: Tensor,
        eyes: Tensor,
        camera: Camera,
        source_motion: Tensor | None = None,
        generator: torch.Generator | None = None,
        lattice: PositionFeatures | None = None,
        background: Background | None = None,
    ) -> Rendering:
        """Render one frame, of the size of the source image, for each item of the batch.

        From back to front, a frame shows the background, the person layer, the volume-rendered head refined by
        super-resolution, and the interiors of the mouth and of eyes that the source shows closed.

        Args:
            identity: identities of the sources.
            motion: ``[B, R, code]`` motion codes.
            eyes: ``[B, 2]`` eye openness.
            camera: head poses in the frames.
            source_motion: motion codes of the sources, see :meth:`drive`.
            generator: random generator for stratified samples (training). Without one, samples lie at interval centers.
            lattice: the result of ``deformation_field.encode_lattice``, for callers that render many frames.
            background: background to composite behind the person. By default the background moves with the head, as in
                training.
        """
        sources = [identity, *identity.others]
        rays = self.cast_frame_rays(camera, identity.image.shape[-1] // 4, generator)
        needed = self.mark_needed_points(rays.samples.positions, sources)
        lids = [eyes, *(self.prepare_other_eyes(identity, other, eyes) for other in identity.others)]
        states = [source_motion, *[None] * len(identity.others)]
        fields = [
            self.deform_field(source, self.drive(source, motion, lid, camera, state), lattice, needed)
            for source, lid, state in zip(sources, lids, states, strict=True)
        ]
        views = [self.render_view(*pair, camera, rays) for pair in zip(sources, fields, strict=True)]
        lips = [self.locate_inner_lips(*pair) for pair in zip(sources, fields, strict=True)]
        weights = weigh_views(views, camera, lids, measure_opening(lips[0]))
        view = blend_views(views, weights)
        detail_scale = self.render_config.source_detail_scale
        image = self.super_resolution(view.coarse[:, :-2], view.inputs, view.warped, detail_scale).float()
        mouths = [self.composite_mouth_interior(image, *pair, camera) for pair in zip(sources, lips, strict=True)]
        faces = [self.composite_eye_interior(*part, camera) for part in zip(mouths, sources, fields, strict=True)]
        image = blend_images(faces, weights)
        seen = [view.alpha for view in views], [view.flow for view in views], weights
        if background is not None:
            image = composite_background(background, image, *seen)
        return Rendering(image, view.warped, view.coarse[:, :3], view.fine[:, :3], fields[0].lattice, *seen)

    def cast_frame_rays(self, camera: Camera, size: int, generator: torch.Generator | None = None) -> FrameRays:
        """Place samples along ``size`` rays per side, followed by the foveated rays."""
        foveated = place_foveated_rays(camera, 2 * size)
        grid = make_pixel_grid(size, size, camera.scale.device).flatten(0, 1)
        points = torch.cat([grid.expand(len(foveated.points), -1, -1), foveated.points], dim=1)
        return FrameRays(foveated, sample_rays(points, camera, self.config.samples, generator))

    def mark_needed_points(self, positions: Tensor, sources: Sequence[Identity]) -> Tensor | None:
        """Return which points of the lattice are read, ``bool [points]``; None for all of them.

        These are the points around the samples of rays, at ``positions``, and those around lips and lids, whose edges
        are searched for. In training, the loss on the size of the deformation reads all points.
        """
        lattice = self.deformation_field.lattice
        needed = None if self.training else lattice.mark_cells(positions)
        if needed is not None:
            for source in sources:
                needed |= lattice.mark_box(*find_search_box(source.landmarks[:, self.inner_lips]))
                if source.closed_eyes is not None:
                    for eye in LIDS.chunk(2):
                        needed |= lattice.mark_box(*find_search_box(select_rows(source.landmarks, eye)))
        return needed

    def render_view(
        self, identity: Identity, field: DeformedField, camera: Camera, frame_rays: FrameRays
    ) -> SourceView:
        """Render frames as one source image shows them, up to super-resolution."""
        samples, foveated = frame_rays.samples, frame_rays.foveated
        early_stop_eps = 0.0 if self.training else EARLY_STOP_EPS
        rays = render_rays(field, samples.positions, samples.deltas, early_stop_eps)
        # A source image that is expanded to the batch is downsampled once.
        image = identity.image[:1] if identity.image.stride(0) == 0 else identity.image
        image = downsample(image, 2).expand(len(camera.scale), -1, -1, -1)
        coarse, fine = compose_rays(rays, foveated, image, identity.person, camera, identity.camera)
        warped, inputs = warp_source_image(identity.image, identity.appearance.detail, fine)
        openness = identity.eyes, identity.mouth_colors.opening
        return SourceView(identity.camera, identity.resolution, *openness, coarse, fine, warped, inputs)

    def drive(
        self,
        identity: MotionIdentity,
        motion: Tensor,
        eyes: Tensor,
        camera: Camera,
        source_motion: Tensor | None = None,
    ) -> RegionCodes:
        """Combine motion codes ``[B, R, code]``, eye openness ``[B, 2]`` and the pose of the frame.

        The deformation depends on the change from the source. ``source_motion [B, R, code]`` are the motion codes of
        the source if they are known (in training). By default they are estimated from the source.
        """
        motion_delta = motion - (identity.source_motion if source_motion is None else source_motion)
        pose = encode_poses(identity.camera, camera)
        body = fit_body_offsets(camera, identity.camera) if self.config.deformation.body_motion else None
        tokens, eyes_delta = identity.regions.tokens, eyes - identity.eyes
        reach = identity.body_reach
        return self.deformation_field.combine_codes(tokens, motion_delta, eyes_delta, pose, body, reach)

    def deform_field(
        self,
        identity: Identity,
        codes: RegionCodes,
        lattice: PositionFeatures | None = None,
        needed: Tensor | None = None,
    ) -> DeformedField:
        """Return the radiance fields of the sources, deformed by ``codes``.

        Where only some points of the lattice will be read, ``needed`` marks them, see ``deform_lattice``.
        """
        shape = self.deformation_field.lattice
        return DeformedField(
            lattice=self.deformation_field.deform_lattice(codes, lattice, needed),
            lattice_size=shape.size,
            lattice_center=shape.center,
            lattice_focus=shape.focus,
            lattice_extent=shape.extent,
            planes=identity.appearance.planes,
            camera=identity.camera,
            radiance=self.radiance_field,
        )

    def locate_inner_lips(self, identity: Identity, field: DeformedField) -> Tensor:
        """Locate the inner edge of the lips in the frame, ``[B, 20, 3]`` in head space."""
        return locate_edges(field, identity.landmarks[:, self.inner_lips], self.lips_apart)

    def composite_mouth_interior(self, image: Tensor, identity: Identity, outline: Tensor, camera: Camera) -> Tensor:
        """Composite the interior of the mouth into frames ``image [B, 3, S, S]``.

        Where they open further than the source, pixels that the source shows are warped from it, and the network
        generates the others. Where they do not, the deformed field is correct and stays as it is, except for the teeth
        of a smile.
        """
        size, colors = image.shape[-1], identity.mouth_colors
        lips = identity.landmarks[:, self.inner_lips]
        patch = place_foveated_rays(camera, size, eye_size=(0.0, 0.0))
        opening = measure_opening_at(outline, lips[:, UPPER_LIP], camera, patch.points, size)
        # Most cells of the patch show lips and chin. The network skips them.
        inside = opening.coverage.topk(self.count_covered(opening.coverage)).indices
        patch, opening = patch.select(inside), opening.select(inside)
        visible = find_source_interior(outline, lips, camera, identity.camera, patch.points, size)
        shown = F.grid_sample(identity.image.float(), visible.points[:, None], "bicubic", "border", align_corners=False)
        shown = shown[:, :, 0]
        painted = self.mouth_interior(opening, colors).lerp(shown, visible.visibility[:, None])
        weight = opening.coverage * compute_interior_weight(measure_opening(outline), colors.opening)[:, None]
        teeth = opening.coverage * visible.visibility * measure_smile(colors.opening)[:, None]
        mouth = patch.gather(image).lerp(shown, teeth[:, None]).lerp(painted, weight[:, None])
        return patch.paste(mouth, image)

    def count_covered(self, coverage: Tensor) -> int:
        """Return how many cells of frames, given their ``coverage [B, N]``, are composited.

        As many as the frame with most of them needs. In training and on a GPU, which would have to wait for the number,
        as many as any frame may need.
        """
        if self.training or coverage.device.type != "cpu" or torch.compiler.is_compiling():
            return math.ceil(MOUTH_FRACTION * coverage.shape[1])
        return max(1, int((coverage > 0.0).sum(dim=1).max()))

    def composite_eye_interior(self, image: Tensor, identity: Identity, field: DeformedField, camera: Camera) -> Tensor:
        """Composite generated eyes into frames ``image [B, 3, S, S]`` where eyes that the source shows closed open."""
        if identity.closed_eyes is None or self.eye_interior is None:
            return image
        lids = locate_edges(field, select_rows(identity.landmarks, LIDS), constant(LIDS_APART, image.device))
        irises, skin = self.eye_interior.locate_irises(identity.landmarks), identity.mouth_colors.skin
        return self.eye_interior.composite(image, lids, irises, skin, identity.closed_eyes, camera)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write settings, inference settings and weights into a folder."""
        super().save_pretrained(folder)
        text = json.dumps(to_dict(self.render_config), indent=2, sort_keys=True)
        (Path(folder) / RENDER_CONFIG_FILE).write_text(text, "utf-8")
