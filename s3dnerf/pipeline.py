"""The inference pipeline: source image + speech -> talking head video.

Example::

    pipeline = TalkingHeadPipeline.from_pretrained()
    video = pipeline("portrait.png", "speech.wav")
    for frame in video: ...            # uint8 [S, S, 3], one at a time
    video.save("talking.mp4")
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any

import numpy as np
import torch

from s3dnerf import limits
from s3dnerf.config import from_dict, to_dict
from s3dnerf.control import MotionFrame, count_output_frames
from s3dnerf.device import choose_device
from s3dnerf.encoded_portrait import EncodedPortrait
from s3dnerf.errors import ArgumentError
from s3dnerf.face.camera import HeadPose
from s3dnerf.face.coefficients import MotionCoefficients
from s3dnerf.face.motion_state import MotionState
from s3dnerf.face.portrait import Face, find_face
from s3dnerf.face.source_quality import describe_limits
from s3dnerf.fitting import fit_identity
from s3dnerf.framing import choose_framing, choose_size
from s3dnerf.geometry import draw_geometry, render_depth
from s3dnerf.live.session import TalkingHeadSession
from s3dnerf.media.audio import SpeechLevel, check_speech, count_frames, measure_level, stream_clean_speech
from s3dnerf.media.image import WHITE, ImagesInput, list_images
from s3dnerf.media.memory import AudioInput, Media, to_media
from s3dnerf.media.provenance import Provenance
from s3dnerf.models.fd2talk.frame_diffusion import FrameDiffusion, load_frame_diffusion
from s3dnerf.models.fd2talk.motion_diffusion import MotionDiffusion, load_motion_diffusion
from s3dnerf.models.fd2talk.motion_generator import MotionGenerator
from s3dnerf.models.s3dnerf.config import RenderConfig
from s3dnerf.models.s3dnerf.deformation_field import PositionFeatures
from s3dnerf.models.s3dnerf.identity import Identity
from s3dnerf.models.s3dnerf.s3dnerf import S3DNeRF
from s3dnerf.ops.image import to_bytes
from s3dnerf.paths import is_folder
from s3dnerf.precision import mixed_precision
from s3dnerf.reenactment import ReenactmentOptions, reenact
from s3dnerf.render_options import TRANSPARENT, RenderOptions, combine_options, parse_color
from s3dnerf.rendering.background import Background
from s3dnerf.rendering.photo_detail import add_photo_detail
from s3dnerf.rendering.threads import delay_by_one, map_in_threads
from s3dnerf.source_image import make_background, make_source, match_skin, open_eyes
from s3dnerf.speech_motion import encode_expression, stream_motion
from s3dnerf.structures import Camera, HostCopy, copy_to_device
from s3dnerf.talking_video import PhaseTimer, TalkingVideo
from s3dnerf.utterance import Utterance

SHIPPED_WEIGHTS = Path(__file__).parent / "weights" / "base"
log = logging.getLogger(__name__)
BATCH = {"cpu": 8, "cuda": 16, "mps": 16}
"""Frames per batch. Larger ones spend less time in Python, on a CPU in a lock that threads share, but more memory."""


class TalkingHeadPipeline:
    """A trained model with preprocessing, motion generation and compositing."""

    def __init__(
        self,
        model: S3DNeRF,
        device: str | torch.device = "cpu",
        batch: int | None = None,
        fit_steps: int = 0,
        weights: str = "unnamed",
    ) -> None:
        """Build a pipeline around a model.

        Args:
            model: the model.
            device: device to run on: "auto", "cpu", "cuda" or "cuda:1".
            batch: frames rendered per batch. None uses the value of :data:`BATCH` for the device.
            fit_steps: optimization steps by which each identity is fitted to its source (see ``fit_identity``).
            weights: name of the weights, for the metadata of videos.

        Raises:
            UserError: the device does not exist, or a number is out of range.
        """
        self.fit_steps = limits.FIT_STEPS.require("fit_steps", fit_steps)
        self.device = choose_device(device)
        self.weights = weights
        self.model = model.to(self.device).eval()
        self.batch = BATCH[self.device.type] if batch is None else limits.BATCH.require("batch", batch)

    @classmethod
    def from_pretrained(
        cls,
        checkpoint: str | Path | None = None,
        device: str = "auto",
        fit_steps: int = 0,
        settings: Mapping[str, float] | None = None,
    ) -> TalkingHeadPipeline:
        """Load the shipped weights, a folder made by ``save_pretrained`` or by training, or a hub id.

        Args:
            checkpoint: a model folder, a training checkpoint, or the id of a repository on the Hugging Face hub. None
                loads the shipped weights.
            device: "auto", "cpu" or "cuda".
            fit_steps: see ``__init__``.
            settings: inference settings that replace those stored with the weights: names and values of
                :class:`s3dnerf.models.s3dnerf.config.RenderConfig`, such as ``{"motion_scale": 1.3}``.

        Raises:
            UserError: ``checkpoint`` holds no model, or an argument is invalid.
        """
        limits.FIT_STEPS.require("fit_steps", fit_steps)
        place = choose_device(device)
        name = name_weights(checkpoint)
        if checkpoint is None:
            checkpoint = SHIPPED_WEIGHTS
        elif is_folder(Path(checkpoint) / "model"):
            checkpoint = Path(checkpoint) / "model"
        model = S3DNeRF.load(checkpoint)
        model.render_config = from_dict(RenderConfig, {**to_dict(model.render_config), **(settings or {})}, "settings")
        return cls(model, place, fit_steps=fit_steps, weights=name)

    def __call__(
        self,
        image: ImagesInput | EncodedPortrait,
        audio: AudioInput,
        options: RenderOptions | None = None,
        *,
        start: MotionState | None = None,
        **changes: Any,
    ) -> TalkingVideo:
        """Animate a source image with a speech recording.

        Args:
            image: source image with a face, in frontal to three-quarter view: a path, the bytes of a file, an image of
                Pillow, an array ``[H, W, 3]`` or a tensor ``[3, H, W]``; see :func:`s3dnerf.media.image.read_image`;
                or what ``encode_portrait`` returned for the same framing, size, face and background. A list of images
                of one person shows each region as the image does that shows it best; head pose at rest and background
                are those of the first one.
            audio: any file that ffmpeg reads, as a path or as bytes; or ``(samples, rate)``.
            options: what the video shows, see :class:`s3dnerf.render_options.RenderOptions`.
            start: the ``end_state`` of the previous utterance, from which head, eyes and mouth continue.
            changes: options by their names, such as ``pose="speech"``, in place of those in ``options``.

        Returns:
            The video, which is rendered when it is iterated over or saved.

        Raises:
            UserError: there is no usable face or speech, or an option is unknown or out of range.
        """
        options = self.check_options(combine_options(options, changes), continues=start is not None)
        timer = PhaseTimer()
        sound = to_media(audio, "audio")
        with timer("reading speech"):
            level = measure_level(stream_clean_speech(sound))
            check_speech(sound, level)
        portrait = image if isinstance(image, EncodedPortrait) else self.encode_portrait(image, options, timer)
        with timer("finding the face"):
            head = portrait.choose_head_motion(options)
        utterance = Utterance(portrait, options, head, sound, level, start)
        given = [audio] if isinstance(image, EncodedPortrait) else [*list_images(image), audio]
        files = [Path(value) for value in given if isinstance(value, (str, Path))]
        return TalkingVideo(
            count_output_frames(count_frames(level.samples), options.fps),
            portrait.framing.size,
            sound,
            timer,
            lambda on_device: utterance.render(self, timer, on_device),
            (*files, *options.inputs),
            utterance.ends,
            self.device,
            options.background == TRANSPARENT,
            options.fps,
            Provenance(self.weights, options.seed),
            portrait.framing.changing,
        )

    def stream(
        self,
        image: ImagesInput | EncodedPortrait,
        options: RenderOptions | None = None,
        *,
        level: SpeechLevel | None = None,
        watermark: str | None = None,
        **changes: Any,
    ) -> TalkingHeadSession:
        """Start a live session, which takes speech as it comes; see :mod:`s3dnerf.live.session`.

        Args:
            image: as in ``__call__``, or what ``encode_portrait`` returned for the same options.
            options: what frames show. Head motion from speech ("speech") needs to hear about five seconds ahead, so
                the default is "idle" here.
            level: loudness of the speech if it is known; by default it is estimated as the speech comes.
            watermark: a short text in the lower right corner of every frame.
            changes: options by their names.

        Raises:
            UserError: there is no usable face, or an option is out of range or needs a whole recording.
        """
        options = self.check_options(combine_options(options or RenderOptions(pose="idle"), changes))
        portrait = image if isinstance(image, EncodedPortrait) else self.encode_portrait(image, options)
        return TalkingHeadSession(self, portrait, options, level, watermark=watermark)

    def check_options(self, options: RenderOptions, *, continues: bool = False) -> RenderOptions:
        """Return options that this pipeline can follow, see ``RenderOptions.check``.

        Raises:
            UserError: an option is out of range, or needs frames of diffusion of another size than those of the model.
        """
        options.check(continues=continues)
        if options.renderer == "diffusion" or options.refine != "off":
            sizes = self.model.config.image_size, self.frame_diffusion.config.image_size
            if sizes[0] != sizes[1]:
                reason = "the model has frames of {} pixels, the diffusion model of {}".format(*sizes)
                raise ArgumentError("renderer", None, reason, "Use a model of that size, or the radiance field alone.")
        return options

    def encode_portrait(
        self, image: ImagesInput, options: RenderOptions, timer: PhaseTimer | None = None
    ) -> EncodedPortrait:
        """Find and encode a face, once for any number of videos with the same options.

        Args:
            image: as in ``__call__``.
            options: checked ones.
            timer: counts the time.

        Raises:
            UserError: there is no usable face.
        """
        timer = timer or PhaseTimer()
        side = self.model.config.image_size
        first, *rest = list_images(image)
        if rest and options.renderer == "diffusion":
            raise ArgumentError("renderer", "diffusion", "takes one image", "Use the radiance field, or one image.")
        over = parse_color(options.background) or WHITE
        with timer("finding the face"):
            found = find_face(first, side, options.face, over=over)
            others = [match_skin(find_face(part, side, over=over), found) for part in rest]
        notes = tuple(describe_limits([found, *others]))
        for note in notes:
            log.warning("image: %s", note)
        shown = choose_framing(found, options, options.size or side)
        identity = scene = None
        if options.renderer == "nerf":
            with timer("encoding identity"):
                identity = self.encode_identity(found, options.seed, others)
                if options.framing == "picture":
                    identity = self.model.anchor_body(identity)
                size = choose_size(shown, options)
                scene = make_background(self.model, found, identity, options.background, size, others)
        if scene is not None and scene.detail is not None and options.show == "color":
            side = scene.detail.side
        # The whole picture may be large, and only the framing needs it.
        found = replace(found, picture=found.image, eyes=open_eyes(self.model, found, others))
        return EncodedPortrait(found, identity, scene, shown, side, notes)

    @cached_property
    def motion_diffusion(self) -> MotionDiffusion:
        """The shipped model of motion from speech, loaded when it is first needed."""
        return load_motion_diffusion(device=self.device)

    def generate_motion(
        self, audio: Media, level: SpeechLevel, seed: int, liveliness: float = 1.0, frames: int | None = None
    ) -> Iterator[MotionCoefficients]:
        """Yield the motion of a recording of known level in blocks. The model is loaded for the first one."""
        generator = MotionGenerator(self.motion_diffusion, seed, liveliness)
        yield from stream_motion(generator, audio, level, frames)

    def encode_expression(self, blocks: Iterable[MotionCoefficients]) -> torch.Tensor:
        """Return the motion codes ``[T, R, code]`` of the expression of a whole recording, ready to render."""
        return self.model.prepare_motion(encode_expression(blocks, self.model, self.device))

    @cached_property
    def frame_diffusion(self) -> FrameDiffusion:
        """The shipped model of frames from motion, loaded when it is first needed."""
        return load_frame_diffusion(device=self.device)

    def reenact(self, video: str | Path, audio: AudioInput | None = None, **options: Any) -> Iterator[np.ndarray]:
        """Reenact a clip from its first frame, its audio and its tracked head poses, in its own framing.

        Args:
            video: the clip.
            audio: the speech, see ``__call__``. None uses the audio track of the clip.
            options: see :class:`s3dnerf.reenactment.ReenactmentOptions`.

        Yields:
            ``uint8 [H, W, 3]`` frames of the clip's size, at 25 frames per second, as many as the clip has.

        Raises:
            UserError: a number is out of range, or the clip or its audio cannot be used.
            ValueError: ``landmarks`` has a different shape.
        """
        return reenact(self, video, audio, ReenactmentOptions(**options))

    def encode_identity(self, face: Face, seed: int, others: Sequence[Face] = ()) -> Identity:
        """Encode a source, and fit the result to it if ``fit_steps`` is not zero.

        Args:
            face: the source.
            seed: of the fitting.
            others: the same person in other images, from which regions are taken that the first one shows less well.
        """
        with torch.no_grad(), self.autocast():
            encoded = [self.model.encode_identity(make_source(part, self.device)) for part in (face, *others)]
            identity, *rest = self.model.prepare_images(encoded)
        if self.fit_steps:
            identity = fit_identity(self.model, identity, self.fit_steps, seed, self.autocast())
        return replace(identity, others=rest)

    def render_frames(
        self,
        identity: Identity,
        frames: Iterable[MotionFrame],
        timer: PhaseTimer,
        background: Background,
        *,
        on_device: bool = False,
        show: str = "color",
    ) -> Iterator[Any]:
        """Render frames ``uint8 [S, S, C]`` in small batches, until the motion ends.

        They are arrays, or with ``on_device`` tensors that stay on the device. ``show`` is an option of
        ``RenderOptions``.
        """
        with torch.inference_mode(), self.autocast():
            lattice = self.model.deformation_field.encode_lattice()
        iterator = iter(frames)
        # Nobody waits for a whole batch to see the first frame.
        sizes = chain((1, max(self.batch - 1, 1)), repeat(self.batch))
        chunks = iter(lambda: list(islice(iterator, next(sizes))), [])

        def render(chunk: list[MotionFrame]) -> HostCopy | torch.Tensor:
            with torch.inference_mode(), self.autocast():
                batch = self.render_batch(identity, chunk, lattice, background, show)
            return batch if on_device else HostCopy(batch)

        if self.device.type == "cpu":
            batches = map_in_threads(render, chunks)
        else:  # A GPU renders one batch while the host processes the frames of the previous one.
            batches = map(render, chunks) if on_device else delay_by_one(map(render, chunks))
        while True:
            with timer("rendering"):
                batch = next(batches, None)
                frames_of_batch = batch.wait() if isinstance(batch, HostCopy) else batch
            if frames_of_batch is None:
                return
            yield from frames_of_batch

    def render_batch(
        self,
        identity: Identity,
        chunk: list[MotionFrame],
        lattice: PositionFeatures,
        background: Background,
        show: str = "color",
    ) -> torch.Tensor:
        """Render a few frames at once: ``uint8 [n, S, S, C]``, on the device."""
        motion, poses, eyes = zip(*chunk, strict=True)
        identity = identity.expand(len(chunk))
        camera = Camera.from_numpy(HeadPose.concatenate(poses), self.device)
        openness = copy_to_device(np.stack(eyes), self.device)
        openness = self.model.prepare_eyes(identity, openness)
        codes = torch.stack(motion)
        if show == "color":
            frame = self.model(identity, codes, openness, camera, lattice=lattice, background=background)
            image = frame.image
            if background.detail is not None:
                hidden = background.find_hidden(frame.alphas, frame.flows, frame.weights)
                return add_photo_detail(background.detail, image, frame.warped, hidden, frame.flows, frame.weights)
        else:
            depth, alpha = render_depth(self.model, identity, codes, openness, camera, lattice)
            image = draw_geometry(show, depth, alpha, camera, identity.image.shape[-1])
        return to_bytes(image)

    def autocast(self) -> torch.autocast:
        """Return the autocast context: bfloat16 where the hardware supports it, float32 elsewhere."""
        return mixed_precision(self.device)


def name_weights(checkpoint: str | Path | None) -> str:
    """Return the name of weights: "base" for the shipped ones, the name of a folder without its path, or a hub id."""
    if checkpoint is None:
        return SHIPPED_WEIGHTS.name
    if not is_folder(checkpoint):
        return str(checkpoint)
    folder = Path(checkpoint).resolve()
    return folder.parent.name if folder.name == "model" else folder.name
