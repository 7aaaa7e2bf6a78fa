"""The shipped lip-sync discriminator in the form in which data preparation takes it."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import numpy as np
from torch import Tensor

from s3dnerf.data.sync_offset import SyncEmbedder
from s3dnerf.face.camera import HeadPose
from s3dnerf.models.sync_discriminator import (
    SHARED_FRAMES,
    SyncDiscriminator,
    embed_moments,
    embed_video,
    load_discriminator,
)
from s3dnerf.structures import Camera


def load_sync_embedder() -> SyncEmbedder:
    """Load the shipped lip-sync discriminator. Takes about as long as measuring a short clip."""
    return make_sync_embedder(load_discriminator())


def make_sync_embedder(model: SyncDiscriminator) -> SyncEmbedder:
    """Wrap a lip-sync discriminator for ``data.sync_offset``."""
    embed_speech = partial(embed_moments, model, shared_frames=SHARED_FRAMES)
    return SyncEmbedder(model.config.frames, partial(_embed_lips, model), embed_speech)


def _embed_lips(model: SyncDiscriminator, frames: Iterable[np.ndarray], pose: HeadPose) -> Tensor:
    return embed_video(model, frames, Camera.from_numpy(pose))
