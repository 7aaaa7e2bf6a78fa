"""The measures of ``score``: what each one reads, where it has a meaning, and what it cannot see.

A measure of pictures and landmarks is a field of ``Scores``, which ``evaluate`` has as well. A measure of tracks and
sound is a function of a :class:`ScoredPair`. To add one, add it to :data:`MEASURES`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from s3dnerf.evaluation.scores import Scores
from s3dnerf.evaluation.tables import COLUMNS, Column
from s3dnerf.evaluation.tracking import FaceTrack
from s3dnerf.face.camera import HeadPose, fit_head_pose, smooth_head_pose
from s3dnerf.face.landmarks import to_pixels
from s3dnerf.face.registration import TRACKED_SIGMA
from s3dnerf.face.rotation import matrix_to_rotvec
from s3dnerf.media.audio import measure_level
from s3dnerf.media.speech_activity import find_active_frames
from s3dnerf.metrics import head_motion, measure_lip_warping, measure_loudness, theval

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
        return None if self.poses is None else matrix_to_rotvec(self.poses[1].rotation)

    @property
    def level(self) -> np.ndarray | None:
        """Loudness of the sound of the video in each frame, ``[T]``."""
        return None if self.speech is None else measure_loudness(self.speech, len(self.generated))

    @property
    def is_speech(self) -> np.ndarray | None:
        """Frames in which the sound of the video has voice, ``bool [T]``."""
        if self.speech is None:
            return None
        return find_active_frames([self.speech], measure_level([self.speech]), len(self.generated))

    @cached_property
    def points(self) -> np.ndarray:
        """Landmarks of the video in pixels at evaluation size, ``[T, 478, 2]``; NaN in frames without a face."""
        return to_pixels(self.generated.fine, self.generated.size)[..., :2]


def fit_track_pose(track: FaceTrack) -> HeadPose:
    """Fit the head poses of a track in pixels at evaluation size, smoothed as poses without registration are."""
    return smooth_head_pose(fit_head_pose(to_pixels(track.filled, track.size)), TRACKED_SIGMA)


@dataclass(frozen=True)
class Measure:
    """One measure of a video."""

    column: Column
    reads: str
    """What the video is compared with."""
    blind: str
    """What the measure cannot see."""
    compute: Callable[[ScoredPair], float] | None = None
    """None if the measure is a field of ``Scores``, or taken frame by frame."""
    has_closeness: bool = False
    """Whether THEval's 1 - |m - real| / |real| of the means over a set of videos is reported as well."""

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
    return head_motion.correlate(measure_loudness(pair.real_speech, len(pair.real)), pair.level)


def _measure_warping(pair: ScoredPair) -> float:
    if not pair.generated.found.any():
        return float("nan")
    return measure_lip_warping(pair.real.lip_opening[1:], pair.generated.lip_opening[1:])


def _measure_head_dynamics(pair: ScoredPair) -> float:
    if pair.rotation is None:
        return float("nan")
    return theval.measure_head_dynamics(pair.rotation, theval.measure_box_center(pair.points))


def _measure_silent_lips(pair: ScoredPair) -> float:
    if pair.is_speech is None:
        return float("nan")
    return theval.measure_silent_lips(theval.measure_mouth_height(pair.points), theval.find_silence(pair.is_speech))


def _measure_loudness_mismatch(pair: ScoredPair) -> float:
    if pair.is_speech is None or pair.level is None:
        return float("nan")
    return theval.measure_loudness_mismatch(theval.measure_mouth_openness(pair.points), pair.level, pair.is_speech)


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
    "eye_openness": (FRAMES, "everything but how far eyes are open on average"),
    "eye_psnr": (FRAMES, "all but the eyes; where they look counts as much as whether they are open"),
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
    Measure(
        Column("lip_warping", "lip soft-DTW ↓", 2, "soft-DTW divergence of the lip opening from the real one"),
        LIPS,
        "the sound; lips that are late or early by a few frames",
        _measure_warping,
    ),
    Measure(
        Column("lip_dynamics", "lip dynamics (px) → real", 2, "THEval: variation of the distances between lip points"),
        ALONE,
        "the sound; when lips move; depends on size and crop",
        lambda pair: theval.measure_lip_dynamics(pair.points),
        has_closeness=True,
    ),
    Measure(
        Column("brow_dynamics", "brow dynamics → real", 4, "THEval: change of brow height per frame, in eye distances"),
        ALONE,
        "whether brows move with speech; blinks and tracking noise count",
        lambda pair: theval.measure_brow_dynamics(pair.points),
        has_closeness=True,
    ),
    Measure(
        Column("head_dynamics", "head dynamics (px) → real", 2, "THEval: variation of head angles and position"),
        ALONE,
        "whether the head moves with speech; depends on size and crop",
        _measure_head_dynamics,
        has_closeness=True,
    ),
    Measure(
        Column("silent_lips", "silent lip motion → real", 4, "THEval: movement of the lips in silences"),
        SOUND,
        "speech; open lips that hold still; clips without silence have none",
        _measure_silent_lips,
        has_closeness=True,
    ),
    Measure(
        Column("loudness_mismatch", "loudness mismatch → real", 3, "THEval: difference of lips and loudness"),
        SOUND,
        "other speech: real lips with foreign sound score nearly as with their own",
        _measure_loudness_mismatch,
        has_closeness=True,
    ),
    Measure(
        Column(
            "gradient_error",
            "temporal error ↓",
            2,
            "difference of the changes of gray levels from the real ones",
        ),
        FRAMES,
        "the sound; constant differences of the picture",
    ),
    Measure(
        Column("flicker", "flicker → real", 2, "distance of gray levels from the mean of the frames before and after"),
        ALONE,
        "slow changes; fast motion counts too; a still picture has none",
    ),
    Measure(
        Column("face_flicker", "face flicker → real", 2, "the same inside the face"),
        ALONE,
        "slow changes; fast motion counts too; a still picture has none",
    ),
    Measure(
        Column("face_detail", "face detail → real", 1, "root mean square gradient inside the face"),
        ALONE,
        "whether detail is right; noise counts as detail",
    ),
    Measure(
        Column("outer_detail", "outer detail → real", 1, "the same outside the face"),
        ALONE,
        "whether detail is right; noise counts as detail",
    ),
    Measure(
        Column(
            "identity_distance",
            "identity dist. ↓",
            2,
            "distance of dlib's face descriptors from those of the real frames, five frames a video; about .3 within a "
            "clip, .6 and more for other people",
        ),
        FACE,
        "motion and sound; a still portrait scores well",
    ),
)
"""All measures, in the order of tables."""


def choose_measures(task: str) -> list[Measure]:
    """Return the measures that have a meaning in a task of :data:`TASKS`."""
    return [measure for measure in MEASURES if measure.reads in TASKS[task]]


def measure_pair(scores: Scores, pair: ScoredPair, task: str, others: Mapping[str, float]) -> dict[str, float | None]:
    """Compute all measures of a task by name; None for those that were not measured.

    Args:
        scores: of the pair, as from ``Scorer.score``.
        pair: its tracks and sound.
        task: of :data:`TASKS`.
        others: measures that are taken frame by frame.
    """
    known: Mapping[str, float | None] = scores.as_dict() | dict(others)
    values = {}
    for measure in choose_measures(task):
        is_silent = measure.reads == SOUND and pair.speech is None
        value = known.get(measure.name) if measure.compute is None else measure.compute(pair)
        values[measure.name] = None if is_silent else value
    return values
