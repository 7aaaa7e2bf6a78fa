"""Clips and batches for the sync discriminator.

Speech features are computed once, in the same way as for rendered frames later: each window is cut by
``cut_speech_window`` and encoded separately, as recorded and in a few augmented versions. Lip crops are slightly larger
than the input of the network, so that each step can shift, rotate, scale and mirror them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from s3dnerf.constraints import PositiveInt, Text
from s3dnerf.data.augmentation import augment_speech
from s3dnerf.data.clips import open_clips
from s3dnerf.data.config import OFFSET_MARGIN, PERSON_POWER
from s3dnerf.data.frames import interpolate_frames
from s3dnerf.data.sampling import ClipSampler, spread_rows
from s3dnerf.data.tracks import ClipTrack, load_sync_offsets
from s3dnerf.face.points import KEPT_POINTS
from s3dnerf.models.audio_encoder import AudioEncoder
from s3dnerf.models.sync_discriminator import SyncDiscriminatorConfig, crop_lips
from s3dnerf.precision import mixed_precision
from s3dnerf.structures import Camera

MARGIN = 0.2
"""Margin of the stored crops on every side, as a fraction of the network's input."""
RUN_STRIDE = 2
"""Frames from one run of five to the next in a segment. Adjacent runs are nearly identical."""
SHAPE_POINTS = {"upper": 13, "lower": 14, "left": 61, "right": 291, "chin": 152}
IN_PLACE = np.eye(2, 3)[None]
LIP_SHAPES = 6
"""Length of the lip shape that :func:`measure_lip_shape` returns for every frame."""
CLIPS = 2_000
"""Maximum number of clips, about; they are spread over all people."""
CHUNK = 64
"""Frames or speech windows per batch."""


@dataclass
class SyncDataConfig:
    """Source of the clips, and sampling of segments."""

    root: Text = "data/prepared"
    """Prepared clips or shards (made by tools/prepare.py), as for ``train``; of streamed shards, some are used."""
    split: Text = "train"
    """Split to train on; clips whose sync is ok or corrected are used."""
    left_out: tuple[Text, ...] = ()
    """People of this split who are used for validation instead of training."""
    offsets: Path | None = None
    """Table of constant offsets (made by train-sync --offsets) that are corrected when clips are read."""
    segments: PositiveInt = 12
    """Segments per batch."""
    segment_frames: PositiveInt = 20
    """Frames per segment."""
    versions: Annotated[PositiveInt, Field(le=100)] = 3
    """Versions of each recording: the original, and others with augmented level, equalization and noise."""


@dataclass(frozen=True)
class SyncClip:
    """A clip in memory, in the form that the discriminator uses."""

    track: ClipTrack
    crops: Tensor
    """``uint8 [T, 3, H, W]`` lip crops, larger by ``MARGIN`` on every side."""
    speech: Tensor
    """``float16 [versions, T, channels, columns]`` features of the speech around each frame."""


@dataclass(frozen=True)
class SyncBatch:
    """Segments of consecutive frames, and every second run of five frames in them (adjacent runs are redundant)."""

    crops: Tensor
    """``[S, L, 1, h, w]`` lip crops."""
    speech: Tensor
    """``[S, W, channels, columns]`` speech features around the middle frames of the runs."""
    clips: Tensor
    """``[S, W]`` number of the clip."""
    times: Tensor
    """``[S, W]`` middle frame of the run."""
    shapes: Tensor
    """``[S, L, 6]`` lip shape."""


class SyncData:
    """Clips in memory, and batches of segments by step number."""

    def __init__(
        self, clips: list[SyncClip], config: SyncDataConfig, model: SyncDiscriminatorConfig, seed: int
    ) -> None:
        self.config, self.model, self.seed = config, model, seed
        self.clips = clips
        people = np.array([clip.track.clip.person for clip in clips])
        frames = np.array([len(clip.track.frames) for clip in clips])
        self.sampler = ClipSampler(np.arange(len(clips)), people, frames, PERSON_POWER)
        shapes = [measure_lip_shape(clip.track) for clip in clips]
        spread = torch.cat(shapes).std(dim=0)
        self.shapes = [shape / spread for shape in shapes]

    def draw(self, step: int) -> SyncBatch:
        """Return the batch of a step, a pure function of the seed and the step."""
        rng = np.random.default_rng((self.seed, step))
        length, half = self.config.segment_frames, self.model.frames // 2
        crops, speech, clips, times, shapes = [], [], [], [], []
        for _ in range(self.config.segments):
            number = self.sampler.sample(rng)
            clip = self.clips[number]
            first = rng.integers(clip.track.clip.frames - length + 1)
            middles = np.arange(first + half, first + length - half, RUN_STRIDE)
            crops.append(augment_crops(clip.crops[first : first + length], self.model, rng))
            speech.append(clip.speech[rng.integers(len(clip.speech)), middles].float())
            clips.append(torch.full((len(middles),), number))
            times.append(torch.from_numpy(middles))
            shapes.append(self.shapes[number][first : first + length])
        return SyncBatch(*(torch.stack(parts) for parts in (crops, speech, clips, times, shapes)))


def measure_lip_shape(track: ClipTrack) -> Tensor:
    """Measure the lip shape in every frame, minus its mean over the clip, in head units: ``[T, 6]``.

    The shape holds opening and width of the mouth, height of upper lip, lower lip and chin, and protrusion of the lips.
    """
    points = torch.from_numpy(track.landmarks).float()
    upper, lower, left, right, chin = (points[:, KEPT_POINTS.searchsorted(number)] for number in SHAPE_POINTS.values())
    shape = torch.stack(
        [
            upper[:, 1] - lower[:, 1],
            right[:, 0] - left[:, 0],
            upper[:, 1],
            lower[:, 1],
            chin[:, 1],
            upper[:, 2] + lower[:, 2],
        ],
        dim=1,
    )
    return shape - shape.mean(dim=0)


def read_clips(data: SyncDataConfig, model: SyncDiscriminatorConfig, seed: int) -> list[SyncClip]:
    """Read the clips that are known to be in sync. If the settings name a table of offsets, they are applied.

    Raises:
        UserError: the folder of clips or the table does not exist.
    """
    offsets = load_sync_offsets(data.offsets, OFFSET_MARGIN)
    prepared = open_clips(data.root, data.split)
    rows = prepared.find_speaking(data.segment_frames)
    if len(rows):
        index = prepared.index
        groups = ClipSampler(rows, index.person[rows], index.valid[rows], PERSON_POWER).group_rows()
        rows = np.sort(np.concatenate(spread_rows(groups, CLIPS)))
    hearing = AudioEncoder(model.audio).eval()
    clips = []
    for number, row in enumerate(tqdm(rows.tolist(), desc="encoding and cropping", dynamic_ncols=True)):
        track = prepared.load_track(row)
        rng = np.random.default_rng((seed, number))
        offset = offsets.get(track.clip.id, 0)
        heard = [
            extract_speech_features(track, hearing, offset, None if version == 0 else rng)
            for version in range(data.versions)
        ]
        clips.append(SyncClip(track, crop_clip(track, model), torch.stack(heard)))
    return clips


def crop_clip(track: ClipTrack, config: SyncDiscriminatorConfig) -> Tensor:
    """Crop the lips of every frame with ``MARGIN``. Returns ``uint8 [T, 3, H, W]``."""
    frames = np.arange(track.clip.frames)
    camera = Camera.from_numpy(interpolate_frames(track, frames.astype(float)))
    crops = []
    for rows in np.array_split(frames, -(-len(frames) // CHUNK)):
        images = torch.from_numpy(track.clip.read_frames(rows)).movedim(-1, 1) / 255.0
        poses = Camera(camera.rotation[rows], camera.scale[rows], camera.center[rows])
        crops.append((255.0 * crop_lips(images, poses, config.crop, MARGIN)).round().byte())
    return torch.cat(crops)


@torch.no_grad()
def extract_speech_features(
    track: ClipTrack, hearing: AudioEncoder, offset: int, rng: np.random.Generator | None
) -> Tensor:
    """Return the speech features ``offset`` frames after every frame, ``float16 [T, channels, columns]``.

    Each window is cut and encoded separately, as for rendered frames. With ``rng``, the audio is augmented first.
    """
    assert track.speech is not None, "silent clips are not trained on"
    windows = augment_speech(track.speech, float(offset), 1.0, track.clip.frames, hearing.config.samples, rng)
    with mixed_precision(torch.device("cpu")):
        heard = torch.cat([hearing.extract_features(chunk) for chunk in torch.from_numpy(windows).split(CHUNK)])
    return heard.half()


def augment_crops(crops: Tensor, config: SyncDiscriminatorConfig, rng: np.random.Generator) -> Tensor:
    """Augment a segment of stored crops ``uint8 [L, 3, H, W]`` to network inputs ``[L, 1, h, w]``.

    Shift, scale, rotation, mirroring, blur, contrast and the color channel are the same for all frames. Each frame also
    gets a small random shift, like the jitter of tracked heads, and noise.
    """
    length = len(crops)
    angle, scale = rng.uniform(-0.12, 0.12), np.exp(rng.uniform(-0.12, 0.12))
    shift = rng.uniform(-0.1, 0.1, 2) + 0.012 * rng.standard_normal((length, 2))
    side = 1.0 if rng.random() < 0.5 else -1.0
    aspect = config.crop.height / config.crop.width
    cos, sin = scale * np.cos(angle), scale * np.sin(angle)
    matrix = np.array([[side * cos, -sin * aspect], [side * sin / aspect, cos]])
    theta = np.concatenate([np.broadcast_to(matrix, (length, 2, 2)), shift[..., None]], axis=2)
    gray = place_crops(crops[:, rng.integers(3), None], theta, config)
    gray = gray.clamp(min=1e-3) ** float(np.exp(rng.uniform(-0.4, 0.4)))
    if rng.random() < 0.5:
        gray = blur(gray, rng.uniform(0.3, 1.3))
    noise = torch.from_numpy(rng.standard_normal(gray.shape, dtype=np.float32))
    return gray + rng.uniform(0.0, 0.03) * noise


def place_crops(crops: Tensor, placement: np.ndarray, config: SyncDiscriminatorConfig) -> Tensor:
    """Resample stored crops ``uint8 [L, C, H, W]`` to network inputs in [0, 1], by affine maps ``[L, 2, 3]``."""
    shape = [len(crops), crops.shape[1], config.crop.height, config.crop.width]
    theta = torch.from_numpy(placement / (1.0 + 2.0 * MARGIN)).float().expand(len(crops), 2, 3)
    # Mixed precision would round the positions.
    with torch.autocast("cpu", enabled=False):
        grid = F.affine_grid(theta, shape, align_corners=False)
    return F.grid_sample(crops.float() / 255.0, grid, padding_mode="border", align_corners=False)


def blur(images: Tensor, sigma: float) -> Tensor:
    """Blur ``[N, 1, h, w]`` by a Gaussian of ``sigma`` pixels (up to about 1.5)."""
    steps = torch.arange(-3, 4)
    kernel = torch.softmax(-0.5 * (steps / sigma).square(), dim=0)
    images = F.conv2d(F.pad(images, (3, 3, 0, 0), mode="replicate"), kernel[None, None, None])
    return F.conv2d(F.pad(images, (0, 0, 3, 3), mode="replicate"), kernel[None, None, :, None])
