"""Training batches as tensors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from s3dnerf.data.frames import FrameArrays
from s3dnerf.structures import Camera, Source, map_tensors


@dataclass(frozen=True)
class Frames:
    """B frames to be rendered, and the signals that drive them."""

    image: Tensor | None
    """``[B, 3, S, S]`` in [0, 1]; None in the motion stage."""
    camera: Camera
    landmarks: Tensor
    """``[B, P, 3]`` head space."""
    displacement: Tensor
    """``[B, P, 3]`` landmarks minus the mean face of the identity in this clip."""
    eyes: Tensor
    """``[B, 2]`` eye openness."""
    speech: Tensor
    """``[B, window]`` speech around each frame at the normal level; zeros for silent clips."""
    in_sync: Tensor
    """``[B]`` bool: the clip has speech that is in sync with the video."""
    flow: Tensor | None = None
    """``[B, 2, S/2, S/2]`` optical flow from the frame to its source (image coordinates)."""
    confidence: Tensor | None = None
    """``[B, 1, S/2, S/2]`` confidence of the flow in [0, 1]."""


@dataclass(frozen=True)
class Reenactment:
    """Frames of several clips to be reenacted, with a source image from each clip."""

    sources: Source
    """One item for each clip."""
    source_displacement: Tensor
    """``[B, P, 3]`` landmarks of the sources minus the mean face of the identity."""
    frames: Frames
    """``frames_per_source`` items in a row for each clip."""
    is_run: bool
    """Whether the frames of a clip are consecutive."""

    @property
    def frames_per_source(self) -> int:
        """Number of frames for each source."""
        return len(self.frames.eyes) // len(self.sources.eyes)


@dataclass(frozen=True)
class Batch:
    """The data of one training step. A part that the step does not need is None."""

    images: Reenactment | None
    """Frames with images, to be rendered: ``data.frames`` for each source, or a run of consecutive ones."""
    speech: Reenactment | None
    """Speech sequences without images: ``data.sequences`` sources with ``data.sequence_frames`` frames each."""

    def pin_memory(self) -> Batch:
        """Return the batch in pinned memory, for ``DataLoader``: the host need not wait for copies to a GPU."""
        return map_tensors(self, torch.Tensor.pin_memory)


@dataclass(frozen=True)
class BatchContent:
    """What a training step needs."""

    image_size: int
    """Side of all images in pixels, those of the sources of speech sequences included."""
    images: bool = True
    """Whether it renders images."""
    speech: bool = True
    """Whether it trains motion from speech."""


def to_source(frames: FrameArrays) -> Source:
    """Convert frames with pixels to a batch of sources."""
    assert frames.pixels is not None and frames.matte is not None, "sources are seen"
    matte = to_tensor(frames.matte[:, None]) / 255.0
    landmarks, eyes = to_tensor(frames.landmarks), to_tensor(frames.eyes)
    return Source(_to_image(frames.pixels), Camera.from_numpy(frames), landmarks, eyes, matte)


def to_frames(frames: FrameArrays) -> Frames:
    """Convert frames to tensors."""
    assert frames.speech is not None, "frames are driven by speech, which may be silence"
    return Frames(
        image=None if frames.pixels is None else _to_image(frames.pixels),
        camera=Camera.from_numpy(frames),
        landmarks=to_tensor(frames.landmarks),
        displacement=to_tensor(frames.displacement),
        eyes=to_tensor(frames.eyes),
        speech=to_tensor(frames.speech),
        in_sync=torch.from_numpy(np.ascontiguousarray(frames.in_sync)),
        flow=None if frames.flow is None else to_tensor(np.moveaxis(frames.flow, -1, 1)),
        confidence=None if frames.confidence is None else to_tensor(frames.confidence[:, None]),
    )


def to_tensor(array: np.ndarray) -> Tensor:
    """Convert an array to a contiguous float32 tensor."""
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))


def _to_image(pixels: np.ndarray) -> Tensor:
    return to_tensor(np.moveaxis(pixels, -1, 1)) / 255.0
