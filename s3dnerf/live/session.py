"""A live portrait: speech goes in as it comes, frames come out as soon as they are determined.

Example::

    session = pipeline.stream("portrait.png")
    for block in microphone:                    # float32 [n]
        session.feed(block, rate=48000)
        for frame in session.frames(): show(frame)
    session.finish()
    for frame in session.frames(): show(frame)
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain, islice, repeat
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from s3dnerf.constants import FPS, SAMPLE_RATE, SAMPLES_PER_FRAME
from s3dnerf.control import MotionFrame, choose_blinks, read_controls
from s3dnerf.encoded_portrait import EncodedPortrait
from s3dnerf.errors import ArgumentError
from s3dnerf.face.camera import HeadPose
from s3dnerf.face.coefficients import MotionCoefficients
from s3dnerf.face.motion import iterate_idle_motion
from s3dnerf.face.motion_state import (
    MOUTH_BLEND_FRAMES,
    MotionState,
    blend_eye_openness,
    blend_head_motion,
    blend_weight,
    relative_head_pose,
)
from s3dnerf.face.regions import BROWS
from s3dnerf.live.running_level import RunningLevel, RunningMean
from s3dnerf.live.speech_codes import SpeechCodeStream
from s3dnerf.media.audio import SpeechLevel
from s3dnerf.media.live_audio import LiveResampler
from s3dnerf.media.rumble import RumbleFilter
from s3dnerf.media.watermark import Watermark
from s3dnerf.models.fd2talk.frame_speech import BLOCK, CONTEXT
from s3dnerf.models.fd2talk.motion_generator import MotionGenerator
from s3dnerf.render_options import RenderOptions
from s3dnerf.speech_motion import drive_portrait, replace_brows
from s3dnerf.structures import HostCopy
from s3dnerf.talking_video import PhaseTimer

if TYPE_CHECKING:
    from s3dnerf.pipeline import TalkingHeadPipeline

MAX_PENDING_SECONDS = 30.0
"""Most speech that waits to be rendered."""
LARGEST_BATCHES = 2
"""Most batches that are rendered before it is looked again at what is ready."""


@dataclass(frozen=True)
class LiveFrame:
    """A frame and the sound that is heard while it is shown."""

    image: np.ndarray
    """``uint8 [height, width, C]``."""
    sound: np.ndarray
    """``float32 [640]``, 16 kHz; zeros while the portrait listens."""


@dataclass
class Segment:
    """An utterance, or a pause in which the portrait listens."""

    speech: SpeechCodeStream | None = None
    """Turns speech into motion codes; None while the portrait listens."""
    generator: MotionGenerator | None = None
    """Turns speech into head motion, if the head moves by speech."""
    codes: deque[Tensor] = field(default_factory=deque)
    """Motion codes ``[R, code]`` of frames that wait to be rendered."""
    blocks: deque[MotionCoefficients] = field(default_factory=deque)
    """Head motion that waits."""
    moved: int = 0
    """Frames of head motion that were generated."""
    sound: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    """Sound of the frames that wait."""
    shown: int = 0
    """Frames that were rendered."""
    poses: Iterator[HeadPose] | None = None
    eyes: Iterator[np.ndarray] | None = None
    brows: Iterator[Tensor] | None = None
    previous_codes: Tensor | None = None
    """Motion codes ``[R, code]`` before the first frame."""
    ended: bool = False

    @property
    def listens(self) -> bool:
        """Whether this is a pause."""
        return self.speech is None

    @property
    def ready(self) -> int:
        """Number of frames that can be rendered."""
        return len(self.codes) if self.generator is None else min(len(self.codes), self.moved - self.shown)


class TalkingHeadSession:
    """A portrait that speaks what it is fed, one utterance after the other, and listens in between."""

    def __init__(
        self,
        pipeline: TalkingHeadPipeline,
        portrait: EncodedPortrait,
        options: RenderOptions,
        level: SpeechLevel | None = None,
        mean: Tensor | None = None,
        watermark: str | None = None,
    ) -> None:
        """Start a session.

        Args:
            pipeline: renders.
            portrait: from ``pipeline.encode_portrait``; sessions can share it.
            options: checked ones.
            level: loudness of the speech, if it is known. By default it is estimated as the speech comes.
            mean: ``[1, R, code]`` mean of the motion codes, if it is known.
            watermark: a short text in the lower right corner of every frame.

        Raises:
            ArgumentError: an option is for whole recordings, or the watermark cannot be drawn.
        """
        if portrait.identity is None or portrait.background is None or options.method != "s3dnerf":
            name = "renderer" if portrait.identity is None else "method"
            raise ArgumentError(name, getattr(options, name), "needs a whole recording", "Leave it out in a session.")
        if options.fps != FPS:
            raise ArgumentError("fps", options.fps, "needs a whole recording", f"Use {FPS} in a session.")
        if options.refine != "off":
            raise ArgumentError("refine", options.refine, "is slower than real time", "Leave it out in a session.")
        self.pipeline, self.portrait, self.options = pipeline, portrait, options
        self.identity, self.background = portrait.identity, portrait.background
        self.watermark = None if watermark is None else Watermark(watermark, portrait.framing.size)
        self.level = RunningLevel(None if level is None else level.active_rms)
        self.mean = RunningMean(mean)
        self.resampler, self.rumble = LiveResampler(SAMPLE_RATE), RumbleFilter()
        self.segments: deque[Segment] = deque()
        self.first = portrait.choose_first_pose(options)
        head_motion = portrait.choose_head_motion(options)
        self.head_motion = None if head_motion is None else head_motion(0)
        self.blinks = choose_blinks(portrait.face.eyes, options.blink, options.seed)
        self.controls = read_controls(options)
        self.utterances = self.frames_shown = 0
        self.last_codes: Tensor | None = None
        self.last_pose, self.last_eyes = self.first, portrait.face.eyes
        speech = self._begin_speech()
        self._lookahead = speech.lookahead
        self.silence = speech.silence[0].clone()
        """Motion codes ``[R, code]`` while the portrait listens."""
        if options.pose == "speech":
            self.silence[BROWS] = self.identity.source_motion[0, BROWS].float()
        with torch.inference_mode(), pipeline.autocast():
            self.lattice = pipeline.model.deformation_field.encode_lattice()

    @property
    def lookahead_seconds(self) -> float:
        """Seconds of speech after the end of a frame that the frame depends on: the least latency."""
        frames = self._lookahead
        if self.options.pose == "speech":
            config = self.pipeline.motion_diffusion.config
            frames = max(frames, config.frames + config.speech_future + BLOCK + CONTEXT)
        return frames / FPS

    @property
    def pending_seconds(self) -> float:
        """Seconds of speech that were fed and not shown yet."""
        return sum(len(segment.sound) for segment in self.segments if not segment.listens) / SAMPLE_RATE

    @property
    def end_state(self) -> MotionState:
        """State after the last frame, from which a video or another session can continue."""
        face = self.portrait.face
        turn, shift, zoom = relative_head_pose(face.pose, self.last_pose)
        codes = self.silence if self.last_codes is None else self.last_codes
        return MotionState(
            pose=str(self.options.pose),
            seed=self.options.seed,
            pose_frames=self.frames_shown,
            blink=str(self.options.blink),
            blink_frames=self.frames_shown,
            turn=tuple(turn.tolist()),
            shift=tuple(shift.tolist()),
            zoom=zoom,
            eyes=tuple((self.last_eyes / np.maximum(face.eyes, 1e-6)).tolist()),
            mouth=tuple(map(tuple, codes.tolist())),
        )

    def feed(self, samples: np.ndarray, rate: int = SAMPLE_RATE) -> None:
        """Take more speech.

        Args:
            samples: ``float32 [n]`` in [-1, 1], or ``[C, n]``, which is mixed down; ``int16`` is scaled.
            rate: samples per second, the same for the whole utterance.

        Raises:
            ArgumentError: the samples are no sound, or more than ``MAX_PENDING_SECONDS`` wait to be rendered.
        """
        if self.pending_seconds > MAX_PENDING_SECONDS:
            reason = f"come faster than frames are taken: {self.pending_seconds:.0f} s of speech wait"
            raise ArgumentError("samples", None, reason, "Take the frames first.")
        self._feed(self.resampler.feed(samples, rate))

    def finish(self) -> None:
        """End the utterance. Its last frames become ready, and what is fed later is another utterance."""
        if not self.segments or self.segments[-1].ended or self.segments[-1].listens:
            return
        self._feed(self.resampler.finish())
        clean = self.rumble.finish()
        self.level.feed(clean)
        segment = self.segments[-1]
        assert segment.speech is not None, "utterances have speech"
        codes = torch.cat([segment.speech.feed(clean), segment.speech.finish()])
        segment.codes.extend(codes)
        if segment.generator is not None:
            gain = np.float32(self.level.gain)
            self._move(segment, segment.generator.feed(gain * clean))
            self._move(segment, segment.generator.finish())
        segment.ended = True
        self.resampler, self.rumble = LiveResampler(SAMPLE_RATE), RumbleFilter()

    def listen(self, frames: int = 1) -> None:
        """Let so many frames become ready in which the portrait listens: it blinks, and the head sways.

        An utterance that is not finished is finished first.
        """
        self.finish()
        if not self.segments or not self.segments[-1].listens:
            self.segments.append(Segment())
        segment = self.segments[-1]
        segment.codes.extend(repeat(self.silence, frames))
        segment.sound = np.concatenate([segment.sound, np.zeros(frames * SAMPLES_PER_FRAME, np.float32)])

    def interrupt(self) -> float:
        """Drop all that waits to be rendered, and close the mouth. Return the seconds of speech that are dropped."""
        dropped = self.pending_seconds
        for segment in self.segments:
            segment.codes.clear()
        self.segments.clear()
        self.resampler, self.rumble = LiveResampler(SAMPLE_RATE), RumbleFilter()
        self.listen(MOUTH_BLEND_FRAMES)
        return dropped

    def frames(self) -> Iterator[np.ndarray]:
        """Render the frames ``uint8 [height, width, C]`` that are ready, 25 per second of sound."""
        for frame in self.frames_with_sound():
            yield frame.image

    def frames_with_sound(self) -> Iterator[LiveFrame]:
        """Render the frames that are ready, each with its sound."""
        while self.segments:
            segment = self.segments[0]
            if segment.ready:
                yield from self._render(segment, min(segment.ready, LARGEST_BATCHES * self.pipeline.batch))
            elif segment.ended or (segment.listens and len(self.segments) > 1):
                self.segments.popleft()
            else:
                return

    def _begin_speech(self) -> SpeechCodeStream:
        return SpeechCodeStream(self.pipeline.model, self.identity, self.level, self.mean)

    def _feed(self, sound: np.ndarray) -> None:
        """Take 16 kHz speech ``float32 [n]``."""
        if not len(sound):
            return
        if not self.segments or self.segments[-1].ended or self.segments[-1].listens:
            speech, generator = self._begin_speech(), None
            if self.options.pose == "speech":
                seed = (self.options.seed + self.utterances) % 2**63
                generator = MotionGenerator(self.pipeline.motion_diffusion, seed, self.options.liveliness)
            self.segments.append(Segment(speech, generator))
            self.utterances += 1
        segment = self.segments[-1]
        assert segment.speech is not None, "utterances have speech"
        segment.sound = np.concatenate([segment.sound, sound])
        clean = self.rumble.feed(sound)
        self.level.feed(clean)
        segment.codes.extend(segment.speech.feed(clean))
        if segment.generator is not None:
            self._move(segment, segment.generator.feed(np.float32(self.level.gain) * clean))

    @staticmethod
    def _move(segment: Segment, motion: MotionCoefficients) -> None:
        if len(motion):
            segment.blocks.append(motion)
            segment.moved += len(motion)

    def _start_motion(self, segment: Segment) -> None:
        """Start the motion of mouth, head and eyes of a segment from where they are."""
        face, state = self.portrait.face, self.end_state
        segment.previous_codes = self.last_codes
        if self.head_motion is not None:
            segment.poses, segment.eyes = self.head_motion, self.blinks
            return
        track: Iterator[HeadPose] = iterate_idle_motion(self.first, self.options.seed)
        eyes = self.blinks
        if segment.generator is not None:
            driven = drive_portrait(_drain(segment.blocks), self.pipeline.model, self.identity, face, self.first)
            track, segment.brows = chain([self.first], driven.poses), driven.brows
            eyes = driven.eyes if self.options.blink == "auto" else self.blinks
        if self.last_codes is None:
            next(track)
            segment.poses, segment.eyes = track, eyes
            return
        segment.poses = blend_head_motion(track, face.pose, state)
        segment.eyes = blend_eye_openness(chain([face.eyes], eyes), face.eyes, state)

    def _render(self, segment: Segment, count: int) -> Iterator[LiveFrame]:
        if segment.poses is None or segment.eyes is None:
            self._start_motion(segment)
        assert segment.poses is not None and segment.eyes is not None, "started above"
        face = self.portrait.face
        codes = [segment.codes.popleft() for _ in range(count)]
        if segment.brows is not None:
            codes = list(replace_brows(codes, segment.brows))
        if segment.previous_codes is not None:
            for index in range(min(count, MOUTH_BLEND_FRAMES - segment.shown)):
                weight = blend_weight(segment.shown + index + 1, MOUTH_BLEND_FRAMES + 1)
                codes[index] = torch.lerp(codes[index], segment.previous_codes, weight)
        poses, eyes = list(islice(segment.poses, count)), list(islice(segment.eyes, count))
        sounds = self._take_sound(segment, count)
        segment.shown += count
        motion: Iterator[MotionFrame] = zip(codes, poses, eyes, strict=True)
        if self.controls.has_effect:
            source_motion = self.identity.source_motion[0].float()
            motion = self.controls.apply(motion, self.silence, source_motion, face.pose, self.frames_shown)
        frames = self._render_frames(list(motion))
        for code, pose, openness, sound, frame in zip(codes, poses, eyes, sounds, frames, strict=True):
            self.last_codes, self.last_pose, self.last_eyes = code, pose, openness
            self.frames_shown += 1
            image = self.portrait.framing.compose(frame)
            yield LiveFrame(image if self.watermark is None else self.watermark.draw(image), sound)

    def _render_frames(self, chunk: list[MotionFrame]) -> Iterator[np.ndarray]:
        """Render frames ``uint8 [S, S, C]``. A few are rendered by all threads together, many by each thread some."""
        if len(chunk) > self.pipeline.batch:
            show = self.options.show
            yield from self.pipeline.render_frames(self.identity, chunk, PhaseTimer(), self.background, show=show)
            return
        with torch.inference_mode(), self.pipeline.autocast():
            shown = (self.identity, chunk, self.lattice, self.background, self.options.show)
            batch = HostCopy(self.pipeline.render_batch(*shown))
        yield from batch.wait()

    @staticmethod
    def _take_sound(segment: Segment, count: int) -> np.ndarray:
        """Return the sound of the next frames ``float32 [count, 640]``. That of the last frame may be shorter."""
        sound, segment.sound = np.split(segment.sound, [min(count * SAMPLES_PER_FRAME, len(segment.sound))])
        if segment.ended and not segment.codes:
            segment.sound = segment.sound[:0]
        return np.pad(sound, (0, count * SAMPLES_PER_FRAME - len(sound))).reshape(count, SAMPLES_PER_FRAME)


def _drain(blocks: deque[MotionCoefficients]) -> Iterator[MotionCoefficients]:
    while True:
        yield blocks.popleft()
