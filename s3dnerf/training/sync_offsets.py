"""Offsets of training clips, estimated by cross-fitting: each by a discriminator not trained on the clip's person."""

from __future__ import annotations

import csv
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import torch

from s3dnerf.data.config import OFFSET_MARGIN
from s3dnerf.data.tracks import load_sync_offsets
from s3dnerf.media.files import atomic_write
from s3dnerf.models.clip_offset import find_clip_offset
from s3dnerf.training.sync import SyncConfig, SyncTrainer, compare_clip
from s3dnerf.training.sync_data import SyncClip, read_clips


def write_offsets(config: SyncConfig, run_dir: Path, path: Path) -> None:
    """Estimate the constant offset of each training clip and write a table.

    Two discriminators are trained, each on one half of the people, and each measures the clips of the other half. The
    columns of the table are id, offset (frames by which the audio is late: the speech that matches the lips at t is at
    t + offset), margin (mean cosine similarity at this offset minus the best one at offsets that are not its neighbors)
    and frames. Offsets that ``config.data.offsets`` already corrects are added.
    """
    clips = read_clips(config.data, config.model, config.seed)
    known = load_sync_offsets(config.data.offsets, OFFSET_MARGIN)
    people = sort_by_frames(clips)
    rows = []
    for half in range(2):
        left_out = replace(config.data, left_out=tuple(people[half::2]))
        trainer = SyncTrainer(replace(config, data=left_out), run_dir / f"half_{half + 1}", clips)
        trainer.run(trainer.config)
        model = trainer.averaged_model.eval()
        for clip in trainer.left_out:
            with torch.no_grad():
                offset, margin = find_clip_offset(compare_clip(model, clip, trainer.device).cpu())
            name = clip.track.clip.id
            rows.append((name, offset + known.get(name, 0), f"{margin:.4f}", clip.track.clip.frames))
    with (
        atomic_write(path, can_stream=True) as temporary,
        temporary.open("w", newline="", encoding="utf-8") as file,
    ):
        csv.writer(file).writerows([("id", "offset", "margin", "frames"), *sorted(rows)])


def sort_by_frames(clips: list[SyncClip]) -> list[str]:
    """Return the people by descending number of frames, so that every second person forms a balanced half."""
    frames: dict[str, int] = defaultdict(int)
    for clip in clips:
        frames[clip.track.clip.person] += clip.track.clip.frames
    return sorted(frames, key=lambda person: (-frames[person], person))
