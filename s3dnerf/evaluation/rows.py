"""The rows of the evaluation table: videos generated from one clip, written to disk and scored from that file.

- ``ours``: the model, given only the first frame, the audio and the tracked head poses.
- ``fd2talk``: the same with lips and face moved by the expression coefficients of FD2Talk.
- ``frozen_mouth``: the same without lip motion, a baseline for what the given poses contribute.
- ``frozen_pose``: the same without head motion, a baseline for what the lips contribute.
- ``unmoved_portrait``: the first frame, repeated.
- ``ground_truth``: the target frames, written by the same video writer: the upper bound of every row.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice, repeat
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from tqdm import tqdm

from s3dnerf.constants import FPS
from s3dnerf.errors import UserError
from s3dnerf.evaluation.contact_sheet import FACE_SIDE, draw_clip_sheet, select_sheet_frames
from s3dnerf.evaluation.scores import Measurement, Scores, SpeechTiming, measure_clip
from s3dnerf.evaluation.tables import ROW_TITLES
from s3dnerf.evaluation.tracking import FaceTrack, FaceTrackRecorder
from s3dnerf.limits import MAX_FRAMES
from s3dnerf.media.audio import count_frames, measure_level, read_clean_speech
from s3dnerf.media.speech_activity import find_active_frames, find_pauses
from s3dnerf.media.video import VideoWriter, probe_video, stream_frames

if TYPE_CHECKING:
    from s3dnerf.evaluation.networks import PretrainedMetrics, TargetFeatures
    from s3dnerf.models.sync_discriminator import SyncDiscriminator

ROWS = ("ours", "fd2talk", "frozen_mouth", "frozen_pose", "unmoved_portrait", "ground_truth")
MODEL_ROWS = ("ours", "fd2talk", "frozen_mouth", "frozen_pose")
MIN_FRAMES = MAX_FRAMES.minimum
"""Minimum number of frames of a clip; motion cannot be measured on fewer."""


class Reenactor(Protocol):
    """The part of ``TalkingHeadPipeline`` that evaluation uses."""

    def reenact(
        self,
        video: Path,
        audio: Path | None,
        freeze_mouth: bool = False,
        freeze_pose: bool = False,
        max_frames: int | None = None,
        seed: int = 0,
        landmarks: np.ndarray | None = None,
        method: str = "s3dnerf",
    ) -> Iterator[np.ndarray]:
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

    def draw_sheet(self, side: int = FACE_SIDE) -> np.ndarray:
        """Draw the contact sheet of the first row."""
        row, measurement = next(iter(self.rows.items()))
        label = ROW_TITLES[row].split(",")[0]
        return draw_clip_sheet(self.target, measurement.sampled, self.track, self.moments, self.title, label, side)


@dataclass(frozen=True)
class ClipJob:
    """Generates and scores the rows of one clip."""

    video: Path
    out: Path
    max_frames: int | None
    seed: int
    pipeline: Reenactor | None
    networks: PretrainedMetrics | None = None
    lip_sync: SyncDiscriminator | None = None

    def run(self, rows: Sequence[str]) -> ClipResult:
        """Write and score the videos of ``rows``. Raises UserError if the clip cannot be used."""
        sound = _find_sound(self.video)
        track = self._track_target()
        moments = select_sheet_frames(track)
        wanted = set(moments.tolist())
        target = [frame for index, frame in enumerate(self._stream_target()) if index in wanted]
        speech = read_clean_speech(sound)
        timing = self._measure_timing(track, speech)
        target_features = self.networks.encode_target(self._stream_target(), track, speech) if self.networks else None
        measured: dict[str, Measurement] = {}
        for row in rows:
            folder = self.out if row == "ours" else self.out / "rows" / row
            generated = folder / f"{self.video.stem}.mp4"
            self._write(generated, self._generate_frames(row, sound, track), sound, len(track), row)
            # Lips that do not follow the sound are not late when the sound is.
            of_row = timing if row in MODEL_ROWS else replace(timing, offset=None if timing.offset is None else 0)
            measurement = measure_clip(self._stream_target(), stream_frames(generated, FPS), track, wanted, of_row)
            measured[row] = self._add_networks(generated, measurement, target_features, speech)
        features = target_features.features.features if target_features else None
        return ClipResult(self.video.stem, track, moments, target, measured, features)

    def _measure_timing(self, track: FaceTrack, speech: np.ndarray) -> SpeechTiming:
        frames = max(len(track), count_frames(len(speech)))
        is_pause = find_pauses(find_active_frames([speech], measure_level([speech]), frames))[: len(track)]
        if self.lip_sync is None:
            return SpeechTiming(is_pause)
        # Imported here because scores of images and landmarks do not need torch.
        from s3dnerf.evaluation.sync_discriminator import find_sound_offset

        return SpeechTiming(is_pause, find_sound_offset(self.lip_sync, self._stream_target(), track, speech))

    def _add_networks(
        self, generated: Path, measurement: Measurement, target_features: TargetFeatures | None, speech: np.ndarray
    ) -> Measurement:
        if self.lip_sync is not None:
            measurement = replace(measurement, scores=self._score_sync(generated, measurement, speech))
        if self.networks is None or target_features is None:
            return measurement
        # The networks need the whole track of the generated video, so the video is read a second time.
        seen = self.networks.measure(
            self._stream_target(), stream_frames(generated, FPS), target_features, measurement.track
        )
        return replace(measurement, scores=replace(measurement.scores, **seen.scores), features=seen.features)

    def _score_sync(self, generated: Path, measurement: Measurement, speech: np.ndarray) -> Scores:
        # Imported here because scores of images and landmarks do not need torch.
        from s3dnerf.evaluation.sync_discriminator import score_tracked_video

        assert self.lip_sync is not None, "only called with a discriminator"
        sync = score_tracked_video(self.lip_sync, stream_frames(generated, FPS), measurement.track, speech)
        confidence, distance = (sync.confidence, sync.distance) if sync else (np.nan, np.nan)
        return replace(measurement.scores, sync_confidence=confidence, sync_distance=distance)

    def _stream_target(self) -> Iterator[np.ndarray]:
        return islice(stream_frames(self.video, FPS), self.max_frames)

    def _track_target(self) -> FaceTrack:
        recorder = FaceTrackRecorder()
        for frame in tqdm(self._stream_target(), desc=f"{self.video.stem}: tracking", unit="frame", leave=False):
            recorder.add(frame)
        track = recorder.finish()
        if len(track) < MIN_FRAMES:
            raise UserError(self.video, f"has only {len(track)} frames", f"Use clips of {MIN_FRAMES} or more.")
        if not track.found[0]:
            raise UserError(self.video, "its first frame shows no face", "Start the clip where the face is seen.")
        return track

    def _generate_frames(self, row: str, sound: Path, track: FaceTrack) -> Iterable[np.ndarray]:
        if row == "ground_truth":
            return self._stream_target()
        if row == "unmoved_portrait":
            return repeat(next(self._stream_target()), len(track))
        assert self.pipeline is not None, f"the row {row} needs a model"
        return self.pipeline.reenact(
            self.video,
            sound,
            freeze_mouth=row == "frozen_mouth",
            freeze_pose=row == "frozen_pose",
            max_frames=self.max_frames,
            seed=self.seed,
            landmarks=track.filled,
            method="fd2talk" if row == "fd2talk" else "s3dnerf",
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


def _find_sound(video: Path) -> Path:
    beside = video.with_suffix(".wav")
    if beside.is_file():
        return beside
    if not probe_video(video).has_audio:
        raise UserError(video, "has no sound", "Put a .wav of the same name beside it.")
    return video
