"""Scoring of videos against a real clip, which is tracked and encoded once for all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from s3dnerf.errors import UserError
from s3dnerf.evaluation.frame_measures import FrameMeasures
from s3dnerf.evaluation.scores import Measurement, Scores, SpeechTiming, compare_tracks, measure_clip
from s3dnerf.evaluation.tracking import FaceTrack, FaceTrackRecorder
from s3dnerf.limits import MAX_FRAMES
from s3dnerf.media.audio import count_frames, measure_level
from s3dnerf.media.speech_activity import find_active_frames, find_pauses
from s3dnerf.media.video import probe_video
from s3dnerf.metrics import measure_cpbd

if TYPE_CHECKING:
    from s3dnerf.evaluation.networks import PretrainedMetrics, TargetFeatures
    from s3dnerf.evaluation.weights_folder import FoundWeights
    from s3dnerf.models.sync_discriminator import SyncDiscriminator

MIN_FRAMES = MAX_FRAMES.minimum
"""Minimum number of frames of a clip; motion cannot be measured on fewer."""
OpenFrames = Callable[[], Iterator[np.ndarray]]
"""Streams the frames ``uint8 [H, W, 3]`` of a video from its start."""


@dataclass(frozen=True)
class Target:
    """A real clip."""

    open_frames: OpenFrames
    track: FaceTrack
    speech: np.ndarray | None
    """16 kHz sound ``[samples]``; None for a silent clip."""
    timing: SpeechTiming | None
    """Of that sound."""
    features: TargetFeatures | None
    """Features of public networks; None without their weights."""

    def __len__(self) -> int:
        return len(self.track)

    def cut(self, frames: int) -> Target:
        """Return the first frames of the clip; its sound stays whole."""
        if frames == len(self):
            return self
        track = FaceTrack(self.track.fine[:frames], self.track.plain[:frames], self.track.size)
        timing = None if self.timing is None else replace(self.timing, is_pause=self.timing.is_pause[:frames])
        features = None if self.features is None else self.features.cut(frames)
        return Target(lambda: islice(self.open_frames(), frames), track, self.speech, timing, features)

    def keep_frames(self, numbers: Sequence[int]) -> list[np.ndarray]:
        """Return the frames of these numbers, ascending."""
        wanted = set(numbers)
        return [frame for index, frame in enumerate(self.open_frames()) if index in wanted]


@dataclass(frozen=True)
class Scorer:
    """The networks that score videos."""

    lip_sync: SyncDiscriminator | None = None
    """Our lip-sync discriminator."""
    networks: PretrainedMetrics | None = None
    """Public networks."""

    def read_target(
        self, video: Path, open_frames: OpenFrames, speech: np.ndarray | None, show_progress: bool = True
    ) -> Target:
        """Track and encode a real clip.

        Args:
            video: its file, for messages.
            open_frames: its frames.
            speech: its 16 kHz sound ``[samples]``; None for a silent clip.
            show_progress: whether to show a bar; not in one of several processes.

        Raises:
            UserError: the clip is broken or too short, or shows no face in its first frame.
        """
        recorder = FaceTrackRecorder()
        description = f"{video.stem}: tracking"
        for frame in tqdm(open_frames(), description, unit="frame", leave=False, disable=not show_progress):
            recorder.add(frame)
        track = recorder.finish()
        if len(track) < MIN_FRAMES:
            raise UserError(video, f"has only {len(track)} frames", f"Use clips of {MIN_FRAMES} or more.")
        if not track.found[0]:
            raise UserError(video, "its first frame shows no face", "Start the clip where the face is seen.")
        timing = None if speech is None else self._measure_timing(open_frames, track, speech)
        features = self.networks.encode_target(open_frames(), track, speech) if self.networks else None
        return Target(open_frames, track, speech, timing, features)

    def score(
        self,
        target: Target,
        open_generated: OpenFrames,
        speech: np.ndarray | None,
        timing: SpeechTiming | None,
        sampled_at: Sequence[int] = (),
        frame_measures: FrameMeasures | None = None,
    ) -> Measurement:
        """Score a video against a real clip.

        Args:
            target: the real clip.
            open_generated: the frames of the video, as many and as large.
            speech: the sound of the video, 16 kHz ``[samples]``; None leaves out the scores of lips against sound.
            timing: of that sound.
            sampled_at: numbers of the frames to keep for the contact sheet.
            frame_measures: further measures to take on the way.
        """
        frames = target.open_frames(), open_generated()
        measurement = measure_clip(*frames, target.track, sampled_at, timing, frame_measures)
        if self.lip_sync is not None and speech is not None:
            scores = replace(measurement.scores, **self._score_sync(open_generated, measurement.track, speech))
            measurement = replace(measurement, scores=scores)
        if self.networks is None or target.features is None:
            return measurement
        # The networks need the whole track of the generated video, so the video is read a second time.
        features = target.features
        if speech is not target.speech:
            features = replace(features, speech=self.networks.encode_speech(speech, len(target)))
        seen = self.networks.measure(target.open_frames(), open_generated(), features, measurement.track)
        return replace(measurement, scores=replace(measurement.scores, **seen.scores), features=seen.features)

    def score_real(self, target: Target, frame_measures: FrameMeasures) -> Scores:
        """Score a real clip by itself; scores that compare two videos are NaN or trivial.

        The frames of the clip must have the evaluation size.
        """
        sharpness = []
        for index, (frame, points) in enumerate(zip(target.open_frames(), target.track.plain, strict=True)):
            frame_measures.add(frame, points)
            if index > 0:
                sharpness.append(measure_cpbd(frame)[0])
        unknown = dict.fromkeys(("psnr", "ssim", "mouth_detail"), float("nan"))
        motion = compare_tracks(target.track, target.track, target.timing)
        scores = Scores(**unknown, cpbd=float(np.mean(sharpness)), **motion)
        if self.lip_sync is not None and target.speech is not None:
            scores = replace(scores, **self._score_sync(target.open_frames, target.track, target.speech))
        if self.networks is None or target.features is None:
            return scores
        seen = self.networks.measure(target.open_frames(), target.open_frames(), target.features, target.track)
        return replace(scores, **seen.scores)

    def _measure_timing(self, open_frames: OpenFrames, track: FaceTrack, speech: np.ndarray) -> SpeechTiming:
        is_pause = find_speech_pauses(speech, len(track))
        if self.lip_sync is None:
            return SpeechTiming(is_pause)
        # Imported here because scores of images and landmarks do not need torch.
        from s3dnerf.evaluation.sync_discriminator import find_sound_offset

        return SpeechTiming(is_pause, find_sound_offset(self.lip_sync, open_frames(), track, speech))

    def _score_sync(self, open_frames: OpenFrames, track: FaceTrack, speech: np.ndarray) -> dict[str, float]:
        # Imported here because scores of images and landmarks do not need torch.
        from s3dnerf.evaluation.sync_discriminator import score_tracked_video

        assert self.lip_sync is not None, "only called with a discriminator"
        sync = score_tracked_video(self.lip_sync, open_frames(), track, speech)
        names = {"sync_confidence": "confidence", "sync_distance": "distance", "sync_in_step": "in_sync"}
        return {name: getattr(sync, field) if sync else float("nan") for name, field in names.items()}


def find_sound(video: Path) -> Path | None:
    """Return the file with the sound of a video: the ``.wav`` beside it, or the video itself; None without sound."""
    beside = video.with_suffix(".wav")
    if beside.is_file():
        return beside
    return video if probe_video(video).has_audio else None


def find_speech_pauses(speech: np.ndarray, frames: int) -> np.ndarray:
    """Find the frames ``bool [frames]`` in pauses of 16 kHz speech ``[samples]``; see ``find_pauses``."""
    count = max(frames, count_frames(len(speech)))
    return find_pauses(find_active_frames([speech], measure_level([speech]), count))[:frames]


def load_scorer(weights: FoundWeights, device: str) -> Scorer:
    """Load our lip-sync discriminator, and the public networks whose weights were found.

    Raises:
        UserError: the device does not exist, or a file of weights is broken or belongs to another network.
    """
    from s3dnerf.device import choose_device
    from s3dnerf.models.sync_discriminator import load_discriminator

    chosen = choose_device(device)
    networks = None
    if weights.paths:
        from s3dnerf.evaluation.networks import PretrainedMetrics

        networks = PretrainedMetrics(weights.paths, chosen)
    return Scorer(load_discriminator(device=chosen), networks)
