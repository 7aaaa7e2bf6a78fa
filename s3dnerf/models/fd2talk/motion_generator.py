"""Motion of any length from speech, window by window.

Windows lie at fixed frames, and each begins with the last frames of the motion so far. So a stream gives bit by bit
what a whole recording gives, and memory does not grow with its length.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from s3dnerf import limits
from s3dnerf.constants import SAMPLES_PER_FRAME
from s3dnerf.face.coefficients import CHANNELS, MotionCoefficients
from s3dnerf.face.expression_basis import CHANNEL_COUNT
from s3dnerf.models.fd2talk.calibration import FastMotionFilter, low_pass_motion, scale_brows
from s3dnerf.models.fd2talk.config import MotionSamplingConfig
from s3dnerf.models.fd2talk.frame_speech import BLOCK, CONTEXT
from s3dnerf.models.fd2talk.lids import LidRegulator
from s3dnerf.models.fd2talk.motion_diffusion import MotionDiffusion, make_rest
from s3dnerf.models.fd2talk.motion_transformer import MotionCondition
from s3dnerf.models.fd2talk.sampling import sample_motion
from s3dnerf.models.sync_discriminator import embed_moments, load_discriminator
from s3dnerf.precision import mixed_precision

POSE = CHANNELS["pose"]
START_FRAMES = 50
"""Frames over which the motion leaves the state of the source: two seconds."""
JOIN_FRAMES = 12
"""Frames after which a window moves as it was sampled."""
LIVELINESS_RANGE = 1.5
"""Standard deviations of the log speed within which the model is asked for it; beyond them, motion is scaled."""


class MotionGenerator:
    """Turns a stream of speech into motion coefficients.

    Pose, eyes and gaze begin as they are in the source, at rest, and leave it over two seconds. The expression is
    relative to the mean face of the person from the first frame on.

    >>> generator = MotionGenerator(load_motion_diffusion(), seed=0)
    >>> for block in stream_clean_speech("speech.wav"):
    ...     show(generator.feed(block))
    >>> show(generator.finish())
    """

    def __init__(
        self,
        model: MotionDiffusion,
        seed: int = 0,
        liveliness: float = 1.0,
        sampling: MotionSamplingConfig | None = None,
    ) -> None:
        """Prepare a motion.

        Args:
            model: in evaluation mode.
            seed: determines the motion, together with the speech.
            liveliness: factor of the speed of the head, 0 to 2; blinks do not depend on it.
            sampling: steps and guidance; those of the model by default.

        Raises:
            UserError: the seed is out of range.
            ValueError: the liveliness is out of range.
        """
        limits.SEED.require("seed", seed)
        if not 0.0 <= liveliness <= limits.MAX_LIVELINESS:
            raise ValueError(f"liveliness must be 0 to {limits.MAX_LIVELINESS:g}, got {liveliness}")
        self.model, self.seed = model, seed
        self.sampling = sampling = sampling or model.config.sampling
        self.device = model.mean.device
        wanted = sampling.speed * max(liveliness, 1e-3)
        asked = float(model.standardize_speed(torch.tensor(wanted, device=self.device)))
        self.asked = min(max(asked, -LIVELINESS_RANGE), LIVELINESS_RANGE)
        given = math.exp(self.asked * float(model.log_speed_std) + float(model.log_speed_mean))
        self.factor = 0.0 if liveliness == 0.0 else wanted / given
        config = model.config
        self.sound = np.zeros(CONTEXT * SAMPLES_PER_FRAME, np.float32)
        """Sound from ``CONTEXT`` frames before the next block on."""
        self.samples = 0
        self.features = model.speech.encode(np.zeros(0, np.float32), config.speech_past).to(self.device)
        """Features from ``speech_past`` frames before the next window on. What precedes the recording is silence."""
        guided = sampling.expert_guidance > 0.0
        self.discriminator = load_discriminator(device=self.device) if guided else None
        """Embeds speech for the lip expert, if it guides the lips."""
        self.lip_speech = torch.zeros(0, config.lip_expert.embedding, device=self.device)
        """Its embeddings from the first frame of the next window on."""
        self.recent = torch.zeros(0, CHANNEL_COUNT, device=self.device)
        """Last standardized frames, with which the next window begins."""
        self.first: Tensor | None = None
        """First frame of the motion ``[34]``, standardized."""
        self.fast_motion, self.lids = FastMotionFilter(sampling.fast_factor), LidRegulator(seed)
        self.windows = 0
        self.frames = 0
        """Frames that were returned."""

    def feed(self, sound: np.ndarray) -> MotionCoefficients:
        """Take more speech and return the motion that it determines, of zero or more frames.

        Args:
            sound: ``float32 [n]`` 16 kHz speech at the normal level.
        """
        self.samples += len(sound)
        self.sound = np.concatenate([self.sound, np.asarray(sound, np.float32)])
        parts: list[Tensor] = []
        frames = self.model.config.frames
        while len(self.sound) >= self.count_samples(frames):
            parts.append(self.generate_window(frames))
        return self.collect(parts)

    def finish(self) -> MotionCoefficients:
        """End the recording and return the rest of its motion, up to its last frame."""
        parts: list[Tensor] = []
        total = -(-self.samples // SAMPLES_PER_FRAME)
        while (missing := total - self.frames - sum(map(len, parts))) > 0:
            # The last window is no longer than it has to be, and long enough to be joined.
            frames = min(self.model.config.frames, len(self.recent) + max(missing, JOIN_FRAMES))
            self.sound = np.pad(self.sound, (0, max(0, self.count_samples(frames) - len(self.sound))))
            parts.append(self.generate_window(frames))
        return self.collect(parts, total)

    def count_features(self, frames: int) -> int:
        """Return the number of frames of speech that a window needs."""
        return self.model.config.speech_past + frames + self.model.config.speech_future

    def count_blocks(self, frames: int) -> int:
        """Return the number of blocks that are to be encoded before a window."""
        return max(0, -(-(self.count_features(frames) - len(self.features)) // BLOCK))

    def count_samples(self, frames: int) -> int:
        """Return how much of the sound these blocks depend on."""
        blocks = self.count_blocks(frames)
        return (blocks * BLOCK + 2 * CONTEXT) * SAMPLES_PER_FRAME if blocks else 0

    def encode_blocks(self, count: int) -> None:
        """Encode the next blocks, whose sound is complete, together: bfloat16 is faster for several."""
        hop, size = BLOCK * SAMPLES_PER_FRAME, (BLOCK + 2 * CONTEXT) * SAMPLES_PER_FRAME
        blocks = torch.from_numpy(self.sound.copy()).unfold(0, size, hop)[:count]
        with mixed_precision(self.device):
            encoded = self.model.speech(blocks.to(self.device))
        self.features = torch.cat([self.features, encoded.flatten(0, 1)])
        if self.discriminator is not None:
            heard = self.sound[: count * hop + 2 * CONTEXT * SAMPLES_PER_FRAME]
            embedded = embed_moments(self.discriminator, heard, CONTEXT + np.arange(count * BLOCK))
            self.lip_speech = torch.cat([self.lip_speech, embedded.float()])
        self.sound = self.sound[count * hop :]

    def generate_window(self, frames: int) -> Tensor:
        """Generate a window of so many frames, whose speech is complete, and return the new ones, standardized."""
        config = self.model.config
        if blocks := self.count_blocks(frames):
            self.encode_blocks(blocks)
        known = torch.zeros(1, frames, CHANNEL_COUNT, device=self.device)
        is_known = torch.zeros(1, frames, dtype=torch.bool, device=self.device)
        known[0, : len(self.recent)] = self.recent
        is_known[0, : len(self.recent)] = True
        condition = MotionCondition(
            speech=self.features[None, : self.count_features(frames)],
            has_speech=torch.ones(1, dtype=torch.bool, device=self.device),
            liveliness=torch.full((1,), self.asked, device=self.device),
            known=known,
            is_known=is_known,
            valid=torch.ones(1, frames, dtype=torch.bool, device=self.device),
        )
        rng = torch.Generator().manual_seed((self.seed * 1_000_003 + self.windows) % 2**63)
        noise = torch.randn(1, config.frames, CHANNEL_COUNT, generator=rng)[:, :frames].to(self.device)
        guide = None if self.discriminator is None else self.lip_speech[None, :frames]
        motion = sample_motion(self.model, condition, noise, self.sampling, guide)[0].clone()
        # Known frames are already smooth.
        motion[len(self.recent) :, POSE] = low_pass_motion(motion[:, POSE])[len(self.recent) :]
        motion = smooth_join(motion, len(self.recent))
        new = motion[len(self.recent) :]
        self.recent = motion[frames - config.known_frames :]
        self.features = self.features[frames - config.known_frames :]
        self.lip_speech = self.lip_speech[frames - config.known_frames :]
        self.windows += 1
        return new

    def collect(self, parts: list[Tensor], total: int | None = None) -> MotionCoefficients:
        """Return standardized frames as coefficients."""
        motion = torch.cat([self.recent[:0], *parts])
        motion = motion if total is None else motion[: total - self.frames]
        if self.first is None and len(motion):
            self.first = motion[0]
        rest = make_rest()
        values = self.model.restore(motion).cpu().numpy()
        values[:, CHANNELS["expression"]] = scale_brows(values[:, CHANNELS["expression"]], self.sampling.brow_factor)
        values[:, CHANNELS["pose"]] = self.fast_motion.apply(values[:, CHANNELS["pose"]])
        if len(motion):
            assert self.first is not None, "set with the first frame"
            start = self.model.restore(self.first).cpu().numpy() - rest
            start[CHANNELS["expression"]] = 0.0
            values = values - compute_start_weight(self.frames + np.arange(len(values)))[:, None] * start
        factor = np.full(CHANNEL_COUNT, self.factor, np.float32)
        factor[CHANNELS["eyes"]] = 1.0
        values = rest + factor * (values - rest)
        values[:, CHANNELS["eyes"]] = self.lids.apply(values[:, CHANNELS["eyes"]])
        self.frames += len(values)
        return MotionCoefficients.unflatten(values.astype(np.float32))


def smooth_join(motion: Tensor, known: int) -> Tensor:
    """Let a window continue its known motion at the same place and speed.

    What the first new frames deviate from that is taken back, and fades within ``JOIN_FRAMES``. Lids are left alone: a
    blink that is under way must not go on for so long.

    Args:
        motion: ``[T, C]``.
        known: number of known frames; fewer than two are left alone.
    """
    if known < 2 or len(motion) < known + 2:
        return motion
    rate = motion[known - 1] - motion[known - 2]
    gap = motion[known - 1] + rate - motion[known]
    change = rate - (motion[known + 1] - motion[known])
    frames = torch.arange(len(motion) - known, device=motion.device, dtype=motion.dtype)
    progress = (frames / JOIN_FRAMES).clamp(max=1.0)
    weight = (1.0 - progress).square() * (1.0 + 2.0 * progress)
    slope = frames * (1.0 - progress).square()
    smoothed = torch.cat([motion[:known], motion[known:] + weight[:, None] * gap + slope[:, None] * change])
    smoothed[:, CHANNELS["eyes"]] = motion[:, CHANNELS["eyes"]]
    return smoothed


def compute_start_weight(frames: np.ndarray) -> np.ndarray:
    """Return how far the motion still is in the state of the source, by the number of the frame: from 1 to 0."""
    progress = np.clip(frames / START_FRAMES, 0.0, 1.0)
    return (1.0 - progress * progress * (3.0 - 2.0 * progress)).astype(np.float32)


class SpeechMotion:
    """Generates the motion of whole recordings."""

    def __init__(self, model: MotionDiffusion, sampling: MotionSamplingConfig | None = None) -> None:
        """Take a model in evaluation mode, and how it is sampled (by default as its configuration says)."""
        self.model, self.sampling = model, sampling

    def generate(self, speech: np.ndarray, frames: int, seed: int = 0, liveliness: float = 1.0) -> MotionCoefficients:
        """Return the motion of ``frames`` frames of a recording, which is followed by silence if it is shorter.

        Args:
            speech: ``float32 [samples]`` 16 kHz at the normal level.
            frames: T.
            seed: see :class:`MotionGenerator`.
            liveliness: see :class:`MotionGenerator`.
        """
        generator = MotionGenerator(self.model, seed, liveliness, self.sampling)
        padded = np.zeros(frames * SAMPLES_PER_FRAME, np.float32)
        some = speech[: len(padded)]
        padded[: len(some)] = some
        parts = [generator.feed(padded), generator.finish()]
        return MotionCoefficients.unflatten(np.concatenate([part.flatten() for part in parts]))

    def find_joins(self, frames: int) -> np.ndarray:
        """Return the first new frame of each window after the first, in a motion of ``frames`` frames."""
        config = self.model.config
        return np.arange(config.frames, frames, config.frames - config.known_frames)
