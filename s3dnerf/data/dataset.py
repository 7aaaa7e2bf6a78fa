"""Prepared clips -> training batches.

A batch is a pure function of the seed and the step, so training resumes exactly where it stopped, whichever worker
process makes the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, partial

import numpy as np
from torch.utils.data import Dataset

from s3dnerf.data.augmentation import augment_speech
from s3dnerf.data.batch import Batch, BatchContent, Reenactment, to_frames, to_source, to_tensor
from s3dnerf.data.clips import open_clips, read_root_index
from s3dnerf.data.config import NEAR_SOURCES, OFFSET_MARGIN, PERSON_POWER, RUN_FRAMES, DataConfig
from s3dnerf.data.frames import FrameArrays, add_flow, interpolate_frames, jitter_frame_colors, mirror_frames
from s3dnerf.data.index import decode_text, order_people
from s3dnerf.data.sampling import ClipSampler, Pool, spread_rows
from s3dnerf.data.streams import StreamPlan
from s3dnerf.data.tracks import MAX_TEMPO, MIN_TEMPO, ClipTrack, load_sync_offsets
from s3dnerf.errors import UserError
from s3dnerf.media.audio import cut_speech_window

__all__ = ["EmptySplitError", "TalkingFaceDataset", "select_held_out"]

NEAR_FRAMES = 5
"""Largest distance in frames between a frame and a source from about the same moment."""


MAX_HELD_OUT = 8
"""People held out by default, if they are at most a tenth of those with usable speech."""


class EmptySplitError(UserError):
    """A split has no clips, or none with usable speech."""


class TalkingFaceDataset(Dataset[Batch]):
    """Training batches by step number."""

    def __init__(
        self,
        config: DataConfig,
        split: str,
        image_size: int,
        window: int,
        batch_size: int,
        seed: int,
        select: Callable[[str], bool] = lambda person: True,
        content: Callable[[int], BatchContent] | None = None,
    ) -> None:
        """Read the index of the clips of a split.

        Args:
            config: settings of the data.
            split: the split.
            image_size: side of the images in pixels.
            window: samples of a speech window.
            batch_size: frames to be rendered in a batch.
            seed: seed of all random choices.
            select: whether a person belongs to the data set.
            content: what the batch of a step contains; by default everything, at ``image_size``.

        Raises:
            UserError: ``batch_size`` is no multiple of ``config.frames``, or a clip cannot be read.
            EmptySplitError: the split has no clips, or none with usable speech.
        """
        if batch_size % config.frames:
            hint = f"make train.batch_size a multiple of data.frames ({config.frames})"
            raise UserError("train.batch_size", f"{batch_size} frames cannot share sources evenly", hint)
        self.config, self.image_size, self.window = config, image_size, window
        self.sources = batch_size // config.frames
        self.seed, self.augment = seed, config.augment
        self.content = content or partial(_include_everything, image_size)
        offsets = load_sync_offsets(config.offsets, OFFSET_MARGIN)
        self.clips = open_clips(config.root, split, select, offsets, config.cache_bytes)
        index = self.clips.index
        if not len(index):
            reason = f"no prepared clip of split '{split}' in this folder"
            raise EmptySplitError(config.root, reason, "run tools/prepare.py first, or set --data.root")
        speaking = np.flatnonzero(index.teaches_speech(config.sequence_frames))
        if not len(speaking) and (count := int(index.in_sync.sum())):
            needed = int(MAX_TEMPO * config.sequence_frames) + 1
            reason = f"split '{split}' has {count} clips with speech in step, but none with {needed} frames of a face"
            hint = f"prepare longer clips, or lower data.sequence_frames ({config.sequence_frames})"
            raise EmptySplitError(config.root, reason, hint)
        if not len(speaking):
            reason = f"split '{split}' has no clip with speech in step"
            hint = "run tools/prepare.py again: its report.json says how each clip is in step (see docs/data.md)"
            raise EmptySplitError(config.root, reason, hint)
        self.everyone, self.speakers = (
            ClipSampler(rows, index.person[rows], index.valid[rows], PERSON_POWER)
            for rows in (np.arange(len(index)), speaking)
        )
        self.streams = 1
        """Workers of all processes of the run, among which remote shards are divided: step n is made by worker n modulo
        this number."""

    @property
    def people(self) -> list[str]:
        """The people, sorted by name."""
        return [decode_text(name) for name in self.everyone.people]

    def list_clips(self, limit: int) -> list[np.ndarray]:
        """Return the numbers of the clips of each person, at most about ``limit`` in total, spread over all people.

        Of remote shards, only some are considered (see ``PreparedClips.find_readable``).
        """
        readable = self.clips.find_readable()
        groups = (rows[np.isin(rows, readable)] for rows in self.everyone.group_rows())
        return spread_rows([rows for rows in groups if len(rows)], limit)

    @cached_property
    def plan(self) -> StreamPlan | None:
        """Which clips each step samples from; None if all clips can be read at any time."""
        if self.clips.remote is None:
            return None
        weights, speech_weights = (one.spread_weights(len(self.clips)) for one in (self.everyone, self.speakers))
        samples = self.sources + self.config.sequences
        return StreamPlan(self.clips.index, weights, speech_weights, self.streams, samples, self.seed)

    def __getitem__(self, step: int) -> Batch:
        content = self.content(step)
        rng = np.random.default_rng((self.seed, step))
        pool = self.find_pool(step)
        images = self.sample_images(step, pool, content.image_size, rng) if content.images else None
        speech = self.sample_speech(pool, content.image_size, rng) if content.speech else None
        return Batch(images, speech)

    def find_pool(self, step: int) -> Pool:
        """Return the clips that a step samples from."""
        if self.plan is None or self.clips.remote is None:
            return Pool(self.everyone, self.speakers)
        pool = self.plan.find_pool(step)
        if pool.upcoming is not None:
            self.clips.remote.prefetch(pool.upcoming)
        return pool

    def sample_images(self, step: int, pool: Pool, size: int, rng: np.random.Generator) -> Reenactment:
        """Sample frames to be rendered, and their sources."""
        sources, frames = [], []
        is_run = self.config.run_every > 0 and step % self.config.run_every == self.config.run_every - 1
        for _ in range(1 if is_run else self.sources):
            track = self.clips.load_track((pool.speakers if is_run else pool.everyone).sample(rng))
            if is_run:
                targets = rng.integers(track.clip.frames - RUN_FRAMES) + np.arange(RUN_FRAMES)
            else:
                targets = rng.choice(track.frames, self.config.frames, p=track.sampling_weights)
            indices = np.concatenate([[self.sample_source(track, targets[0], rng)], targets])
            arrays = self.augment_frames(self.read_frame_arrays(track, indices, size, with_speech=True), rng)
            assert arrays.pixels is not None, "the frames were read with pixels"
            sources.append(arrays.take([0]))
            frames.append(add_flow(arrays.take(range(1, len(indices))), arrays.pixels[0]))
        return join_frames(sources, frames, is_run)

    def sample_speech(self, pool: Pool, size: int, rng: np.random.Generator) -> Reenactment:
        """Sample speech sequences and their sources."""
        pairs = [self.sample_sequence(pool, size, rng) for _ in range(self.config.sequences)]
        speakers, sequences = zip(*pairs, strict=True)
        return join_frames(list(speakers), list(sequences), is_run=True)

    def sample_source(self, track: ClipTrack, target: int, rng: np.random.Generator) -> int:
        """Sample a source's frame number from the whole clip or, sometimes, from around the target frame."""
        near = track.frames[np.abs(track.frames - target) <= NEAR_FRAMES]
        return int(rng.choice(near if rng.random() < NEAR_SOURCES else track.frames))

    def sample_sequence(self, pool: Pool, size: int, rng: np.random.Generator) -> tuple[FrameArrays, FrameArrays]:
        """Sample a source and a speech sequence of the same clip; augmentation changes the sequence's tempo."""
        track = self.clips.load_track(pool.speakers.sample(rng))
        count = self.config.sequence_frames
        tempo = rng.uniform(MIN_TEMPO, MAX_TEMPO) if self.augment else 1.0
        last = track.clip.frames - 1 - (count - 1) * tempo
        times = rng.uniform(0.0, max(last, 0.0)) + tempo * np.arange(count)
        if not self.augment:
            times = np.floor(times)
        times = times.clip(0, track.clip.frames - 1)
        sequence = interpolate_frames(track, times)
        assert track.speech is not None, "silent clips are not sampled"
        speech = augment_speech(track.speech, times[0], tempo, count, self.window, rng if self.augment else None)
        sequence = sequence.with_speech(speech)
        source = self.read_frame_arrays(track, rng.choice(track.frames, 1), size, with_speech=False)
        if self.augment:
            source = jitter_frame_colors(source, rng)
            if rng.random() < 0.5:
                source, sequence = mirror_frames(source), mirror_frames(sequence)
        return source, sequence

    def augment_frames(self, frames: FrameArrays, rng: np.random.Generator) -> FrameArrays:
        """Change colors and mirror with probability one half, all frames alike."""
        if not self.augment:
            return frames
        frames = jitter_frame_colors(frames, rng)
        return mirror_frames(frames) if rng.random() < 0.5 else frames

    def read_frame_arrays(self, track: ClipTrack, indices: np.ndarray, size: int, with_speech: bool) -> FrameArrays:
        """Read frames of a clip by number, with images of ``size x size`` pixels."""
        pixels = self.clips.read_frames(track, indices, size)
        frames = interpolate_frames(track, indices.astype(float)).with_pixels(pixels, track.clip.read_mattes(indices))
        if with_speech and track.speech is not None:
            return frames.with_speech(cut_speech_window(track.speech, indices, self.window))
        return frames.with_speech(np.zeros((len(indices), self.window), np.float32))


def _include_everything(image_size: int, step: int) -> BatchContent:
    return BatchContent(image_size)


def join_frames(sources: list[FrameArrays], frames: list[FrameArrays], is_run: bool) -> Reenactment:
    """Join the sources and the frames of several clips as tensors."""
    source = FrameArrays.join(sources)
    return Reenactment(
        sources=to_source(source),
        source_displacement=to_tensor(source.displacement),
        frames=to_frames(FrameArrays.join(frames)),
        is_run=is_run,
    )


def select_held_out(config: DataConfig) -> frozenset[str]:
    """Select the people that training leaves out, for validation and for fitting the inference settings.

    They are among the people with usable speech. The choice depends on names only, so it changes little when people are
    added.

    Raises:
        UserError: there are too few people.
    """
    index = read_root_index(config.root)
    usable = index.in_split(config.train_split) & index.teaches_speech(config.sequence_frames)
    people = order_people(decode_text(name) for name in np.unique(index.person[usable]))
    count = config.held_out_people
    if count is None:
        count = min(len(people) // 10, MAX_HELD_OUT)
    elif 0 < len(people) <= count:
        reason = f"{count} people cannot be held out: only {len(people)} in {config.root} have usable speech"
        raise UserError("data.held_out_people", reason, "choose a smaller number; 0 trains without validation")
    return frozenset(people[:count])
