"""Sync discriminator (S3D-NeRF, section 3.5; after SyncNet, Chung and Zisserman, 2016).

Five consecutive frames of the lips and the speech around them are embedded as one vector each. The cosine of the two
vectors measures how well they are in sync. The discriminator is trained on real videos and then frozen; its gradient
flows into rendered frames.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from s3dnerf.config import check_config
from s3dnerf.constraints import Coordinate, Length, PositiveInt, ShareBelowOne, Width
from s3dnerf.media.audio import cut_speech_window
from s3dnerf.models.audio_encoder import GROUPS, AudioEncoder, AudioEncoderConfig, SpeechContext, SpeechWindow
from s3dnerf.models.layers import make_convolution
from s3dnerf.models.pretrained import PretrainedModel, load_model
from s3dnerf.ops.constant import constant
from s3dnerf.ops.image import make_pixel_grid
from s3dnerf.precision import mixed_precision
from s3dnerf.rendering.rays import project_points
from s3dnerf.structures import Camera

SETTING_ALIASES = {"audio.logmel": None}
"""Names in the ``config.json`` of earlier versions; None for settings that have become constants."""
SHIPPED = Path(__file__).parents[1] / "weights" / "sync"
"""Folder of the discriminator that ships with the package."""
GRAY = (0.299, 0.587, 0.114)
CROPPED_SIDE = 256
"""Larger frames are first downsampled to about this side by averaging, so that cropping does not skip pixels."""
CHUNK = 32
"""Frames or speech windows per batch when whole videos are embedded."""
SHARED_FRAMES = 4
"""Frames whose speech features are computed together when an offset is measured. On eight clips the offsets are those
without sharing, and their confidences differ by at most 0.008."""


@dataclass
class LipCropConfig:
    """The crop of a frame that shows lips, jaw and lower cheeks."""

    height: Annotated[PositiveInt, Field(ge=8, le=1024)] = 40
    """Rows of a crop."""
    width: Annotated[PositiveInt, Field(ge=8, le=1024)] = 64
    """Columns of a crop."""
    center: tuple[Coordinate, Coordinate, Coordinate] = (0.0, -0.45, 0.5)
    """Center of a crop in head units: a point slightly below the mouth."""
    reach: Length = 0.55
    """Half the width of a crop in head units."""


@dataclass
class SyncAudioConfig(AudioEncoderConfig):
    """Settings of the audio encoder, with other defaults."""

    features: Literal["logmel", "moonshine", "wav2vec2", "hubert"] = "moonshine"
    """Speech features, see ``AudioEncoderConfig``."""
    window: SpeechWindow = 8320
    """Samples of speech around the middle frame that are compared (520 ms)."""
    context: SpeechContext = 3520
    """Additional samples on either side."""


@dataclass
class SyncDiscriminatorConfig:
    """Sizes of the lip-sync discriminator, and everything that training and inference must agree on."""

    frames: Annotated[PositiveInt, Field(le=64)] = 5
    """Consecutive frames that are scored together, an odd number: speech is cut around the middle one."""
    crop: LipCropConfig = field(default_factory=LipCropConfig)
    """Position and size of the lip crop."""
    widths: Annotated[tuple[Width, ...], Field(min_length=1)] = (16, 32, 64, 128)
    """Channels of the convolutions over a frame, multiples of 8 except for the first; each halves the size."""
    frame_width: Width = 128
    """Length of the feature vector of a frame."""
    embedding: Width = 128
    """Length of the embeddings."""
    lip_dropout: ShareBelowOne = 0.3
    """Dropout probability of the features of a frame."""
    shapes: Width = 6
    """Numbers that describe the shape of the lips; predicting them is an auxiliary task, see ``lip_reader``."""
    audio: SyncAudioConfig = field(default_factory=SyncAudioConfig)
    """Speech around the middle frame, and the network over it."""

    @model_validator(mode="after")
    def check_sizes(self) -> SyncDiscriminatorConfig:
        """Check that there is a middle frame, and that group normalization divides the channels after the first."""
        if self.frames % 2 == 0:
            raise ValueError(f"frames ({self.frames}) should be an odd number")
        if any(width % GROUPS for width in self.widths[1:]):
            raise ValueError(f"widths {list(self.widths)} should be multiples of {GROUPS}, all but the first")
        return self


class SyncDiscriminator(PretrainedModel):
    """Two networks that embed lips and speech in a common space."""

    def __init__(self, config: SyncDiscriminatorConfig) -> None:
        """Build the networks."""
        super().__init__()
        check_config(config, "lip-sync discriminator")
        self.config = config
        self.frame_encoder = FrameEncoder(config)
        joined = config.frames * config.frame_width
        self.lip_head = make_head(joined, config.embedding, config.lip_dropout)
        self.audio_encoder = AudioEncoder(config.audio)
        with torch.no_grad():
            silence = torch.zeros(1, config.audio.samples)
            tokens = self.audio_encoder(silence).flatten(1).shape[1]
        self.speech_head = make_head(tokens, config.embedding, config.audio.dropout)
        # Auxiliary heads, used in training only: both sides predict the lip shape. Without them the accuracy stays at
        # chance for a long time.
        self.lip_reader = nn.Linear(config.frame_width, config.shapes)
        self.speech_reader = nn.Linear(tokens, config.shapes)

    def crop_lips(self, images: Tensor, camera: Camera) -> Tensor:
        """Crop the lips out of ``images [B, 3, S, S]`` (in [0, 1]) with head poses ``camera``: ``[B, 3, h, w]``."""
        return crop_lips(images, camera, self.config.crop)

    def embed_lips(self, crops: Tensor) -> Tensor:
        """Embed runs of consecutive crops ``[N, frames, 3, h, w]`` as unit vectors ``[N, embedding]``."""
        return self.join_frames(self.frame_encoder(crops.flatten(0, 1)).unflatten(0, crops.shape[:2]))

    def join_frames(self, described: Tensor) -> Tensor:
        """Embed runs of frame features ``[N, frames, frame_width]`` as unit vectors ``[N, embedding]``."""
        return F.normalize(self.lip_head(described.flatten(1)).float(), dim=-1)

    def embed_speech(self, windows: Tensor) -> Tensor:
        """Embed speech ``[N, samples]`` around the middle frame of each run, at the normal level, as unit vectors.

        Longer windows are center-cropped to ``config.audio.samples``. Raises ValueError if they are shorter.
        """
        return self.embed_features(self.audio_encoder.extract_features(windows))

    def embed_features(self, features: Tensor) -> Tensor:
        """Embed speech features ``[N, channels, columns]`` of ``audio_encoder.extract_features`` as unit vectors."""
        return self.join_tokens(self.audio_encoder.encode(features))

    def join_tokens(self, tokens: Tensor) -> Tensor:
        """Embed speech tokens ``[N, steps, width]`` as unit vectors ``[N, embedding]``."""
        return F.normalize(self.speech_head(tokens.flatten(1)).float(), dim=-1)

    def forward(self, images: Tensor, camera: Camera, windows: Tensor) -> Tensor:
        """Return the cosine between lips and speech of N runs, ``[N]``.

        Args:
            images: ``[N * frames, 3, S, S]``; the frames of a run are consecutive.
            camera: head poses in the frames.
            windows: ``[N, samples]`` speech around the middle frame of each run, as cut by ``cut_speech_window``.
        """
        crops = self.crop_lips(images, camera).unflatten(0, (-1, self.config.frames))
        return (self.embed_lips(crops) * self.embed_speech(windows)).sum(-1)


class FrameEncoder(nn.Module):
    """Convolutions over the crop of one frame, in grayscale with normalized brightness and contrast."""

    def __init__(self, config: SyncDiscriminatorConfig) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs, height, width = 1, config.crop.height, config.crop.width
        for outputs in config.widths:
            first = inputs == 1
            layers.append(make_convolution(inputs, outputs, 2, 5 if first else 3))
            # The crops are normalized already.
            layers += [nn.SiLU()] if first else [nn.GroupNorm(GROUPS, outputs), nn.SiLU()]
            inputs, height, width = outputs, math.ceil(height / 2), math.ceil(width / 2)
        self.convolutions = nn.Sequential(*layers)
        self.describe = nn.Sequential(
            nn.Dropout(config.lip_dropout),
            nn.Linear(inputs * height * width, config.frame_width),
            nn.LayerNorm(config.frame_width),
            nn.SiLU(),
        )

    def forward(self, crops: Tensor) -> Tensor:
        """Encode crops ``[N, 3 or 1, h, w]`` as ``[N, frame_width]``."""
        even = even_out(crops).contiguous(memory_format=torch.channels_last)
        return self.describe(self.convolutions(even).flatten(1))


def load_discriminator(folder: str | Path = SHIPPED, device: torch.device | str = "cpu") -> SyncDiscriminator:
    """Load a discriminator for supervision or evaluation: in evaluation mode, with frozen parameters.

    ``folder`` may also be a hub id. Raises UserError if it holds no discriminator.
    """
    model = load_model(SyncDiscriminator, SyncDiscriminatorConfig, folder, SETTING_ALIASES).to(device)
    return model.eval().requires_grad_(False)


@torch.inference_mode()
def embed_video(model: SyncDiscriminator, frames: Iterable[np.ndarray], camera: Camera) -> Tensor:
    """Embed the lips of a whole video, holding a few frames in memory at a time.

    Args:
        model: the discriminator.
        frames: T consecutive frames ``uint8 [S, S, 3]``.
        camera: T head poses.

    Returns:
        Unit vectors ``[T - 4, embedding]``. Row i belongs to the run of five frames (``model.config.frames``) that
        starts at frame i; its middle is frame ``i + 2``.

    Raises:
        ValueError: the numbers of frames and poses differ, or there are fewer than five frames.
    """
    count, run = len(camera.scale), model.config.frames
    with mixed_precision(next(model.parameters()).device):  # as in training
        described = describe_frames(model, frames, camera)
        if len(described) != count or count < run:
            raise ValueError(f"{len(described)} frames with {count} poses cannot be scored")
        return model.join_frames(described.unfold(0, run, 1).transpose(1, 2))


@torch.inference_mode()
def embed_moments(model: SyncDiscriminator, speech: np.ndarray, moments: np.ndarray, shared_frames: int = 1) -> Tensor:
    """Embed the speech around frames.

    Args:
        model: the discriminator.
        speech: 16 kHz audio at the normal level, ``[samples]``.
        moments: ``[N]`` consecutive frame numbers.
        shared_frames: number of frames whose speech features are computed together, a divisor of ``CHUNK``; with
            ``SHARED_FRAMES``, in half the time and with a cosine of 0.994 to those of each frame.

    Returns:
        Unit vectors ``[N, embedding]``.

    Raises:
        ValueError: the frame numbers are not consecutive.
    """
    if np.any(np.diff(moments) != 1):
        raise ValueError("the frame numbers are not consecutive")
    device = next(model.parameters()).device
    encoder, speech = model.audio_encoder, speech.astype(np.float32, copy=False)
    embedded = [torch.zeros(0, model.config.embedding, device=device)]
    with mixed_precision(device):
        for first in range(0, len(moments), CHUNK):
            some = moments[first : first + CHUNK]
            # Complete groups, so that the speech that neighbors share is encoded once.
            whole = some[0] + np.arange(-(-len(some) // shared_frames) * shared_frames)
            windows = torch.from_numpy(cut_speech_window(speech, whole, model.config.audio.samples)).to(device)
            features = encoder.extract_features(windows, shared_frames)[: len(some)]
            embedded.append(model.embed_features(features))
    return torch.cat(embedded)


def describe_frames(model: SyncDiscriminator, frames: Iterable[np.ndarray], camera: Camera) -> Tensor:
    """Run frames ``uint8 [S, S, 3]`` through the frame encoder in small batches. Returns ``[T, frame_width]``."""
    device = next(model.parameters()).device
    described, stream, done = [torch.zeros(0, model.config.frame_width, device=device)], iter(frames), 0
    while chunk := list(islice(stream, CHUNK)):
        rows = slice(done, done + len(chunk))
        poses = Camera(*(part[rows].to(device) for part in (camera.rotation, camera.scale, camera.center)))
        # Bytes that lie apart in memory take several times as long to convert.
        images = torch.from_numpy(np.stack(chunk)).to(device).movedim(-1, 1).contiguous().float() / 255.0
        described.append(model.frame_encoder(model.crop_lips(images, poses)).float())
        done += len(chunk)
    return torch.cat(described)


def make_head(inputs: int, outputs: int, dropout: float) -> nn.Sequential:
    """Return the layers between an encoder and the common space."""
    return nn.Sequential(
        nn.Dropout(dropout),
        nn.Linear(inputs, 2 * outputs),
        nn.LayerNorm(2 * outputs),
        nn.SiLU(),
        nn.Linear(2 * outputs, outputs),
    )


def even_out(crops: Tensor) -> Tensor:
    """Convert crops ``[N, 3 or 1, h, w]`` to grayscale with mean 0 and standard deviation 1 per frame.

    Returns ``[N, 1, h, w]``.
    """
    if crops.shape[1] == 3:
        crops = (crops * constant(GRAY, crops.device, crops.dtype)[:, None, None]).sum(dim=1, keepdim=True)
    crops = crops - crops.mean(dim=(2, 3), keepdim=True)
    return crops / (crops.square().mean(dim=(2, 3), keepdim=True) + 1e-4).sqrt()


def crop_lips(images: Tensor, camera: Camera, config: LipCropConfig, margin: float = 0.0) -> Tensor:
    """Crop the lips out of frames, upright and at a fixed size for every head pose. Differentiable in the frames.

    Args:
        images: ``[B, 3, S, S]``.
        camera: head pose in each frame.
        config: position and size of the crop.
        margin: additional margin on every side, as a fraction of the crop's height and width.

    Returns:
        ``[B, 3, h, w]``; a margin enlarges h and w proportionally.
    """
    factor = images.shape[-1] // CROPPED_SIDE
    images = F.avg_pool2d(images, factor) if factor > 1 else images
    anchor = constant(config.center, images.device, torch.float32).expand(len(images), 1, 3)
    middle = project_points(anchor, camera)[..., :2]
    height, width = (round(side * (1.0 + 2.0 * margin)) for side in (config.height, config.width))
    # The grid is in units of half the crop's width, so that pixels are square.
    grid = make_pixel_grid(height, width, images.device) * (1.0 + 2.0 * margin)
    grid = grid * constant((1.0, config.height / config.width), grid.device, grid.dtype)
    reach = config.reach * camera.scale[:, None, None]
    # Autocast would round positions to a fifth of a pixel.
    with torch.autocast(images.device.type, enabled=False):
        places = middle + reach * (grid.flatten(0, 1) @ measure_roll(camera).transpose(1, 2))
    return F.grid_sample(
        images, places.unflatten(1, (height, width)).to(images), padding_mode="border", align_corners=False
    )


def measure_roll(camera: Camera) -> Tensor:
    """Return the in-plane rotations ``[B, 2, 2]`` of (u, v) that are nearest to the head rotations."""
    rotation = camera.rotation
    # The rotation nearest to the upper left block has this angle. It turns the other way because v points down.
    angle = torch.atan2(rotation[:, 1, 0] - rotation[:, 0, 1], rotation[:, 0, 0] + rotation[:, 1, 1])
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([torch.stack([cos, sin], -1), torch.stack([-sin, cos], -1)], 1)


def score_offsets(cosines: Tensor, reach: int, first: int = 0) -> Tensor:
    """Return the mean cosine between lips and speech at each offset.

    Args:
        cosines: ``[R, T]`` cosines of lips (rows) and speech (columns) around consecutive frames.
        reach: largest offset in frames.
        first: the column that belongs to row 0.

    Returns:
        ``[2 reach + 1]`` means over the pairs within the matrix. Entry ``reach + k`` pairs lips at t with speech at
        t + k, so it is the maximum if the audio is k frames late. It is -1 if fewer than half of the rows have a
        partner.
    """
    scores = cosines.new_full((2 * reach + 1,), -1.0)
    for offset in range(-reach, reach + 1):
        pairs = cosines.diagonal(first + offset)
        if 2 * len(pairs) >= len(cosines):
            scores[reach + offset] = pairs.mean()
    return scores


def score_embeddings(lips: Tensor, speech: Tensor, reach: int, first: int = 0, counted: Tensor | None = None) -> Tensor:
    """Score offsets as :func:`score_offsets` does, without the matrix of all cosines. Memory grows with R + T.

    Args:
        lips: unit vectors ``[R, E]`` of consecutive frames.
        speech: unit vectors ``[T, E]`` of consecutive frames.
        reach: largest offset in frames.
        first: the row of ``speech`` that belongs to row 0 of ``lips``.
        counted: ``bool [R]`` mask of the rows of ``lips`` to use; all by default.

    Returns:
        ``[2 reach + 1]`` mean cosines; -1 if fewer than half of the rows used have a partner.
    """
    counted = torch.ones(len(lips), dtype=torch.bool, device=lips.device) if counted is None else counted
    scores = lips.new_full((2 * reach + 1,), -1.0)
    for offset in range(-reach, reach + 1):
        low, high = max(0, -first - offset), min(len(lips), len(speech) - first - offset)
        if low >= high:
            continue
        cosines = (lips[low:high] * speech[low + first + offset : high + first + offset]).sum(-1)[counted[low:high]]
        if len(cosines) and 2 * len(cosines) >= counted.sum():
            scores[reach + offset] = cosines.mean()
    return scores


@dataclass(frozen=True)
class TwoWay:
    """How well matching pairs of lips and speech are distinguished from mismatched ones."""

    accuracy: float
    """Fraction of mismatched pairs with a lower cosine than the matching pair of the same lips; 0.5 is chance."""
    separation: float
    """Mean cosine of matching pairs minus that of mismatched ones."""


def measure_two_way(scores: Tensor, negatives: Tensor) -> TwoWay:
    """Compare the diagonal of ``scores [N, N]`` (lips by speech) with the entries marked by ``negatives``."""
    true = scores.diagonal()[:, None]
    nearer = (true > scores).float() + 0.5 * (true == scores).float()
    return TwoWay(nearer[negatives].mean().item(), (true.mean() - scores[negatives].mean()).item())


def mark_distant(count: int, distance: int) -> Tensor:
    """Mark the pairs of ``count`` consecutive frames that are at least ``distance`` apart, ``bool [count, count]``."""
    times = torch.arange(count)
    return (times[:, None] - times).abs() >= distance
