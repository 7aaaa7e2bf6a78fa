"""The measures of ``score``: what each one reads, where it has a meaning, and what it cannot see.

A measure of pictures and landmarks is a field of ``Scores``, which ``evaluate`` has as well. A measure of tracks and
sound is a function of a :class:`ScoredPair`. To add one, add it to :data:`MEASURES`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.spatial.transform import Rotation

from s3dnerf.constants import SAMPLES_PER_FRAME
from s3dnerf.evaluation.scores import Scores
from s3dnerf.evaluation.tables import COLUMNS, Column
from s3dnerf.evaluation.tracking import FaceTrack
from s3dnerf.face.camera import HeadPose, fit_head_pose, smooth_head_pose
from s3dnerf.face.landmarks import to_pixels
from s3dnerf.face.registration import TRACKED_SIGMA
from s3dnerf.metrics import head_motion

FRAMES, LIPS, SPEECH, SOUND, FACE, ALONE = "real frames", "real lips", "real sound", "own sound", "real face", "itself"
TASKS = {
    "self": (FRAMES, LIPS, SPEECH, SOUND, FACE, ALONE),
    "free": (LIPS, SPEECH, SOUND, FACE, ALONE),
    "cross": (SOUND, FACE, ALONE),
}
"""What a video is compared with, by task. With a head of its own it has no real frame to match, and with the speech of
another person no real lips."""
OF_VIDEO = (SOUND, ALONE)
"""What measures of a single video read; real clips have them too."""


@dataclass(frozen=True)
class ScoredPair:
    """A video and its real clip as measures see them, with as many frames."""

    real: FaceTrack
    generated: FaceTrack
    real_speech: np.ndarray | None
    """16 kHz ``[samples]``; None without sound."""
    speech: np.ndarray | None
    """The sound of the video."""

    @cached_property
    def poses(self) -> tuple[HeadPose, HeadPose] | None:
        """Head poses in pixels, of the real clip and of the video; None if the video never shows a face."""
        if not self.generated.found.any():
            return None
        return fit_track_pose(self.real), fit_track_pose(self.generated)

    @property
    def rotation(self) -> np.ndarray | None:
        """Rotation of the generated head, rotation vectors ``[T, 3]``."""
        return None if self.poses is None else Rotation.from_matrix(self.poses[1].rotation).as_rotvec()

    @property
    def level(self) -> np.ndarray | None:
        """Level of the sound of the video in each frame, ``[T]``."""
        return None if self.speech is None else measure_frame_levels(self.speech, len(self.generated))


def fit_track_pose(track: FaceTrack) -> HeadPose:
    """Fit the head poses of a track in pixels at evaluation size, smoothed as poses without registration are."""
    return smooth_head_pose(fit_head_pose(to_pixels(track.filled, track.size)), TRACKED_SIGMA)


def measure_frame_levels(speech: np.ndarray, frames: int) -> np.ndarray:
    """Measure the root mean square of 16 kHz speech ``[samples]`` in each frame, ``[frames]``; silence at the end."""
    samples = np.zeros(frames * SAMPLES_PER_FRAME)
    used = speech[: len(samples)]
    samples[: len(used)] = used
    return np.sqrt(np.square(samples).reshape(frames, -1).mean(axis=1))


@dataclass(frozen=True)
class Measure:
    """One measure of a video."""

    column: Column
    reads: str
    """What the video is compared with."""
    blind: str
    """What the measure cannot see."""
    compute: Callable[[ScoredPair], float] | None = None
    """None if the measure is a field of ``Scores``."""

    @property
    def name(self) -> str:
        """Name in files."""
        return self.column.name

    @property
    def heading(self) -> str:
        """Name in tables."""
        return self.column.heading


def _measure_sound_match(pair: ScoredPair) -> float:
    if pair.real_speech is None or pair.level is None:
        return float("nan")
    return head_motion.correlate(measure_frame_levels(pair.real_speech, len(pair.real)), pair.level)


def _of_rotation(measure: Callable[[np.ndarray], float]) -> Callable[[ScoredPair], float]:
    return lambda pair: float("nan") if pair.rotation is None else float(measure(pair.rotation))


def _of_level_and_rotation(measure: Callable[[np.ndarray, np.ndarray], float]) -> Callable[[ScoredPair], float]:
    def compute(pair: ScoredPair) -> float:
        if pair.rotation is None or pair.level is None:
            return float("nan")
        return float(measure(pair.level, pair.rotation))

    return compute


_COLUMNS = {column.name: column for column in COLUMNS}
_SCORES = {
    "psnr": (FRAMES, "the sound; lips are few pixels; shifts count as much as errors"),
    "ssim": (FRAMES, "the sound; lips are few pixels"),
    "lpips": (FRAMES, "the sound"),
    "lpips_vgg": (FRAMES, "the sound"),
    "f_lmd": (FRAMES, "the sound; the picture; head and lips are one number"),
    "m_lmd": (FRAMES, "the sound; the picture; still lips lose little"),
    "m_lmd_fine": (FRAMES, "the sound; the picture"),
    "mouth_detail": (FRAMES, "the sound; wrong detail counts as detail"),
    "lip_correlation": (LIPS, "the sound; the amount of movement; the picture"),
    "lip_correlation_at_offset": (LIPS, "the same; wrong for lips that are copied and do not follow the sound"),
    "closure_f1": (LIPS, "the sound; the amount of movement; chance is about .5"),
    "closure_f1_at_offset": (LIPS, "the same; wrong for copied lips"),
    "closure_chance": (LIPS, "not a score: the level of unrelated lips"),
    "lip_gain": (LIPS, "the sound; when lips move"),
    "lip_gain_plain": (LIPS, "the sound; when lips move"),
    "lip_slope": (LIPS, "the sound"),
    "silent_opening": (SOUND, "everything but pauses; clips without pauses have none"),
    "sync_confidence": (SOUND, "a constant delay, which is searched; it supervised our training"),
    "sync_distance": (SOUND, "a constant delay; it supervised our training"),
    "sync_in_step": (SOUND, "a late real clip is blamed on lips that follow its sound; it supervised our training"),
    "lse_c": (SOUND, "a constant delay; depends on the codec"),
    "lse_d": (SOUND, "a constant delay; depends on the codec"),
    "csim": (FACE, "motion and sound; a still portrait scores high"),
    "fid": (FACE, "motion and sound; small sets are biased"),
    "cpbd": (ALONE, "whether sharp detail is right; noise counts as sharp"),
    "jitter": (ALONE, "a still head has none"),
    "blink_rate": (ALONE, "when eyes close, and how"),
    "found": (ALONE, "all but lost faces"),
}
MEASURES = (
    *(Measure(_COLUMNS[name], *rest) for name, rest in _SCORES.items()),
    Measure(
        Column("sound_match", "sound as given ↑", 2, "correlation of the level of its sound with the real one"),
        SPEECH,
        "lips",
        _measure_sound_match,
    ),
    Measure(
        Column("head_speed", "head speed (°/s) → real", 2, "mean angular speed of the head"),
        ALONE,
        "where the head goes; noise counts as motion",
        _of_rotation(head_motion.measure_speed),
    ),
    Measure(
        Column("fast_motion", "power > 1.5 Hz → real", 3, "share of the power of head rotation above 1.5 Hz"),
        ALONE,
        "how much the head moves",
        _of_rotation(lambda rotation: head_motion.measure_spectrum_shares(rotation)[2]),
    ),
    Measure(
        Column(
            "level_speed",
            "level-speed r → real",
            2,
            "correlation of the level of speech with the speed of the head 6 frames earlier",
        ),
        SOUND,
        "lips; weak in real clips, so that few clips tell nothing",
        _of_level_and_rotation(head_motion.measure_level_speed_correlation),
    ),
    Measure(
        Column("beat_alignment", "beat alignment", 2, "closeness of speech beats to minima of head speed; for papers"),
        SOUND,
        "lips, and other speech: noise and foreign sound score as the real clip does",
        _of_level_and_rotation(head_motion.measure_beat_alignment),
    ),
)
"""All measures, in the order of tables."""


def choose_measures(task: str) -> list[Measure]:
    """Return the measures that have a meaning in a task of :data:`TASKS`."""
    return [measure for measure in MEASURES if measure.reads in TASKS[task]]


def measure_pair(scores: Scores, pair: ScoredPair, task: str) -> dict[str, float | None]:
    """Compute all measures of a task by name; None for those that were not measured.

    Args:
        scores: of the pair, as from ``Scorer.score``.
        pair: its tracks and sound.
        task: of :data:`TASKS`.
    """
    known: Mapping[str, float | None] = scores.as_dict()
    values = {}
    for measure in choose_measures(task):
        is_silent = measure.reads == SOUND and pair.speech is None
        value = known[measure.name] if measure.compute is None else measure.compute(pair)
        values[measure.name] = None if is_silent else value
    return values
