"""One clip and its rows: each a video on disk, made from the same clip and measured from that file.

- `ours`: the model, given the first frame, the sound and the tracked head poses, nothing else.
- `frozen_mouth`: the same with speech kept from the lips; what the given poses alone are worth.
- `frozen_pose`: the same with the head held still; what the lips alone are worth.
- `unmoved_portrait`: the first frame, repeated.
- `ground_truth`: the real frames, written by the same video writer; the ceiling that any row can reach.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice, repeat
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from tqdm import tqdm

from s3dnerf.errors import UserError
from s3dnerf.evaluation.contact_sheet import FACE_SIDE, choose_moments, draw_clip_sheet
from s3dnerf.evaluation.scores import Measurement, Scores, measure_clip
from s3dnerf.evaluation.tables import ROW_TITLES
from s3dnerf.evaluation.tracking import FaceRuler, FaceTrack
from s3dnerf.limits import MAX_FRAMES
from s3dnerf.media.audio import FPS, read_clean_speech
from s3dnerf.media.video import VideoWriter, probe_video, stream_frames

if TYPE_CHECKING:
    from s3dnerf.evaluation.networks import NetworkJudge, RealClip
    from s3dnerf.models.sync_discriminator import SyncDiscriminator

ROWS = ("ours", "frozen_mouth", "frozen_pose", "unmoved_portrait", "ground_truth")
MODEL_ROWS = ("ours", "frozen_mouth", "frozen_pose")
MIN_FRAMES = MAX_FRAMES.least
"""Frames of a clip with which its motion can be measured, at least."""


class Reenactor(Protocol):
    """The part of `TalkingHeadPipeline` that evaluation needs."""

    def reenact(
        self,
        video: Path,
        audio: Path | None,
        freeze_mouth: bool = False,
        freeze_pose: bool = False,
        max_frames: int | None = None,
        seed: int = 0,
        landmarks: np.ndarray | None = None,
    ) -> Iterator[np.ndarray]:
        """Yield uint8 [H, W, 3] in the video's framing and size, one for each frame at 25 a second."""


@dataclass(frozen=True)
class ClipResult:
    """What the rows of one clip scored, and the frames for its contact sheet."""

    title: str
    track: FaceTrack
    moments: np.ndarray
    real: list[np.ndarray]
    rows: dict[str, Measurement]
    features: np.ndarray | None = None
    """Of the real frames, as `Measurement` has those of the made ones."""

    def draw_sheet(self, side: int = FACE_SIDE) -> np.ndarray:
        """Contact sheet of the first row made."""
        row, measurement = next(iter(self.rows.items()))
        label = ROW_TITLES[row].split(",")[0]
        return draw_clip_sheet(self.real, measurement.picks, self.track, self.moments, self.title, label, side)


@dataclass(frozen=True)
class ClipJob:
    """Makes and measures the rows of one clip."""

    video: Path
    out: Path
    max_frames: int | None
    seed: int
    pipeline: Reenactor | None
    judge: NetworkJudge | None = None
    lip_sync: SyncDiscriminator | None = None

    def run(self, rows: Sequence[str]) -> ClipResult:
        """Write and measure the videos of `rows`. Raises UserError if the clip cannot be used."""
        sound = _find_sound(self.video)
        track = self._track_real()
        moments = choose_moments(track)
        wanted = set(moments.tolist())
        real = [frame for index, frame in enumerate(self._stream_real()) if index in wanted]
        speech = read_clean_speech(sound)
        studied = self.judge.study(self._stream_real(), track, speech) if self.judge else None
        measured: dict[str, Measurement] = {}
        for row in rows:
            folder = self.out if row == "ours" else self.out / "rows" / row
            made = folder / f"{self.video.stem}.mp4"
            self._write(made, self._make_frames(row, sound, track), sound, len(track), row)
            measured[row] = self._measure(made, track, wanted, studied, speech)
        features = studied.sight.features if studied else None
        return ClipResult(self.video.stem, track, moments, real, measured, features)

    def _measure(
        self, made: Path, track: FaceTrack, wanted: set[int], studied: RealClip | None, speech: np.ndarray
    ) -> Measurement:
        measurement = measure_clip(self._stream_real(), stream_frames(made, FPS), track, wanted)
        if self.lip_sync is not None:
            measurement = replace(measurement, scores=self._judge_sync(made, measurement, speech))
        if self.judge is None or studied is None:
            return measurement
        # The networks need the made track as a whole, so the video is read a second time.
        seen = self.judge.judge(self._stream_real(), stream_frames(made, FPS), studied, measurement.track)
        return replace(measurement, scores=replace(measurement.scores, **seen.scores), features=seen.features)

    def _judge_sync(self, made: Path, measurement: Measurement, speech: np.ndarray) -> Scores:
        # Imported late: measuring pictures and landmarks needs no torch.
        from s3dnerf.evaluation.lip_sync import judge_sync

        sync = judge_sync(self.lip_sync, stream_frames(made, FPS), measurement.track, speech)
        confidence, distance = (sync.confidence, sync.distance) if sync else (np.nan, np.nan)
        return replace(measurement.scores, sync_confidence=confidence, sync_distance=distance)

    def _stream_real(self) -> Iterator[np.ndarray]:
        return islice(stream_frames(self.video, FPS), self.max_frames)

    def _track_real(self) -> FaceTrack:
        with FaceRuler() as ruler:
            description = f"{self.video.stem}: tracking"
            for frame in tqdm(self._stream_real(), desc=description, unit="frame", leave=False):
                ruler.add(frame)
            track = ruler.finish()
        if len(track) < MIN_FRAMES:
            raise UserError(self.video, f"has only {len(track)} frames", f"Use clips of {MIN_FRAMES} or more.")
        if not track.found[0]:
            raise UserError(self.video, "its first frame shows no face", "Start the clip where the face is seen.")
        return track

    def _make_frames(self, row: str, sound: Path, track: FaceTrack) -> Iterable[np.ndarray]:
        if row == "ground_truth":
            return self._stream_real()
        if row == "unmoved_portrait":
            return repeat(next(self._stream_real()), len(track))
        return self.pipeline.reenact(
            self.video,
            sound,
            freeze_mouth=row == "frozen_mouth",
            freeze_pose=row == "frozen_pose",
            max_frames=self.max_frames,
            seed=self.seed,
            landmarks=track.filled,
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
                raise ValueError(f"{row} made {writer.frames} frames of {self.video}, which has {count}")


def _find_sound(video: Path) -> Path:
    beside = video.with_suffix(".wav")
    if beside.is_file():
        return beside
    if not probe_video(video).has_audio:
        raise UserError(video, "has no sound", "Put a .wav of the same name beside it.")
    return video
