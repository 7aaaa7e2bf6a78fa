"""The inference pipeline: source image + speech -> talking head video.

Example::

    pipeline = TalkingHeadPipeline.from_pretrained()
    video = pipeline("portrait.png", "speech.wav")
    for frame in video: ...            # uint8 [S, S, 3], one at a time
    video.save("talking.mp4")
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any

import numpy as np
import torch

from s3dnerf import limits
from s3dnerf.config import from_dict, to_dict
from s3dnerf.device import choose_device
from s3dnerf.errors import ArgumentError
from s3dnerf.face.camera import HeadPose
from s3dnerf.face.coefficients import MotionCoefficients
from s3dnerf.face.crop import CropPaster
from s3dnerf.face.head_motion import choose_head_motion
from s3dnerf.face.matting import segment_person
from s3dnerf.face.motion import iterate_blinks, rotate_head
from s3dnerf.face.motion_state import (
    MotionState,
    blend_eye_openness,
    blend_head_motion,
    blend_mouth_motion,
    relative_head_pose,
    remember_last,
)
from s3dnerf.face.points import POINT_COUNT
from s3dnerf.face.portrait import Face, extract_face, find_face
from s3dnerf.face.video import track_head
from s3dnerf.fitting import fit_identity
from s3dnerf.framing import choose_framing
from s3dnerf.media.audio import (
    SpeechLevel,
    check_speech,
    count_frames,
    measure_level,
    stream_clean_speech,
)
from s3dnerf.media.image import WHITE, ImageInput
from s3dnerf.media.memory import AudioInput, Media, to_media
from s3dnerf.media.video import stream_frames
from s3dnerf.models.fd2talk.frame_diffusion import FrameDiffusion, load_frame_diffusion
from s3dnerf.models.fd2talk.frame_renderer import FrameRenderer, list_expressions, render_portrait
from s3dnerf.models.fd2talk.motion_diffusion import MotionDiffusion, load_motion_diffusion
from s3dnerf.models.fd2talk.motion_generator import MAX_LIVELINESS, MotionGenerator
from s3dnerf.models.s3dnerf.config import RenderConfig
from s3dnerf.models.s3dnerf.deformation_field import PositionFeatures
from s3dnerf.models.s3dnerf.identity import Identity
from s3dnerf.models.s3dnerf.s3dnerf import S3DNeRF
from s3dnerf.paths import is_folder
from s3dnerf.precision import mixed_precision
from s3dnerf.render_options import KEEP, MOTIONS, TRANSPARENT, check_options, check_renderer, parse_color
from s3dnerf.rendering.background import Background
from s3dnerf.rendering.threads import delay_by_one, map_in_threads
from s3dnerf.source_image import make_background, make_source
from s3dnerf.speech_motion import drive_portrait, encode_audio, encode_expression, replace_brows, stream_motion
from s3dnerf.structures import Camera, HostCopy, copy_to_device
from s3dnerf.talking_video import PhaseTimer, TalkingVideo, measure_time

SHIPPED_WEIGHTS = Path(__file__).parent / "weights" / "base"
BATCH = {"cpu": 4, "cuda": 16, "mps": 16}
"""Frames per batch. On the CPU a batch fits in the caches; on a GPU it outlasts the launch overhead of Python."""


class TalkingHeadPipeline:
    """A trained model with preprocessing, motion generation and compositing."""

    def __init__(
        self, model: S3DNeRF, device: str | torch.device = "cpu", batch: int | None = None, fit_steps: int = 0
    ) -> None:
        """Build a pipeline around a model.

        Args:
            model: the model.
            device: device to run on: "auto", "cpu", "cuda" or "cuda:1".
            batch: frames rendered per batch. None uses the value of :data:`BATCH` for the device.
            fit_steps: optimization steps by which each identity is fitted to its source (see ``fit_identity``).

        Raises:
            UserError: the device does not exist, or a number is out of range.
        """
        self.fit_steps = limits.FIT_STEPS.require("fit_steps", fit_steps)
        self.device = choose_device(device)
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
        if checkpoint is None:
            checkpoint = SHIPPED_WEIGHTS
        elif is_folder(Path(checkpoint) / "model"):
            checkpoint = Path(checkpoint) / "model"
        model = S3DNeRF.load(checkpoint)
        model.render_config = from_dict(RenderConfig, {**to_dict(model.render_config), **(settings or {})}, "settings")
        return cls(model, place, fit_steps=fit_steps)

    def __call__(
        self,
        image: ImageInput,
        audio: AudioInput,
        *,
        pose: str | Path = "idle",
        turn: tuple[float, float] = (0.0, 0.0),
        blink: str = "auto",
        background: str = "keep",
        framing: str = "crop",
        size: int | None = None,
        face: int | None = None,
        seed: int = 0,
        start: MotionState | None = None,
        liveliness: float = 1.0,
        method: str = "s3dnerf",
        renderer: str = "nerf",
        refine: str = "off",
        max_side: int = 1920,
    ) -> TalkingVideo:
        """Animate a source image with a speech recording.

        Args:
            image: source image with a face, in frontal to three-quarter view: a path, the bytes of a file, an image of
                Pillow, an array ``[H, W, 3]`` or a tensor ``[3, H, W]``; see :func:`s3dnerf.media.image.read_image`.
            audio: any file that ffmpeg reads, as a path or as bytes; or ``(samples, rate)``.
            pose: "speech" (head, blinks and brows follow from the speech), "idle" (gentle motion), "static", or a video
                that provides the head motion.
            turn: degrees by which the head is turned from its pose in the source, to the viewer's right and up, 40 at
                most. The head motion starts from the turned pose.
            blink: "auto" or "off".
            background: "keep" for the static background of the source, "transparent", or a color such as "green" or
                "#00ff00" that replaces it and is also seen through transparent pixels of the source.
            framing: "crop" returns the square around the head, "picture" pastes it back into the whole source image.
            size: side of that square in pixels, an even number from 16 to 4096. The default is the model's own size.
                The whole image keeps its size, up to ``max_side``.
            face: number of the face to use when there are several; 1 is the largest.
            seed: seed of motion and blinks, 0 or more.
            start: the ``end_state`` of the previous utterance, from which head, eyes and mouth continue.
            liveliness: factor of the head's speed for the pose "speech", 0 to 2.
            method: what moves the face: "s3dnerf", or "fd2talk", whose expression coefficients drive the same renderer.
            renderer: "nerf", or for the method "fd2talk" also "diffusion", which renders without the radiance field.
            refine: "off", or "diffusion", which refines frames of the radiance field by the same diffusion model.
            max_side: largest side of frames of the framing "picture" in pixels, 64 to 4096.

        Returns:
            The video, which is rendered when it is iterated over or saved.

        Raises:
            UserError: there is no usable face or speech, or an option is unknown or out of range.
        """
        check_options(pose, turn, blink, background, framing, size, face, seed, max_side)
        limits.require_number("liveliness", liveliness, 0.0, MAX_LIVELINESS)
        check_renderer(method, renderer, refine, background, start is not None)
        uses_field = renderer == "nerf"
        if not uses_field or refine != "off":
            self.require_frame_diffusion()
        timer = PhaseTimer()
        files = [value for value in (image, audio) if isinstance(value, (str, Path))]
        sound = to_media(audio, "audio")
        with timer("reading speech"):
            level = measure_level(stream_clean_speech(sound))
            check_speech(sound, level)
        with timer("finding the face"):
            found = find_face(image, self.model.config.image_size, face, over=parse_color(background) or WHITE)
            first = rotate_head(found.pose, *turn)
            poses = None if pose == "speech" else choose_head_motion(first, pose, seed, found.pose)
        with timer("encoding identity"):
            identity = self.encode_identity(found, seed) if uses_field else None
            scene = make_background(self.model, found, identity, background) if identity else None
        side = self.model.config.image_size
        shown = choose_framing(framing, found, side if size is None else int(size), max_side)
        # The whole picture may be large, and only the framing needs it.
        found = replace(found, picture=found.image)

        ends: deque[MotionState] = deque(maxlen=1)
        # Number of frames of head motion and of blinks already used. A different motion starts at its first frame.
        # Motion from speech begins anew with each recording.
        same_pose = start is not None and pose != "speech" and (start.pose, start.seed) == (str(pose), seed)
        same_blink = start is not None and (start.blink, start.seed) == (blink, seed)
        passed = 0 if start is None else max(1, start.pose_frames) if same_pose else 1
        blinked = 0 if start is None else max(1, start.blink_frames) if same_blink else 1

        def show(on_device: bool) -> Iterator[np.ndarray | torch.Tensor]:
            with timer("encoding speech"):
                blocks: Iterable[MotionCoefficients] = self.generate_motion(sound, level, seed, liveliness)
                if method == "fd2talk":
                    blocks = list(blocks)
                    motion = self.encode_expression(blocks)
                else:
                    assert identity is not None, "speech is encoded for the radiance field"
                    motion = encode_audio(self.model, identity, sound, level)
            blinks = iterate_blinks(found.eyes, seed) if blink == "auto" else repeat(found.eyes)
            blinks = islice(blinks, max(0, blinked - 1), None)
            if start is not None:
                motion = blend_mouth_motion(motion, start)
            codes: Iterable[torch.Tensor] = motion
            if poses is None:
                driven = drive_portrait(blocks, self.model, identity, found, first)
                codes = motion if method == "fd2talk" else replace_brows(motion, driven.brows)
                # An utterance that continues another one is blended from a head at rest.
                track = driven.poses if start is None else chain([first], driven.poses)
                if blink == "auto":
                    blinks = driven.eyes if start is None else chain([found.eyes], driven.eyes)
            else:
                track = poses(max(0, passed - 1))
            eyes = blinks
            if start is not None:
                track = blend_head_motion(track, found.pose, start)
                eyes = blend_eye_openness(blinks, found.eyes, start)
            last_pose: deque[HeadPose] = deque(maxlen=1)
            last_eyes: deque[np.ndarray] = deque(maxlen=1)
            kept = remember_last(track, last_pose), remember_last(eyes, last_eyes)
            keep = on_device and shown.is_square(side) and refine == "off"
            if identity is None or scene is None:
                rendered = self.diffuse_frames(found, list_expressions(blocks), *kept, seed, timer)
            else:
                rendered = self.render_frames(identity, codes, *kept, timer, scene, on_device=keep)
            if refine == "diffusion":
                rendered = self.refine_frames(found, rendered, seed, timer)
            for frame in rendered:
                yield frame if isinstance(frame, torch.Tensor) else shown.compose(frame)
            turn_end, shift_end, zoom_end = relative_head_pose(found.pose, last_pose[0])
            eyes_end = last_eyes[0] / np.maximum(found.eyes, 1e-6)
            state = MotionState(
                pose=str(pose),
                seed=seed,
                pose_frames=passed + len(motion),
                blink=blink,
                blink_frames=blinked + len(motion),
                turn=tuple(turn_end.tolist()),
                shift=tuple(shift_end.tolist()),
                zoom=zoom_end,
                eyes=tuple(eyes_end.tolist()),
                mouth=tuple(map(tuple, motion[-1].tolist())),
            )
            ends.append(state)

        inputs = tuple(map(Path, [*files, *([] if pose in MOTIONS else [pose])]))
        alpha = background == TRANSPARENT
        frames = count_frames(level.samples)
        return TalkingVideo(frames, shown.size, sound, timer, show, inputs, ends, self.device, alpha)

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

    def require_frame_diffusion(self) -> None:
        """Raise UserError if the frames of the diffusion model have another size than those of the radiance field."""
        sizes = self.model.config.image_size, self.frame_diffusion.config.image_size
        if sizes[0] != sizes[1]:
            reason = "the model has frames of {} pixels, the diffusion model of {}".format(*sizes)
            raise ArgumentError("renderer", None, reason, "Use a model of that size, or the radiance field alone.")

    def diffuse_frames(
        self,
        face: Face,
        expressions: Iterable[np.ndarray],
        poses: Iterable[HeadPose],
        eyes: Iterable[np.ndarray],
        seed: int,
        timer: PhaseTimer,
    ) -> Iterator[np.ndarray]:
        """Render frames ``uint8 [S, S, 3]`` of a portrait by diffusion, see ``render_portrait``."""
        with timer("encoding identity"):
            renderer = FrameRenderer(self.frame_diffusion, face.image, seed)
            matte = segment_person(face.image)
        frames = render_portrait(renderer, face, matte, expressions, poses, eyes)
        return measure_time(frames, timer, "rendering")

    def refine_frames(
        self, face: Face, frames: Iterator[np.ndarray], seed: int, timer: PhaseTimer
    ) -> Iterator[np.ndarray]:
        """Refine frames ``uint8 [S, S, 3]`` of the radiance field by diffusion."""
        renderer = FrameRenderer(self.frame_diffusion, face.image, seed)
        for frame in frames:
            with timer("refining"):
                refined = renderer.refine(frame)
            yield refined

    def reenact(
        self,
        video: str | Path,
        audio: AudioInput | None = None,
        freeze_mouth: bool = False,
        freeze_pose: bool = False,
        max_frames: int | None = None,
        seed: int = 0,
        landmarks: np.ndarray | None = None,
        method: str = "s3dnerf",
        renderer: str = "nerf",
        refine: str = "off",
    ) -> Iterator[np.ndarray]:
        """Reenact a clip from its first frame, its audio and its tracked head poses, in its own framing.

        Args:
            video: the clip.
            audio: the speech, see ``__call__``. None uses the audio track of the clip.
            freeze_mouth: hold the speech of the first frame.
            freeze_pose: hold the head pose of the first frame.
            max_frames: maximum number of frames, counted from the first.
            seed: seed of the blinks, 0 or more.
            landmarks: ``[T, 478, 3]`` landmarks of the clip if already tracked (normalized image coordinates).
            method: what moves the face, see ``__call__``.
            renderer: see ``__call__``.
            refine: see ``__call__``.

        Yields:
            ``uint8 [H, W, 3]`` frames of the clip's size, at 25 frames per second, as many as the clip has.

        Raises:
            UserError: a number is out of range, or the clip or its audio cannot be used.
            ValueError: ``landmarks`` has a different shape.
        """
        limits.SEED.require("seed", seed)
        check_renderer(method, renderer, refine, KEEP, False)
        if renderer == "diffusion" or refine == "diffusion":
            self.require_frame_diffusion()
        if max_frames is not None:
            limits.REENACTED_FRAMES.require("max_frames", max_frames)
        if landmarks is not None and (landmarks.ndim != 3 or landmarks.shape[1:] != (POINT_COUNT, 3)):
            raise ValueError(f"expected landmarks [T, {POINT_COUNT}, 3], got {list(landmarks.shape)}")
        head = track_head(video, landmarks=landmarks, max_frames=max_frames)
        first = next(stream_frames(video))
        found = extract_face(first, head.landmarks[:1], head.crop, self.model.config.image_size)
        pose, found = head.pose, replace(found, pose=head.pose[:1])

        sound = to_media(audio or video, "audio")
        level = measure_level(stream_clean_speech(sound))
        poses = (pose[:1] if freeze_pose else pose[index : index + 1] for index in range(len(pose)))
        eyes = iterate_blinks(found.eyes, seed)
        blocks = self.generate_motion(sound, level, seed, frames=len(pose))
        if renderer == "diffusion":
            expressions = list_expressions(blocks)
            shown = repeat(next(expressions)) if freeze_mouth else expressions
            frames = self.diffuse_frames(found, shown, poses, eyes, seed, PhaseTimer())
        else:
            identity = self.encode_identity(found, seed)
            background = make_background(self.model, found, identity)
            if method == "fd2talk":
                codes = self.encode_expression(blocks)
            else:
                codes = encode_audio(self.model, identity, sound, level, len(pose))
            heard: Iterable[torch.Tensor] = repeat(codes[0]) if freeze_mouth else codes
            frames = self.render_frames(identity, heard, poses, eyes, PhaseTimer(), background)
        if refine == "diffusion":
            frames = self.refine_frames(found, frames, seed, PhaseTimer())
        paster = CropPaster(first, head.crop)
        for frame in frames:
            yield paster.paste(frame)

    def encode_identity(self, face: Face, seed: int) -> Identity:
        """Encode a source, and fit the result to it if ``fit_steps`` is not zero."""
        with torch.no_grad(), self.autocast():
            identity = self.model.encode_identity(make_source(face, self.device))
            identity = self.model.prepare_identity(identity)
        if self.fit_steps == 0:
            return identity
        return fit_identity(self.model, identity, self.fit_steps, seed, self.autocast())

    def render_frames(
        self,
        identity: Identity,
        motion: Iterable[torch.Tensor],
        poses: Iterator[HeadPose],
        eyes: Iterator[np.ndarray],
        timer: PhaseTimer,
        background: Background,
        *,
        on_device: bool = False,
    ) -> Iterator[Any]:
        """Render frames ``uint8 [S, S, C]`` in small batches, until the motion ``[R, code]`` or the poses end.

        They are arrays, or with ``on_device`` tensors that stay on the device.
        """
        together = zip(motion, poses, eyes, strict=False)
        with torch.inference_mode(), self.autocast():
            lattice = self.model.deformation_field.encode_lattice()
        chunks = iter(lambda: list(islice(together, self.batch)), [])

        def render(chunk: list[tuple[torch.Tensor, HeadPose, np.ndarray]]) -> HostCopy | torch.Tensor:
            with torch.inference_mode(), self.autocast():
                batch = self.render_batch(identity, chunk, lattice, background)
            return batch if on_device else HostCopy(batch)

        if self.device.type == "cpu":
            batches = map_in_threads(render, chunks)
        else:  # A GPU renders one batch while the host processes the frames of the previous one.
            batches = map(render, chunks) if on_device else delay_by_one(map(render, chunks))
        while True:
            with timer("rendering"):
                batch = next(batches, None)
                frames = batch.wait() if isinstance(batch, HostCopy) else batch
            if frames is None:
                return
            yield from frames

    def render_batch(
        self,
        identity: Identity,
        chunk: list[tuple[torch.Tensor, HeadPose, np.ndarray]],
        lattice: PositionFeatures,
        background: Background,
    ) -> torch.Tensor:
        """Render a few frames at once: ``uint8 [n, S, S, C]``, on the device."""
        motion, poses, eyes = zip(*chunk, strict=True)
        identity = identity.expand(len(chunk))
        camera = Camera.from_numpy(HeadPose.concatenate(poses), self.device)
        openness = copy_to_device(np.stack(eyes), self.device)
        openness = self.model.prepare_eyes(identity, openness)
        rendering = self.model(identity, torch.stack(motion), openness, camera, lattice=lattice, background=background)
        return (255.0 * rendering.image + 0.5).to(torch.uint8).permute(0, 2, 3, 1)

    def autocast(self) -> torch.autocast:
        """Return the autocast context: bfloat16 where the hardware supports it, float32 elsewhere."""
        return mixed_precision(self.device)
