"""Prepared clips -> training batches.

A batch is a pure function of the seed and the step, so training resumes exactly wherever it stopped, whatever worker
process made the batch.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from s3dnerf.constraints import NonNegativeFloat, NonNegativeInt, PositiveInt, Share, Text
from s3dnerf.data.augmentation import augment_speech, jitter_colors, mirror_track, mirror_view
from s3dnerf.data.clip import Clip, list_clips, load_clip
from s3dnerf.data.sync_offset import shift_speech
from s3dnerf.errors import UserError
from s3dnerf.face.camera import HeadPose, to_head
from s3dnerf.media.audio import cut_speech_window, measure_level, speech_gain
from s3dnerf.media.image import resize_image
from s3dnerf.media.optical_flow import measure_flow
from s3dnerf.structures import Camera, Source

NEAR_FRAMES = 5
"""Frames between a source and a frame that was taken at about the same moment, at most."""


MOST_WORKERS = 1024
"""Processes that anyone could mean."""
PersonPower = Annotated[NonNegativeFloat, Field(le=10)]
"""0 draws all people alike, 1 in proportion to their frames."""


class EmptySplitError(UserError):
    """A split has no clip, or none with speech in step."""


@dataclass
class DataConfig:
    """Where training clips come from and how batches are drawn from them."""

    root: Path = Path("data/prepared")
    """Folder of prepared clips (made by tools/prepare.py)."""
    train_split: Text = "train"
    """Clips of this split are trained on."""
    val_split: Text = "val"
    """Clips of this split (other people) are only validated on; without any, training goes without validation."""
    frames: PositiveInt = 2
    """Frames of the same clip rendered from each source of a batch."""
    near_share: Share = 0.25
    """Share of the sources that were taken within a fifth of a second of a frame to be rendered: where little has
    changed, the photograph is right as it is."""
    run_every: NonNegativeInt = 4
    """Every so many batches, the frames are consecutive ones of a single source, for losses that look at lips in
    motion; 0 for never."""
    run_frames: PositiveInt = 5
    """Frames in such a run."""
    offsets: Path | None = None
    """Table of constant offsets (made by train-sync --offsets) by which sound and picture are brought in step."""
    offset_margin: NonNegativeFloat = 0.02
    """Offsets of the table whose margin is smaller are not trusted: such clips stay as they are."""
    sequences: PositiveInt = 4
    """Stretches of speech in a batch."""
    sequence_frames: Annotated[PositiveInt, Field(ge=2)] = 24
    """Frames in such a stretch."""
    person_power: PersonPower = 0.6
    """A person with n frames is drawn in proportion to n to this power."""
    augment: bool = True
    """Mirror pictures, change colors, gain, noise and tempo."""
    cache: bool = True
    """Keep all decoded frames in memory (200 KB a frame at 256 x 256)."""
    workers: Annotated[NonNegativeInt, Field(le=MOST_WORKERS)] = 1
    """Processes that prepare batches ahead; 0 prepares them in the training process."""

    @model_validator(mode="after")
    def check_runs(self) -> DataConfig:
        """Clips long enough for a stretch of speech are long enough for a run."""
        if self.run_every and self.run_frames > self.sequence_frames:
            reason = f"run_frames ({self.run_frames}) should be at most sequence_frames ({self.sequence_frames})"
            raise ValueError(f"{reason}, or run_every 0")
        return self


@dataclass(frozen=True)
class Frames:
    """Frames to be rendered, with what drives them."""

    image: Tensor | None
    """``[B, 3, S, S]`` in [0, 1]; None where only movement is learned."""
    camera: Camera
    landmarks: Tensor
    """``[B, P, 3]`` head space."""
    displacement: Tensor
    """``[B, P, 3]`` landmarks minus the person's mean face in this clip."""
    eyes: Tensor
    """``[B, 2]`` eye openness."""
    speech: Tensor
    """``[B, window]`` speech around each frame at the normal level; zeros where a clip is silent."""
    speaks: Tensor
    """``[B]`` bool: the clip has sound that is in step with the picture."""
    flow: Tensor | None = None
    """``[B, 2, S/2, S/2]`` where in the source what a pixel shows is, minus where it is here (image coordinates)."""
    trust: Tensor | None = None
    """``[B, 1, S/2, S/2]`` in [0, 1]: how far that can be trusted."""


@dataclass(frozen=True)
class Batch:
    """One training step."""

    sources: Source
    """``batch_size / frames`` items, or one."""
    frames: Frames
    """``batch_size`` items, those of a source in a row, or a run of ``run_frames`` consecutive ones."""
    source_displacement: Tensor
    """``[B, P, 3]`` landmarks of the sources minus the person's mean face."""
    speakers: Source
    """``sequences`` items."""
    speaker_displacement: Tensor
    """The same of the speakers."""
    sequences: Frames
    """``sequences * sequence_frames`` items, without images."""

    is_run: bool
    """Whether the frames are a run."""

    @property
    def frames_per_source(self) -> int:
        """How many frames are rendered from each source."""
        return len(self.frames.eyes) // len(self.sources.eyes)


@dataclass(frozen=True)
class Track:
    """A clip in memory: what is not pixels."""

    clip: Clip
    pose: HeadPose
    landmarks: np.ndarray
    """``[T, P, 3]`` head space."""
    mean_face: np.ndarray
    """``[P, 3]``."""
    speech: np.ndarray | None
    frames: np.ndarray
    """Numbers of the frames in which the face was found."""
    chances: np.ndarray
    """How likely each of these is drawn for a picture: blinks are rare, so they are drawn more often."""


class TalkingFaceDataset(Dataset):
    """Batches by step number."""

    def __init__(
        self,
        config: DataConfig,
        split: str,
        image_size: int,
        window: int,
        batch_size: int,
        seed: int,
        augment: bool,
    ) -> None:
        if batch_size % config.frames:
            cure = f"make train.batch_size a multiple of data.frames ({config.frames})"
            raise UserError("train.batch_size", f"{batch_size} frames cannot share sources evenly", cure)
        self.config, self.image_size, self.window = config, image_size, window
        self.sources = batch_size // config.frames
        self.seed, self.augment = seed, augment
        folders = list_clips(config.root, split)
        if not folders:
            reason = f"no prepared clip of split '{split}' in this folder"
            raise EmptySplitError(config.root, reason, "run tools/prepare.py first, or set --data.root")
        offsets = read_offsets(config.offsets, config.offset_margin)
        self.tracks = [
            read_track(folder, offsets.get(folder.name, 0))
            for folder in tqdm(folders, desc=f"tracks of {split}", leave=False)
        ]
        self.people = group_by_person(self.tracks)
        speaking = [track for track in self.tracks if can_teach_speech(track, config.sequence_frames)]
        self.speakers = group_by_person(speaking)
        if not self.speakers:
            reason = f"split '{split}' has no clip with speech in step"
            cure = "run tools/prepare.py again: its report.json says how each clip is in step (see docs/data.md)"
            raise EmptySplitError(config.root, reason, cure)
        self.pixels: dict[str, np.ndarray] = {}
        if config.cache:
            for track in tqdm(self.tracks, desc=f"frames of {split}", leave=False):
                self.pixels[track.clip.id] = self.read_pixels(track, np.arange(track.clip.frames))

    def __getitem__(self, step: int) -> Batch:
        rng = np.random.default_rng((self.seed, step))
        sources, frames = [], []
        is_run = self.config.run_every > 0 and step % self.config.run_every == self.config.run_every - 1
        for _ in range(1 if is_run else self.sources):
            track = draw_track(self.speakers if is_run else self.people, self.config.person_power, rng)
            if is_run:
                shown = rng.integers(track.clip.frames - self.config.run_frames) + np.arange(self.config.run_frames)
            else:
                shown = rng.choice(track.frames, self.config.frames, p=track.chances)
            chosen = np.concatenate([[self.draw_source(track, shown[0], rng)], shown])
            view = self.augment_view(self.read_view(track, chosen, with_speech=True), rng)
            sources.append(view.take([0]))
            frames.append(follow_pixels(view.take(range(1, len(chosen))), view.pixels[0]))
        speakers, sequences = [], []
        for _ in range(self.config.sequences):
            speaker, sequence = self.draw_sequence(rng)
            speakers.append(speaker)
            sequences.append(sequence)
        source, speaker = View.join(sources), View.join(speakers)
        return Batch(
            sources=make_source(source),
            frames=make_frames(View.join(frames)),
            source_displacement=_tensor(source.displacement),
            speakers=make_source(speaker),
            speaker_displacement=_tensor(speaker.displacement),
            sequences=make_frames(View.join(sequences)),
            is_run=is_run,
        )

    def draw_source(self, track: Track, shown: int, rng: np.random.Generator) -> int:
        """Draw the source from the whole clip or, now and then, from the moments around a frame."""
        near = track.frames[np.abs(track.frames - shown) <= NEAR_FRAMES]
        return int(rng.choice(near if rng.random() < self.config.near_share else track.frames))

    def draw_sequence(self, rng: np.random.Generator) -> tuple[View, View]:
        """Draw a source and a stretch of the same clip; augmentation slows the stretch or speeds it up a little."""
        track = draw_track(self.speakers, self.config.person_power, rng)
        count = self.config.sequence_frames
        tempo = rng.uniform(0.9, 1.1) if self.augment else 1.0
        last = track.clip.frames - 1 - (count - 1) * tempo
        times = rng.uniform(0.0, max(last, 0.0)) + tempo * np.arange(count)
        if not self.augment:
            times = np.floor(times)
        times = times.clip(0, track.clip.frames - 1)
        sequence = interpolate_view(track, times)
        speech = augment_speech(track.speech, times[0], tempo, count, self.window, rng if self.augment else None)
        sequence = sequence.with_speech(speech)
        source = self.read_view(track, rng.choice(track.frames, 1), with_speech=False)
        if self.augment:
            source = jitter_view(source, rng)
            if rng.random() < 0.5:
                source, sequence = flip_view(source), flip_view(sequence)
        return source, sequence

    def augment_view(self, view: View, rng: np.random.Generator) -> View:
        """Mirror half of the views and change their colors, all frames of a view alike."""
        if not self.augment:
            return view
        view = jitter_view(view, rng)
        return flip_view(view) if rng.random() < 0.5 else view

    def read_view(self, track: Track, indices: np.ndarray, with_speech: bool) -> View:
        """Gather some frames of a clip."""
        cached = self.pixels.get(track.clip.id)
        pixels = self.read_pixels(track, indices) if cached is None else cached[indices]
        view = interpolate_view(track, indices.astype(float)).with_pixels(pixels, track.clip.read_mattes(indices))
        if with_speech and track.speech is not None:
            return view.with_speech(cut_speech_window(track.speech, indices, self.window))
        return view.with_speech(np.zeros((len(indices), self.window), np.float32))

    def read_pixels(self, track: Track, indices: np.ndarray) -> np.ndarray:
        """Decode frames ``uint8 [n, S, S, 3]`` at the size that is trained."""
        pixels = track.clip.read_frames(indices)
        if pixels.shape[1] == self.image_size:
            return pixels
        return np.stack([resize_image(frame, self.image_size) for frame in pixels])


@dataclass(frozen=True)
class View:
    """Frames of one clip, or of several joined, as arrays."""

    rotation: np.ndarray
    scale: np.ndarray
    center: np.ndarray
    landmarks: np.ndarray
    displacement: np.ndarray
    eyes: np.ndarray
    speaks: np.ndarray
    speech: np.ndarray | None = None
    pixels: np.ndarray | None = None
    flow: np.ndarray | None = None
    trust: np.ndarray | None = None
    matte: np.ndarray | None = None

    def take(self, rows: range | list[int]) -> View:
        """Return some of the frames."""
        rows = list(rows)
        return View(**{name: None if value is None else value[rows] for name, value in vars(self).items()})

    def with_speech(self, speech: np.ndarray) -> View:
        return View(**{**vars(self), "speech": speech})

    def with_pixels(self, pixels: np.ndarray, matte: np.ndarray | None) -> View:
        return View(**{**vars(self), "pixels": pixels, "matte": matte})

    @staticmethod
    def join(views: list[View]) -> View:
        """Put views one after another."""
        names = vars(views[0])
        return View(
            **{
                name: None if names[name] is None else np.concatenate([getattr(view, name) for view in views])
                for name in names
            }
        )


def read_offsets(path: Path | None, least_margin: float) -> dict[str, int]:
    """Read the constant offset of each clip, in frames by which its sound comes late, from a table, if there is one.

    Offsets whose margin is smaller than ``least_margin`` are left out.

    Raises:
        UserError: it cannot be read.
    """
    if path is None:
        return {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            missing = {"id", "offset", "margin"} - set(reader.fieldnames or ())
            if missing:
                raise KeyError(*sorted(missing))
            rows = list(reader)
        return {row["id"]: int(row["offset"]) for row in rows if float(row["margin"]) >= least_margin}
    except (OSError, KeyError, ValueError, TypeError, csv.Error) as error:
        reason = f"is no table of offsets ({type(error).__name__}: {error})"
        raise UserError(path, reason, "make one with `s3dnerf train-sync --offsets FILE`") from error


def read_track(folder: Path, offset: int = 0) -> Track:
    """Load a prepared clip without its pixels; its sound comes ``offset`` frames late and is moved back."""
    clip = load_clip(folder)
    landmarks = to_head(clip.landmarks, clip.pose)
    frames = np.flatnonzero(clip.valid)
    speech = None
    if clip.has_speech:
        speech = clip.read_speech()
        speech = shift_speech(speech * speech_gain(measure_level([speech])), offset)
    eyes = clip.eye_openness[frames].mean(axis=1)
    chances = np.where(eyes < 0.6 * np.median(eyes), 4.0, 1.0)
    return Track(clip, clip.pose, landmarks, landmarks[frames].mean(axis=0), speech, frames, chances / chances.sum())


def can_teach_speech(track: Track, frames: int) -> bool:
    """Tell whether sound and picture of a clip are known to be in step and the face is found throughout."""
    return track.speech is not None and track.clip.in_step and is_whole(track.clip.frames, track.clip.valid, frames)


def is_whole(length: int, valid: np.ndarray, frames: int) -> bool:
    """Tell whether a clip of ``length`` frames shows the face throughout and holds stretches of ``frames`` frames."""
    return length > 1.1 * frames and bool(valid.all())


def group_by_person(tracks: list[Track]) -> dict[str, list[Track]]:
    """Group clips by person, in a fixed order."""
    people: dict[str, list[Track]] = defaultdict(list)
    for track in tracks:
        people[track.clip.person].append(track)
    return dict(sorted(people.items()))


def collect_faces(tracks: list[Track], stride: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """Return a person's faces and their mirror images, every ``stride``-th frame.

    Returns landmarks ``[N, P, 3]`` (head space), their displacements ``[N, P, 3]`` from the mean face of their clip,
    and weights ``[N]`` that sum to one.
    """
    landmarks = np.concatenate([track.landmarks[track.frames[::stride]] for track in tracks])
    expression = np.concatenate([track.landmarks[track.frames[::stride]] - track.mean_face for track in tracks])
    landmarks, expression = (np.concatenate([part, mirror_track(part)]) for part in (landmarks, expression))
    return _tensor(landmarks), _tensor(expression), torch.full((len(landmarks),), 1.0 / len(landmarks))


def draw_track(people: dict[str, list[Track]], power: float, rng: np.random.Generator) -> Track:
    """Draw a person in proportion to (their frames) ** power, then one of their clips by its length."""
    counts = np.array([sum(len(track.frames) for track in tracks) for tracks in people.values()], float)
    chances = counts**power
    person = list(people)[rng.choice(len(people), p=chances / chances.sum())]
    lengths = np.array([len(track.frames) for track in people[person]], float)
    return people[person][rng.choice(len(lengths), p=lengths / lengths.sum())]


def interpolate_view(track: Track, times: np.ndarray) -> View:
    """Read pose, landmarks and eyes at fractional frame numbers ``times [n]``."""
    low = np.floor(times).astype(int)
    high = np.minimum(low + 1, track.clip.frames - 1)
    share = (times - low).astype(np.float32)

    def read(series: np.ndarray) -> np.ndarray:
        weight = share.reshape(-1, *[1] * (series.ndim - 1))
        return (1 - weight) * series[low] + weight * series[high]

    landmarks = read(track.landmarks)
    return View(
        # Neighboring rotations differ by far less than a degree: the nearest is as good as an interpolated one.
        rotation=track.pose.rotation[np.where(share < 0.5, low, high)],
        scale=read(track.pose.scale),
        center=read(track.pose.center),
        landmarks=landmarks,
        displacement=landmarks - track.mean_face,
        eyes=read(track.clip.eye_openness),
        speaks=np.full(len(times), track.speech is not None and track.clip.in_step),
    )


def flip_view(view: View) -> View:
    """Mirror a view left to right."""
    rotation, center, eyes = mirror_view(view.rotation, view.center, view.eyes)
    changed = {
        "rotation": rotation,
        "center": center,
        "eyes": eyes,
        "landmarks": mirror_track(view.landmarks),
        "displacement": mirror_track(view.displacement),
    }
    if view.pixels is not None:
        changed["pixels"] = view.pixels[:, :, ::-1]
        changed["matte"] = view.matte[:, :, ::-1]
    return View(**{**vars(view), **changed})


def jitter_view(view: View, rng: np.random.Generator) -> View:
    """Change the colors of all frames of a view alike."""
    return view.with_pixels(jitter_colors(view.pixels, rng), view.matte)


def follow_pixels(view: View, source: np.ndarray) -> View:
    """Measure the optical flow from all frames of a view to a source ``[S, S, 3]``."""
    flow, trust = zip(*(measure_flow(frame, source) for frame in view.pixels), strict=True)
    return View(**{**vars(view), "flow": np.stack(flow), "trust": np.stack(trust)})


def make_camera(view: View | HeadPose) -> Camera:
    """Return the cameras of a view, or head poses as cameras, as tensors."""
    return Camera(_tensor(view.rotation), _tensor(view.scale), _tensor(view.center))


def make_source(view: View) -> Source:
    """Return a view's frames as sources."""
    matte = _tensor(view.matte[:, None]) / 255.0
    return Source(_image(view.pixels), make_camera(view), _tensor(view.landmarks), _tensor(view.eyes), matte)


def make_frames(view: View) -> Frames:
    """Return a view's frames as frames to be rendered."""
    return Frames(
        image=None if view.pixels is None else _image(view.pixels),
        camera=make_camera(view),
        landmarks=_tensor(view.landmarks),
        displacement=_tensor(view.displacement),
        eyes=_tensor(view.eyes),
        speech=_tensor(view.speech),
        speaks=torch.from_numpy(np.ascontiguousarray(view.speaks)),
        flow=None if view.flow is None else _tensor(np.moveaxis(view.flow, -1, 1)),
        trust=None if view.trust is None else _tensor(view.trust[:, None]),
    )


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))


def _image(pixels: np.ndarray) -> Tensor:
    return _tensor(np.moveaxis(pixels, -1, 1)) / 255.0
