"""One recording said by one portrait: its motion, and the frames that show it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from typing import TYPE_CHECKING

import numpy as np
import torch

from s3dnerf.constants import FPS
from s3dnerf.control import MotionFrame, choose_blinks, read_controls, resample_motion
from s3dnerf.diffusion_frames import diffuse_frames, refine_frames
from s3dnerf.encoded_portrait import EncodedPortrait
from s3dnerf.face.camera import HeadPose
from s3dnerf.face.coefficients import MotionCoefficients
from s3dnerf.face.motion_state import (
    MotionState,
    blend_eye_openness,
    blend_head_motion,
    blend_mouth_motion,
    relative_head_pose,
    remember_last,
)
from s3dnerf.media.audio import SpeechLevel
from s3dnerf.media.memory import Media
from s3dnerf.models.fd2talk.frame_renderer import list_expressions
from s3dnerf.models.s3dnerf.identity import Identity
from s3dnerf.render_options import RenderOptions
from s3dnerf.speech_motion import drive_portrait, encode_audio, replace_brows
from s3dnerf.talking_video import PhaseTimer

if TYPE_CHECKING:
    from s3dnerf.pipeline import TalkingHeadPipeline


class Utterance:
    """A recording and the portrait that says it. Each call of :meth:`render` renders it again."""

    def __init__(
        self,
        portrait: EncodedPortrait,
        options: RenderOptions,
        head_motion: Callable[..., Iterator[HeadPose]] | None,
        sound: Media,
        level: SpeechLevel,
        start: MotionState | None = None,
    ) -> None:
        """Prepare an utterance.

        Args:
            portrait: who speaks.
            options: checked ones.
            head_motion: starts the head motion at a frame; None for motion from speech.
            sound: the recording.
            level: its loudness.
            start: end of the previous utterance.
        """
        self.portrait, self.options, self.head_motion = portrait, options, head_motion
        self.sound, self.level, self.start = sound, level, start
        self.controls = read_controls(options)
        choose_blinks(portrait.face.eyes, options.blink, options.seed)  # reads a file while errors are expected
        self.ends: deque[MotionState] = deque(maxlen=1)
        """State at the end of the last complete rendering."""
        # Number of frames of head motion and of blinks already used. A different motion starts at its first frame.
        # Motion from speech begins anew with each recording.
        seed, pose, blink = options.seed, str(options.pose), str(options.blink)
        same_pose = start is not None and pose != "speech" and (start.pose, start.seed) == (pose, seed)
        same_blink = start is not None and (start.blink, start.seed) == (blink, seed)
        self.passed = 0 if start is None else max(1, start.pose_frames) if same_pose else 1
        self.blinked = 0 if start is None else max(1, start.blink_frames) if same_blink else 1

    def render(
        self, pipeline: TalkingHeadPipeline, timer: PhaseTimer, on_device: bool
    ) -> Iterator[np.ndarray | torch.Tensor]:
        """Render frames ``uint8 [height, width, C]``: arrays, or, with ``on_device`` and if it may, tensors there."""
        portrait, options, start = self.portrait, self.options, self.start
        face, identity, first = portrait.face, portrait.identity, portrait.choose_first_pose(options)
        with timer("encoding speech"):
            blocks: Iterable[MotionCoefficients] = pipeline.generate_motion(
                self.sound, self.level, options.seed, options.liveliness
            )
            if options.method == "fd2talk":
                blocks = list(blocks)
                motion = pipeline.encode_expression(blocks)
            else:
                assert identity is not None, "speech is encoded for the radiance field"
                motion = encode_audio(pipeline.model, identity, self.sound, self.level)
        blinks = choose_blinks(face.eyes, options.blink, options.seed)
        blinks = islice(blinks, max(0, self.blinked - 1), None)
        if start is not None:
            motion = blend_mouth_motion(motion, start)
        codes: Iterable[torch.Tensor] = motion
        if self.head_motion is None:
            driven = drive_portrait(blocks, pipeline.model, identity, face, first)
            codes = motion if options.method == "fd2talk" else replace_brows(motion, driven.brows)
            # An utterance that continues another one is blended from a head at rest.
            track = driven.poses if start is None else chain([first], driven.poses)
            if options.blink == "auto":
                blinks = driven.eyes if start is None else chain([face.eyes], driven.eyes)
        else:
            track = self.head_motion(max(0, self.passed - 1))
        eyes = blinks
        if start is not None:
            track = blend_head_motion(track, face.pose, start)
            eyes = blend_eye_openness(blinks, face.eyes, start)
        last_pose: deque[HeadPose] = deque(maxlen=1)
        last_eyes: deque[np.ndarray] = deque(maxlen=1)
        kept = remember_last(track, last_pose), remember_last(eyes, last_eyes)
        if identity is None or portrait.background is None:
            expressions = list_expressions(blocks)
            rendered = diffuse_frames(pipeline.frame_diffusion, face, expressions, *kept, options.seed, timer)
        else:
            keep = on_device and portrait.framing.is_square(portrait.side) and options.refine == "off"
            frames = self.control(zip(codes, *kept, strict=False), pipeline, identity)
            rendered = pipeline.render_frames(
                identity, frames, timer, portrait.background, on_device=keep, show=options.show
            )
        if options.refine == "diffusion":
            rendered = refine_frames(pipeline.frame_diffusion, face, rendered, options.seed, timer)
        for frame in rendered:
            yield frame if isinstance(frame, torch.Tensor) else portrait.framing.compose(frame)
        self.ends.append(self.describe_end(last_pose[0], last_eyes[0], motion))

    def control(
        self, frames: Iterator[MotionFrame], pipeline: TalkingHeadPipeline, identity: Identity
    ) -> Iterator[MotionFrame]:
        """Apply the controls and the frame rate to a motion of 25 frames per second."""
        if self.controls.has_effect:
            with torch.inference_mode(), pipeline.autocast():
                silence = pipeline.model.encode_silence(identity)[0].float()
            frames = self.controls.apply(frames, silence, identity.source_motion[0].float(), self.portrait.face.pose)
        return frames if self.options.fps == FPS else resample_motion(frames, self.options.fps)

    def describe_end(self, pose: HeadPose, eyes: np.ndarray, motion: torch.Tensor) -> MotionState:
        """Return the state after all frames, from the last pose and eyes, and all motion codes ``[T, R, code]``."""
        face, options = self.portrait.face, self.options
        turn, shift, zoom = relative_head_pose(face.pose, pose)
        return MotionState(
            pose=str(options.pose),
            seed=options.seed,
            pose_frames=self.passed + len(motion),
            blink=str(options.blink),
            blink_frames=self.blinked + len(motion),
            turn=tuple(turn.tolist()),
            shift=tuple(shift.tolist()),
            zoom=zoom,
            eyes=tuple((eyes / np.maximum(face.eyes, 1e-6)).tolist()),
            mouth=tuple(map(tuple, motion[-1].tolist())),
        )
