"""Accuracy of the audio offset that preparation measures, on clips whose audio is shifted by known amounts."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from s3dnerf.constants import FPS, SAMPLES_PER_FRAME
from s3dnerf.data.clips import open_clips
from s3dnerf.data.frames import interpolate_frames
from s3dnerf.data.sync_offset import MIN_WINDOWS, SyncOffset, find_offset, label_offset, shift_speech
from s3dnerf.data.tracks import ClipTrack
from s3dnerf.errors import UserError
from s3dnerf.media.audio import measure_level, speech_gain
from s3dnerf.models.sync_discriminator import SyncDiscriminator, embed_moments, embed_video
from s3dnerf.structures import Camera

SEGMENT_LENGTHS = (50, 100, 200, None)
"""Lengths of the measured segments in frames; None for whole clips."""
MAX_SHIFT = 8
"""Largest shift of the audio in frames, to either side."""
NEGATIVES = 20
"""Number of other segments whose speech is paired with the lips of each segment."""
EXPLANATION = f"""Clips that are known to be in step, with audio shifted by up to {MAX_SHIFT} frames. In step: the
offset is accepted (label ok or corrected). Of these, found: within one frame of the true offset, which is the shift
plus the offset of the whole clip before; as labelled: within one frame of the shift alone. False: the same lips with
speech of the same length, of another person or of another clip of this person, are accepted as in step. All shares are
means over people."""


@dataclass(frozen=True)
class Segment:
    """A part of a clip, embedded, with its audio shifted."""

    person: str
    clip: str
    lips: Tensor
    """Unit vectors ``[W, E]``."""
    speech: Tensor
    """Unit vectors of the shifted audio, ``[W, E]``."""
    shift: int
    """Artificial delay of the audio in frames."""
    clip_offset: int
    """Offset of the whole clip before the shift, in frames."""


@dataclass
class OffsetScores:
    """Outcomes for segments of one length, by person."""

    length: int | None
    """Frames of a segment; None for whole clips."""
    segments: int = 0
    accepted: dict[str, list[bool]] = field(default_factory=lambda: defaultdict(list))
    found: dict[str, list[bool]] = field(default_factory=lambda: defaultdict(list))
    labelled: dict[str, list[bool]] = field(default_factory=lambda: defaultdict(list))
    false_other: dict[str, list[bool]] = field(default_factory=lambda: defaultdict(list))
    false_same: dict[str, list[bool]] = field(default_factory=lambda: defaultdict(list))

    def add(self, segment: Segment, found: SyncOffset) -> None:
        """Count a segment with its own speech."""
        self.segments += 1
        accepted = label_offset(found) != "unclear"
        self.accepted[segment.person].append(accepted)
        if accepted:
            self.found[segment.person].append(abs(found.offset - segment.shift - segment.clip_offset) <= 1)
            self.labelled[segment.person].append(abs(found.offset - segment.shift) <= 1)


def evaluate_offsets(model: SyncDiscriminator, root: str | Path, split: str, seed: int = 0) -> list[OffsetScores]:
    """Measure the offsets of the clips of a split that are known to be in sync, with shifted and with foreign audio.

    Raises:
        UserError: the split has no such clip.
    """
    clips = open_clips(root, split)
    rows = clips.find_speaking(MIN_WINDOWS)
    if not len(rows):
        raise UserError(root, f"split '{split}' has no clip with speech in step", "prepare clips with sound")
    rng = np.random.default_rng(seed)
    segments: dict[int | None, list[Segment]] = {length: [] for length in SEGMENT_LENGTHS}
    for row in tqdm(rows.tolist(), desc="clips", leave=False):
        track = clips.load_track(row)
        for length, some in cut_segments(model, track, rng).items():
            segments[length] += some
    return [score_segments(length, some, rng) for length, some in segments.items() if some]


def cut_segments(
    model: SyncDiscriminator, track: ClipTrack, rng: np.random.Generator
) -> dict[int | None, list[Segment]]:
    """Cut a clip into segments of each length, shift the audio of each by a random amount, and embed them."""
    count, window = track.clip.frames, model.config.frames
    camera = Camera.from_numpy(interpolate_frames(track, np.arange(float(count))))
    assert track.speech is not None, "silent clips are left out"
    lips = embed_video(model, track.clip.read_frames(np.arange(count)), camera).cpu()
    clip_offset = measure_offset(lips, embed_segment(model, track.speech, len(lips))).offset
    segments: dict[int | None, list[Segment]] = {}
    for length in SEGMENT_LENGTHS:
        frames = length or count
        segments[length] = []
        for first in range(0, count - frames + 1, frames):
            shift = int(rng.integers(-MAX_SHIFT, MAX_SHIFT + 1))
            audio = track.speech[first * SAMPLES_PER_FRAME : (first + frames) * SAMPLES_PER_FRAME]
            rows = lips[first : first + frames - window + 1]
            speech = embed_segment(model, shift_speech(audio, -shift), len(rows))
            segments[length].append(Segment(track.clip.person, track.clip.id, rows, speech, shift, clip_offset))
    return segments


def embed_segment(model: SyncDiscriminator, audio: np.ndarray, moments: int) -> Tensor:
    """Embed the speech of a segment as preparation does."""
    gain = np.float32(speech_gain(measure_level([audio])))
    return embed_moments(model, audio * gain, model.config.frames // 2 + np.arange(moments)).cpu()


def measure_offset(lips: Tensor, speech: Tensor) -> SyncOffset:
    """Find the offset over the moments that both have."""
    moments = min(len(lips), len(speech))
    return find_offset(lips[:moments], speech[:moments], torch.ones(moments, dtype=torch.bool))


def score_segments(length: int | None, segments: list[Segment], rng: np.random.Generator) -> OffsetScores:
    """Measure each segment with its own speech, with another person's, and with another clip's of the same person."""
    scores = OffsetScores(length)

    def pair_negatives(segment: Segment, counts: dict[str, list[bool]], others: list[Segment]) -> None:
        for number in rng.permutation(len(others))[:NEGATIVES]:
            found = measure_offset(segment.lips, others[number].speech)
            counts[segment.person].append(label_offset(found) != "unclear")

    for one in segments:
        scores.add(one, measure_offset(one.lips, one.speech))
        pair_negatives(one, scores.false_other, [other for other in segments if other.person != one.person])
        same = [other for other in segments if other.person == one.person and other.clip != one.clip]
        pair_negatives(one, scores.false_same, same)
    return scores


def format_offset_scores(scores: list[OffsetScores]) -> str:
    """Return a Markdown table with one line per segment length."""

    def share(counts: dict[str, list[bool]]) -> str:
        means = [np.mean(some) for some in counts.values() if some]
        return f"{np.mean(means):.1%}" if means else "-"

    lines = [
        "| length | segments | people | in step | found | as labelled | false, another person | false, another clip |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for one in scores:
        name = "whole clip" if one.length is None else f"{one.length / FPS:.0f} s"
        shares = (one.accepted, one.found, one.labelled, one.false_other, one.false_same)
        lines.append(f"| {name} | {one.segments} | {len(one.accepted)} | {' | '.join(map(share, shares))} |")
    return "\n".join([*lines, "", EXPLANATION])
