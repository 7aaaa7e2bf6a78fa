"""Clips and batches for motion diffusion.

Speech features are computed once, as recorded and in a few versions with augmented level, equalization, noise and
tempo. The motion of a version has its tempo.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from tqdm import tqdm

from s3dnerf.constants import SAMPLES_PER_FRAME
from s3dnerf.constraints import NonNegativeInt, PositiveInt, Share, ShareBelowOne, Text
from s3dnerf.data.augmentation import augment_waveform
from s3dnerf.data.clips import PreparedClips
from s3dnerf.data.config import PERSON_POWER
from s3dnerf.data.sampling import ClipSampler, spread_rows
from s3dnerf.data.tracks import MAX_TEMPO, MIN_TEMPO, ClipTrack
from s3dnerf.face.coefficients import CHANNELS, MotionCoefficients, compute_coefficients
from s3dnerf.face.expression_basis import CHANNEL_COUNT
from s3dnerf.media.audio import FPS
from s3dnerf.models.fd2talk.frame_speech import FrameSpeech
from s3dnerf.models.fd2talk.motion_diffusion import MotionDiffusion
from s3dnerf.models.sync_discriminator import SHARED_FRAMES, SyncDiscriminator, embed_moments

POSE_AND_GAZE = [*range(30)[CHANNELS["pose"]], *range(CHANNEL_COUNT)[CHANNELS["gaze"]]]
"""Channels whose amplitude is augmented; their mean over a clip is removed."""
MIN_SPEED = 0.3
"""Least mean speed of a head in degrees per second, so that it has a logarithm."""
MIN_STD = 1e-4


@dataclass
class MotionDataConfig:
    """Where clips come from, and how windows of motion are sampled."""

    root: Text = "data/prepared"
    """Prepared clips or shards (made by tools/prepare.py), as for ``train``; of streamed shards, some are used."""
    train_split: Text = "train"
    """Split to train on; clips whose sync is ok or corrected are used."""
    held_out_people: NonNegativeInt | None = None
    """People of that split who are left out, for validation and to fit the sampling settings; as for ``train``."""
    offsets: Path | None = None
    """Table of constant sync offsets (made by train-sync --offsets) that are corrected when clips are loaded."""
    min_frames: Annotated[PositiveInt, Field(ge=2)] = 48
    """Frames of the shortest clips; those shorter than a window are padded."""
    augment: bool = True
    """Mirror motion; change amplitude, gain, noise and tempo."""
    versions: Annotated[PositiveInt, Field(le=100)] = 3
    """Versions of each recording: the original, and others with augmented speech and tempo."""
    hide_speech: Share = 0.1
    """Fraction of windows without speech, for classifier-free guidance."""
    hide_known: Share = 0.5
    """Fraction of windows that begin without known motion."""
    amplitude: ShareBelowOne = 0.2
    """Range of the factor of head and gaze motion: 1 plus or minus this."""


@dataclass(frozen=True)
class MotionVersion:
    """Motion and speech of a clip at one tempo; T frames."""

    motion: np.ndarray
    """``float32 [T, 34]`` coefficients; the mean of pose and gaze over the clip is 0."""
    mirrored: np.ndarray
    """Those of the mirror image."""
    speech: Tensor
    """``float16 [past + T + window + future, F]`` from ``past`` frames before the clip on; silence follows it."""
    embeddings: Tensor
    """``float16 [T, E]`` embeddings of the recorded speech around each frame by the sync discriminator."""


@dataclass(frozen=True)
class MotionClip:
    """A clip in memory."""

    person: str
    track: ClipTrack
    versions: list[MotionVersion]
    speed: float
    """Mean speed of the head in degrees per second."""

    @property
    def spoken(self) -> SpokenClip:
        """Speech and motion as recorded."""
        assert self.track.speech is not None, "silent clips are not trained on"
        return SpokenClip(self.person, self.track.speech, MotionCoefficients.unflatten(self.versions[0].motion))


@dataclass(frozen=True)
class SpokenClip:
    """A person who speaks."""

    person: str
    speech: np.ndarray
    """``float32 [samples]`` 16 kHz at the normal level."""
    motion: MotionCoefficients


@dataclass(frozen=True)
class MotionBatch:
    """B windows of T frames."""

    motion: Tensor
    """``[B, T, 34]`` coefficients."""
    speech: Tensor
    """``[B, past + T + future, F]``."""
    embeddings: Tensor
    """``[B, T, E]``."""
    has_speech: Tensor
    """``bool [B]``."""
    speed: Tensor
    """``[B]`` degrees per second."""
    is_known: Tensor
    """``bool [B, T]``."""
    valid: Tensor
    """``bool [B, T]``."""


class MotionData:
    """Clips in memory, and batches of windows by number."""

    def __init__(self, clips: list[MotionClip], config: MotionDataConfig, model: MotionDiffusion, seed: int) -> None:
        self.clips, self.config, self.sizes, self.seed = clips, config, model.config, seed
        people = np.array([clip.person for clip in clips])
        frames = np.array([len(clip.versions[0].motion) for clip in clips])
        self.sampler = ClipSampler(np.arange(len(clips)), people, frames, PERSON_POWER)

    def draw(self, number: int, count: int) -> MotionBatch:
        """Return a batch of ``count`` windows, a pure function of the seed and the number of the batch."""
        rng = np.random.default_rng((self.seed, number))
        config, windows = self.config, []
        for _ in range(count):
            clip = self.clips[self.sampler.sample(rng)]
            version = clip.versions[rng.integers(len(clip.versions))] if config.augment else clip.versions[0]
            spare = len(version.motion) - self.sizes.frames
            first = int(rng.integers(spare + 1)) if spare > 0 else 0
            mirror = bool(config.augment and rng.random() < 0.5)
            factor = rng.uniform(1.0 - config.amplitude, 1.0 + config.amplitude) if config.augment else 1.0
            known = self.sizes.known_frames if rng.random() >= config.hide_known else 0
            heard = rng.random() >= config.hide_speech
            windows.append(self.cut_window(clip, version, first, mirror, factor, known, heard))
        return join_windows(windows)

    def cut_window(
        self, clip: MotionClip, version: MotionVersion, first: int, mirror: bool, factor: float, known: int, heard: bool
    ) -> MotionBatch:
        """Return one window that begins at frame ``first``; a short clip is followed by padding."""
        frames = self.sizes.frames
        motion = (version.mirrored if mirror else version.motion)[first : first + frames].copy()
        motion[:, POSE_AND_GAZE] *= np.float32(factor)
        length = len(motion)
        places = torch.arange(frames)
        embeddings = version.embeddings[first : first + frames].float()
        return MotionBatch(
            torch.from_numpy(pad_end(motion, frames)),
            version.speech[first : first + frames + self.sizes.speech_past + self.sizes.speech_future].float(),
            torch.nn.functional.pad(embeddings, (0, 0, 0, frames - length)),
            torch.tensor(heard),
            torch.tensor(clip.speed * factor, dtype=torch.float32),
            places < known,
            places < length,
        )


def join_windows(windows: list[MotionBatch]) -> MotionBatch:
    """Stack single windows to a batch."""
    return MotionBatch(
        *(torch.stack([getattr(window, name) for window in windows]) for name in MotionBatch.__dataclass_fields__)
    )


def spread_clips(prepared: PreparedClips, rows: np.ndarray, limit: int) -> np.ndarray:
    """Return the numbers of about ``limit`` of some clips, spread over their people."""
    if len(rows) <= limit:
        return rows
    index = prepared.index
    groups = ClipSampler(rows, index.person[rows], index.valid[rows], PERSON_POWER).group_rows()
    return np.sort(np.concatenate(spread_rows(groups, limit)))


def read_motion_clips(
    prepared: PreparedClips,
    rows: np.ndarray,
    config: MotionDataConfig,
    model: MotionDiffusion,
    discriminator: SyncDiscriminator,
    seed: int,
) -> list[MotionClip]:
    """Read clips with their motion and speech features; augmented versions only if ``config.augment``."""
    clips = []
    for row in tqdm(rows.tolist(), desc="encoding speech", dynamic_ncols=True):
        track = prepared.load_track(row)
        rng = np.random.default_rng((seed, row))
        coefficients = compute_coefficients(track)
        embeddings = embed_clip(track, discriminator)
        tempos = [1.0, *(rng.uniform(MIN_TEMPO, MAX_TEMPO) for _ in range(config.versions - 1))]
        versions = [
            make_version(track, coefficients, embeddings, tempo, model, rng if place else None)
            for place, tempo in enumerate(tempos if config.augment else tempos[:1])
        ]
        person = track.clip.person
        clips.append(MotionClip(person, track, versions, measure_speed(coefficients)))
    return clips


def make_version(
    track: ClipTrack,
    coefficients: MotionCoefficients,
    embeddings: Tensor,
    tempo: float,
    model: MotionDiffusion,
    rng: np.random.Generator | None,
) -> MotionVersion:
    """Return a clip at another tempo, with augmented speech if ``rng`` is given."""
    assert track.speech is not None, "silent clips are not trained on"
    count = int((len(coefficients) - 1) / tempo) + 1
    motion = change_tempo(coefficients, tempo, count)
    speech = change_sound_tempo(track.speech, tempo, count)
    if rng is not None:
        speech = augment_waveform(speech, rng)
    sizes = model.config
    features = encode_with_margins(model.speech, speech, sizes.speech_past, count + sizes.frames + sizes.speech_future)
    # Embedding the speech of every frame is slow, so versions share the embeddings of the recording.
    nearest = np.minimum(np.round(np.arange(count) * tempo).astype(int), len(embeddings) - 1)
    return MotionVersion(center(motion), center(motion.mirror()), features.half(), embeddings[nearest])


def embed_clip(track: ClipTrack, discriminator: SyncDiscriminator) -> Tensor:
    """Embed the speech around every frame by the sync discriminator, ``float16 [T, E]``."""
    assert track.speech is not None, "silent clips are not trained on"
    return embed_moments(discriminator, track.speech, np.arange(track.clip.frames), SHARED_FRAMES).half()


def encode_with_margins(speech: FrameSpeech, sound: np.ndarray, past: int, frames: int) -> Tensor:
    """Return features of ``past`` frames of silence and of ``frames`` frames from the start of a recording."""
    return torch.cat([speech.encode(np.zeros(0, np.float32), past), speech.encode(sound, frames)])


def change_tempo(coefficients: MotionCoefficients, tempo: float, count: int) -> MotionCoefficients:
    """Return ``count`` frames of motion that are ``tempo`` frames of the clip apart."""
    values = coefficients.flatten()
    places = np.minimum(np.arange(count) * tempo, len(values) - 1)
    resampled = [np.interp(places, np.arange(len(values)), channel) for channel in values.T]
    return MotionCoefficients.unflatten(np.stack(resampled, axis=1))


def change_sound_tempo(speech: np.ndarray, tempo: float, count: int) -> np.ndarray:
    """Return ``count`` frames of sound whose frames are ``tempo`` frames of the recording apart."""
    middle = SAMPLES_PER_FRAME / 2
    places = (np.arange(count * SAMPLES_PER_FRAME) - middle) * tempo + middle
    return np.interp(places, np.arange(len(speech)), speech, left=0.0, right=0.0).astype(np.float32)


def center(coefficients: MotionCoefficients) -> np.ndarray:
    """Return ``float32 [T, 34]`` with the mean of pose and gaze removed: the resting place of the head is 0."""
    values = coefficients.flatten()
    values[:, POSE_AND_GAZE] -= values[:, POSE_AND_GAZE].mean(axis=0)
    return values


def measure_speed(coefficients: MotionCoefficients) -> float:
    """Return the mean speed of the head in degrees per second."""
    turns = np.linalg.norm(np.diff(coefficients.pose[:, :3], axis=0), axis=1)
    return max(float(np.degrees(turns.mean())) * FPS, MIN_SPEED) if len(turns) else MIN_SPEED


def measure_statistics(clips: list[MotionClip], model: MotionDiffusion) -> None:
    """Set the statistics of the model to those of clips: all frames weigh alike within a person, and people alike."""
    people = sorted({clip.person for clip in clips})
    moments = []
    for person in people:
        own = [clip for clip in clips if clip.person == person]
        motion = np.concatenate([clip.versions[0].motion for clip in own]).astype(np.float64)
        rates = np.concatenate([np.diff(clip.versions[0].motion, axis=0) for clip in own]).astype(np.float64)
        moments.append([motion.mean(axis=0), np.square(motion).mean(axis=0), np.square(rates).mean(axis=0)])
    mean, square, rate = np.mean(moments, axis=0)
    std = np.sqrt(np.maximum(square - np.square(mean), MIN_STD**2))
    speeds = np.log([clip.speed for clip in clips])
    for buffer, value in (
        (model.mean, mean),
        (model.std, std),
        (model.rate_std, np.sqrt(np.maximum(rate, MIN_STD**2)) / std),
        (model.log_speed_mean, speeds.mean()),
        (model.log_speed_std, max(speeds.std(), 0.1)),
    ):
        buffer.copy_(torch.as_tensor(value, dtype=torch.float32))


def pad_end(values: np.ndarray, frames: int) -> np.ndarray:
    """Pad ``[T, C]`` to ``[frames, C]`` by repeating the last row."""
    return values[np.minimum(np.arange(frames), len(values) - 1)]
