"""How often the sound offset that preparation measures is right, on clips whose sound is moved by known amounts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from s3dnerf.data.clip import list_clips
from s3dnerf.data.frames import interpolate_frames
from s3dnerf.data.sync_offset import MIN_WINDOWS, SyncOffset, find_offset, label_offset, shift_speech
from s3dnerf.data.tracks import ClipTrack, has_usable_speech, load_clip_track
from s3dnerf.errors import UserError
from s3dnerf.media.audio import SAMPLES_PER_FRAME, measure_level, speech_gain
from s3dnerf.models.sync_discriminator import SyncDiscriminator, embed_moments, embed_video
from s3dnerf.structures import Camera

LENGTHS = (50, 100, 200, None)
"""Frames of the stretches that are measured; None for whole clips."""
LARGEST_SHIFT = 8
"""Frames by which sound is moved to and fro, at most."""
FOREIGN = 20
"""Other stretches whose speech is tried with the lips of each."""
EXPLANATION = f"""Clips that are known to be in step, whose sound is moved by up to {LARGEST_SHIFT} frames. In step: the
offset is trusted (label ok or corrected). Of these, found: within one frame of the true offset, which is the amount
moved plus what is found in the whole clip before; as labelled: within one frame of the amount moved alone. False: the
same lips with other speech as long, of another person or of another clip of this person, are taken for in step. All
shares are means over people."""


@dataclass(frozen=True)
class Stretch:
    """A part of a clip, embedded, with its sound moved."""

    person: str
    clip: str
    lips: Tensor
    """Unit vectors ``[W, E]``."""
    speech: Tensor
    """The same of the moved sound."""
    shift: int
    """Frames by which the sound is late on purpose."""
    own: int
    """Offset of the whole clip before, frames."""


@dataclass
class OffsetScores:
    """Shares of stretches of one length, by person."""

    length: int | None
    """Frames of a stretch; None for whole clips."""
    stretches: int = 0
    accepted: dict[str, list[bool]] = field(default_factory=lambda: defaultdict(list))
    found: dict[str, list[bool]] = field(default_factory=lambda: defaultdict(list))
    labelled: dict[str, list[bool]] = field(default_factory=lambda: defaultdict(list))
    false_other: dict[str, list[bool]] = field(default_factory=lambda: defaultdict(list))
    false_same: dict[str, list[bool]] = field(default_factory=lambda: defaultdict(list))

    def count(self, stretch: Stretch, found: SyncOffset) -> None:
        """Count a stretch with its own speech."""
        self.stretches += 1
        accepted = label_offset(found) != "unclear"
        self.accepted[stretch.person].append(accepted)
        if accepted:
            self.found[stretch.person].append(abs(found.offset - stretch.shift - stretch.own) <= 1)
            self.labelled[stretch.person].append(abs(found.offset - stretch.shift) <= 1)


def evaluate_offsets(model: SyncDiscriminator, root: Path, split: str, seed: int = 0) -> list[OffsetScores]:
    """Measure moved sound, and foreign sound, of the clips of a split that are known to be in step.

    Raises:
        UserError: there is none.
    """
    tracks = [load_clip_track(folder) for folder in list_clips(root, split)]
    tracks = [track for track in tracks if has_usable_speech(track, MIN_WINDOWS)]
    if not tracks:
        raise UserError(root, f"split '{split}' has no clip with speech in step", "prepare clips with sound")
    rng = np.random.default_rng(seed)
    stretches: dict[int | None, list[Stretch]] = {length: [] for length in LENGTHS}
    for track in tqdm(tracks, desc="clips", leave=False):
        for length, some in cut_stretches(model, track, rng).items():
            stretches[length] += some
    return [score_stretches(length, some, rng) for length, some in stretches.items() if some]


def cut_stretches(
    model: SyncDiscriminator, track: ClipTrack, rng: np.random.Generator
) -> dict[int | None, list[Stretch]]:
    """Cut a clip into stretches of each length, move the sound of each by an amount of its own, and embed them."""
    count, run = track.clip.frames, model.config.frames
    camera = Camera.from_numpy(interpolate_frames(track, np.arange(float(count))))
    lips = embed_video(model, track.clip.read_frames(np.arange(count)), camera).cpu()
    own = measure(lips, embed(model, track.speech, len(lips))).offset
    stretches: dict[int | None, list[Stretch]] = {}
    for length in LENGTHS:
        frames = length or count
        stretches[length] = []
        for first in range(0, count - frames + 1, frames):
            shift = int(rng.integers(-LARGEST_SHIFT, LARGEST_SHIFT + 1))
            sound = track.speech[first * SAMPLES_PER_FRAME : (first + frames) * SAMPLES_PER_FRAME]
            rows = lips[first : first + frames - run + 1]
            speech = embed(model, shift_speech(sound, -shift), len(rows))
            stretches[length].append(Stretch(track.clip.person, track.clip.id, rows, speech, shift, own))
    return stretches


def embed(model: SyncDiscriminator, sound: np.ndarray, moments: int) -> Tensor:
    """Embed the speech of a clip as preparation does."""
    level = np.float32(speech_gain(measure_level([sound])))
    return embed_moments(model, sound * level, model.config.frames // 2 + np.arange(moments)).cpu()


def measure(lips: Tensor, speech: Tensor) -> SyncOffset:
    """Find the offset of as many moments as both have."""
    moments = min(len(lips), len(speech))
    return find_offset(lips[:moments], speech[:moments], torch.ones(moments, dtype=torch.bool))


def score_stretches(length: int | None, stretches: list[Stretch], rng: np.random.Generator) -> OffsetScores:
    """Measure each stretch with its own speech, with that of somebody else, and with that of another clip."""
    scores = OffsetScores(length)

    def mismatch(stretch: Stretch, counts: dict[str, list[bool]], fits: Callable[[Stretch], bool]) -> None:
        others = [other for other in stretches if fits(other)]
        for number in rng.permutation(len(others))[:FOREIGN]:
            found = measure(stretch.lips, others[number].speech)
            counts[stretch.person].append(label_offset(found) != "unclear")

    for one in stretches:
        scores.count(one, measure(one.lips, one.speech))
        mismatch(one, scores.false_other, lambda other, one=one: other.person != one.person)
        mismatch(one, scores.false_same, lambda other, one=one: other.person == one.person and other.clip != one.clip)
    return scores


def format_offset_scores(scores: list[OffsetScores]) -> str:
    """Return a Markdown table, a line a length."""

    def share(counts: dict[str, list[bool]]) -> str:
        means = [np.mean(some) for some in counts.values() if some]
        return f"{np.mean(means):.1%}" if means else "-"

    lines = [
        "| length | stretches | people | in step | found | as labelled | false, another person | false, another clip |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for one in scores:
        name = "whole clip" if one.length is None else f"{one.length / 25:.0f} s"
        shares = (one.accepted, one.found, one.labelled, one.false_other, one.false_same)
        lines.append(f"| {name} | {one.stretches} | {len(one.accepted)} | {' | '.join(map(share, shares))} |")
    return "\n".join([*lines, "", EXPLANATION])
