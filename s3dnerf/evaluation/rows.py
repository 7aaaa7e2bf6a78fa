"""The rows of the evaluation table: videos generated from one clip, written to disk and scored from that file.

- ``ours``: the model, given only the first frame, the audio and the tracked head poses.
- ``fd2talk``: the same with lips and face moved by the expression coefficients of FD2Talk.
- ``fd2talk_diffusion``: the same, with frames made by diffusion from the warped first frame.
- ``refined``: ``ours`` with frames refined by diffusion.
- ``two_images``: ``ours``, given also the frame in which the head is turned farthest from the first one.
- ``closed_eyes``, ``open_mouth``, ``turned``: ``ours``, given in place of the first frame the one in which the eyes are
  most closed, the mouth is widest open, or the head is turned farthest: photographs that are hard to animate.
- ``closed_mouth``: the same with the frame in which the lips are most closed, as in most photographs.
- ``open_mouth_two_images``: ``open_mouth``, given also the frame in which the head is turned farthest from it.
- ``tracked_motion``: ``ours``, with the motion of the face tracked in the clip in place of speech: what is left are the
  errors of rendering.
- ``tracked_source``: the same, given also the expression of the source image, which is otherwise estimated from it.
- ``frozen_mouth``: ``ours`` without lip motion, a baseline for what the given poses contribute.
- ``frozen_pose``: ``ours`` without head motion, a baseline for what the lips contribute.
- ``unmoved_portrait``: the first frame, repeated.
- ``ground_truth``: the target frames, written by the same video writer: the upper bound of every row.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from tqdm import tqdm

from s3dnerf.constants import FPS
from s3dnerf.errors import UserError
from s3dnerf.evaluation.contact_sheet import draw_clip_sheet, select_sheet_frames
from s3dnerf.evaluation.finished_clips import TARGET, FinishedClip
from s3dnerf.evaluation.scorer import Scorer, find_sound
from s3dnerf.evaluation.scores import Measurement
from s3dnerf.evaluation.tables import ROW_TITLES
from s3dnerf.evaluation.tracking import FaceTrack
from s3dnerf.limits import MAX_SEED
from s3dnerf.media.audio import read_clean_speech
from s3dnerf.media.video import VideoWriter, stream_frames

REENACTMENTS: dict[str, dict[str, Any]] = {
    "ours": {},
    "fd2talk": {"method": "fd2talk"},
    "fd2talk_diffusion": {"method": "fd2talk", "renderer": "diffusion"},
    "refined": {"refine": "diffusion"},
    "frozen_mouth": {"freeze_mouth": True},
    "frozen_pose": {"freeze_pose": True},
    "two_images": {"images": 2},
    "closed_eyes": {"source": "closed_eyes"},
    "closed_mouth": {"source": "closed_mouth"},
    "open_mouth": {"source": "open_mouth"},
    "turned": {"source": "turned"},
    "open_mouth_two_images": {"source": "open_mouth", "images": 2},
    "enlarged": {"shows_detail": False},
    "tracked_motion": {"tracked_motion": True},
    "tracked_source": {"tracked_motion": True, "tracked_source": True},
}
"""Options of ``Reenactor.reenact`` by row."""
MODEL_ROWS = tuple(REENACTMENTS)
ROWS = (*MODEL_ROWS, "unmoved_portrait", "ground_truth")
SPECIAL_ROWS = (
    *("fd2talk_diffusion", "refined", "two_images", "closed_eyes", "closed_mouth", "open_mouth", "turned"),
    *("open_mouth_two_images", "enlarged", "tracked_motion", "tracked_source"),
)
"""Diffusion is slow and makes frames of 256 pixels only; the next ones are given other frames than the first,
"enlarged" is for larger clips, and the last two are given what they should find out."""
DEFAULT_ROWS = tuple(row for row in ROWS if row not in SPECIAL_ROWS)
"""Rows that every model has."""


class Reenactor(Protocol):
    """The part of ``TalkingHeadPipeline`` that evaluation uses."""

    def reenact(self, video: Path, audio: Path | None, **options: Any) -> Iterator[np.ndarray]:
        """Yield frames ``uint8 [H, W, 3]`` in the framing and size of the video, 25 per second."""


@dataclass(frozen=True)
class ClipResult:
    """Scores of the rows of one clip, and the frames for its contact sheet."""

    title: str
    track: FaceTrack
    moments: np.ndarray
    target: list[np.ndarray]
    rows: dict[str, Measurement]
    features: np.ndarray | None = None
    """Inception features of the target frames, as in ``Measurement``."""

    def finish(self) -> FinishedClip:
        """Draw the contact sheet, of the first row, and drop the frames."""
        row, measurement = next(iter(self.rows.items()))
        label = ROW_TITLES[row].split(",")[0]
        sheet = draw_clip_sheet(self.target, measurement.sampled, self.track, self.moments, self.title, label)
        features = {TARGET: self.features, **{row: one.features for row, one in self.rows.items()}}
        kept = {name: one for name, one in features.items() if one is not None}
        return FinishedClip({row: one.scores for row, one in self.rows.items()}, sheet, kept)


def seed_clip(seed: int, clip: str) -> int:
    """Return the seed of a clip, given that of the evaluation. With one seed, eyes would blink alike in all clips."""
    return (seed + zlib.crc32(clip.encode())) % (MAX_SEED + 1)


@dataclass(frozen=True)
class ClipJob:
    """Generates and scores the rows of one clip."""

    video: Path
    out: Path
    max_frames: int | None
    seed: int
    pipeline: Reenactor | None
    scorer: Scorer

    def run(self, rows: Sequence[str]) -> ClipResult:
        """Write and score the videos of ``rows``. Raises UserError if the clip cannot be used."""
        sound = require_sound(self.video)
        target = self.scorer.read_target(self.video, self._stream_target, read_clean_speech(sound))
        track, timing = target.track, target.timing
        assert timing is not None, "clips without sound are refused"
        moments = select_sheet_frames(track)
        measured: dict[str, Measurement] = {}
        for row in rows:
            folder = self.out if row == "ours" else self.out / "rows" / row
            generated = folder / f"{self.video.stem}.mp4"
            self._write(generated, self._generate_frames(row, sound, track), sound, len(track), row)
            # Lips that do not follow the sound are not late when the sound is.
            of_row = timing if row in MODEL_ROWS else replace(timing, offset=None if timing.offset is None else 0)
            open_generated = partial(stream_frames, generated, FPS)
            measured[row] = self.scorer.score(target, open_generated, target.speech, of_row, moments.tolist())
        features = target.features.features.features if target.features else None
        kept = target.keep_frames(moments.tolist())
        return ClipResult(self.video.stem, track, moments, kept, measured, features)

    def _stream_target(self) -> Iterator[np.ndarray]:
        return islice(stream_frames(self.video, FPS), self.max_frames)

    def _generate_frames(self, row: str, sound: Path, track: FaceTrack) -> Iterable[np.ndarray]:
        if row == "ground_truth":
            return self._stream_target()
        if row == "unmoved_portrait":
            return repeat(next(self._stream_target()), len(track))
        assert self.pipeline is not None, f"the row {row} needs a model"
        return self.pipeline.reenact(
            self.video,
            sound,
            max_frames=self.max_frames,
            seed=seed_clip(self.seed, self.video.stem),
            landmarks=track.filled,
            **REENACTMENTS[row],
        )

    def _write(self, path: Path, frames: Iterable[np.ndarray], sound: Path, count: int, row: str) -> None:
        frames = iter(frames)
        first = next(frames)
        height, width = first.shape[:2]
        progress = tqdm(total=count, desc=f"{self.video.stem}: {row}", unit="frame", leave=False)
        with progress, VideoWriter(path, (width, height), FPS, audio=sound) as writer:
            for frame in chain([first], frames):
                writer.write(frame)
                progress.update()
            if writer.frames != count:
                raise ValueError(f"{row} has {writer.frames} frames of {self.video}, which has {count}")


def require_sound(video: Path) -> Path:
    """Return the file with the sound of a clip: the .wav beside it, or the clip. Raises UserError without sound."""
    sound = find_sound(video)
    if sound is None:
        raise UserError(video, "has no sound", "Put a .wav of the same name beside it.")
    return sound
