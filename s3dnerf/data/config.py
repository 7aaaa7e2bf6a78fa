"""Settings of the training data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from s3dnerf.constraints import NonNegativeFloat, NonNegativeInt, PositiveInt, Text

MAX_WORKERS = 1024
"""Largest plausible number of processes."""
MAX_CACHE_GB = 1e5
PERSON_POWER = 0.6
"""An identity with n frames is sampled in proportion to n to this power."""
OFFSET_MARGIN = 0.02
"""Sync offsets with a smaller margin in a table of them are ignored."""
NEAR_SOURCES = 0.25
"""Fraction of the sources taken within a fifth of a second of a frame to be rendered; they teach that the source is
right where little has changed."""
RUN_FRAMES = 5
"""Frames of a run: as many as the sync discriminator compares."""


@dataclass
class DataConfig:
    """Where training clips come from and how batches are sampled from them."""

    root: Text = "data/prepared"
    """Prepared clips or shards (made by tools/prepare.py): a folder; a URL of a folder with shards; or "pipe:" and a
    command that prints the file whose name is put in place of {}, such as "pipe:aws s3 cp s3://bucket/vox/{} -"."""
    train_split: Text = "train"
    """Split to train on."""
    held_out_people: NonNegativeInt | None = None
    """People of that split who are left out, for validation and to fit the inference settings. None holds out a tenth
    of those with usable speech, at most 8."""
    frames: PositiveInt = 2
    """Frames of the same clip rendered from each source of a batch."""
    run_every: NonNegativeInt = 4
    """Every this many batches, the frames are consecutive and share one source, for losses on lip motion; 0 for
    never."""
    offsets: Path | None = None
    """Table of constant sync offsets (made by train-sync --offsets) that are corrected when clips are loaded."""
    sequences: PositiveInt = 4
    """Speech sequences in a batch."""
    sequence_frames: Annotated[PositiveInt, Field(ge=2)] = 24
    """Frames in a speech sequence."""
    augment: bool = True
    """Mirror images; change colors, gain, noise and tempo."""
    cache_gb: Annotated[NonNegativeFloat, Field(le=MAX_CACHE_GB)] = 8.0
    """Memory in GB for tracks and decoded frames (200 KB per frame at 256 x 256), divided among the workers. Shards
    that are read through a URL or a pipe take as much again."""
    workers: Annotated[NonNegativeInt, Field(le=MAX_WORKERS)] = 1
    """Processes that prepare batches in advance; 0 prepares them in the training process."""

    @property
    def cache_bytes(self) -> int:
        """Bytes of tracks and frames that each worker keeps."""
        return int(self.cache_gb * 2**30 / max(1, self.workers))

    @model_validator(mode="after")
    def check_runs(self) -> DataConfig:
        """Clips that are long enough for a speech sequence must be long enough for a run."""
        if self.run_every and self.sequence_frames < RUN_FRAMES:
            reason = f"sequence_frames ({self.sequence_frames}) should be at least {RUN_FRAMES}, the frames of a run"
            raise ValueError(f"{reason}, or run_every 0")
        return self
