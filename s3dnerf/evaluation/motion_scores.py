"""Scores of motion: of one clip, of the clips of a row together, and of a motion model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from s3dnerf.data.tracks import ClipTrack
from s3dnerf.evaluation.estimates import NAN, Estimate
from s3dnerf.evaluation.motion_judge import MotionJudge
from s3dnerf.evaluation.motion_rows import MotionModel, Row
from s3dnerf.evaluation.motion_theval import measure_theval_motion
from s3dnerf.face.coefficients import MotionCoefficients
from s3dnerf.face.expression_basis import load_shipped_basis
from s3dnerf.face.points import measure_brow_height, measure_lip_height
from s3dnerf.metrics import head_motion as metrics

AXES = ("pitch", "yaw", "roll")
BANDS = ("< 0.5", "0.5-1.5", "> 1.5")
DRIFT_FRAMES = 10 * 60 * 25
FLOOR_DRAWS = 50
Windows = Mapping[str, np.ndarray]
"""Pose windows ``[N, F]`` of each person."""


@dataclass(frozen=True)
class EvaluatedClip:
    """A clip with its speech, and its real motion."""

    track: ClipTrack
    motion: MotionCoefficients
    speech: np.ndarray
    """16 kHz ``[640 T]``."""
    features: np.ndarray
    """``[T, C]``, see :class:`~s3dnerf.evaluation.motion_judge.SpeechReader`."""

    @property
    def person(self) -> str:
        """Who speaks."""
        return self.track.clip.person

    @property
    def level(self) -> np.ndarray:
        """Level of speech in decibels, ``[T]``."""
        return self.features[:, -1]


def measure_clip(
    motion: MotionCoefficients,
    clips: Sequence[EvaluatedClip],
    index: int,
    judge: MotionJudge,
    donor: int | None = None,
) -> dict[str, float]:
    """Measure motion in place of that of a clip.

    Args:
        motion: T frames.
        clips: all clips that are evaluated.
        index: number of the clip.
        judge: knows the clips by the same numbers.
        donor: number of the clip whose motion or speech was used, if it is another one.

    Returns:
        Scores by name, the same names for every motion.
    """
    clip = clips[index]
    rotation = motion.pose[:, :3]
    degrees = np.degrees(rotation.astype(np.float64))
    scores = {"speed (°/s)": metrics.measure_speed(rotation)}
    scores["acceleration (°/s²)"] = metrics.measure_acceleration(rotation)
    for axis, std, spread in zip(AXES, degrees.std(axis=0), metrics.measure_range(degrees), strict=True):
        scores |= {f"{axis} std (°)": float(std), f"{axis} range (°)": float(spread)}
    for band, share in zip(BANDS, metrics.measure_spectrum_shares(rotation), strict=True):
        scores[f"power {band} Hz"] = float(share)
    scores["shift std (head)"] = float(np.hypot(*motion.pose[:, 3:5].std(axis=0)))
    scores["zoom std"] = float(motion.pose[:, 5].std())
    blinks = metrics.measure_blinks(motion.eyes)
    scores |= {"blinks/min": blinks.per_minute, "closed (s)": blinks.closed_seconds}
    scores["variation of pauses"] = blinks.pause_variation
    scores["brow std (head)"] = float(measure_brow_height(make_shapes(motion)).std())
    scores["gaze std (eye widths)"] = float(np.hypot(*motion.gaze.std(axis=0)))
    scores["lip opening r"] = metrics.correlate(measure_lip_opening(motion), measure_lip_opening(clip.motion))
    scores["head-speech agreement (AUC)"] = judge.measure_agreement(motion, index, donor)
    scores["level-speed r"] = metrics.measure_level_speed_correlation(clip.level, rotation)
    excluded = {clip.person, clip.person if donor is None else clips[donor].person}
    wrong = [other.level for other in clips if other.person not in excluded]
    scores["level-speed r, wrong speech"] = float(
        np.mean([metrics.measure_level_speed_correlation(level, rotation) for level in wrong])
    )
    scores["beat alignment"] = metrics.measure_beat_alignment(clip.level, rotation)
    return scores | measure_theval_motion(motion, clip.track)


def measure_seeds(motions: Sequence[MotionCoefficients]) -> dict[str, float]:
    """Measure how motions generated from one recording with different seeds differ."""
    lips = [measure_lip_opening(motion) for motion in motions]
    return {
        "seed diversity (°)": metrics.measure_seed_diversity(np.stack([motion.pose[:, :3] for motion in motions])),
        "lip opening r over seeds": float(np.mean([metrics.correlate(*pair) for pair in combinations(lips, 2)])),
    }


def measure_long_recording(model: MotionModel, speech: np.ndarray, seed: int, liveliness: float) -> dict[str, Estimate]:
    """Measure joins and drift over ten minutes of speech, which is repeated until it is that long."""
    recording = np.resize(speech, DRIFT_FRAMES * 640)
    rotation = model.generate(recording, DRIFT_FRAMES, seed=seed, liveliness=liveliness).pose[:, :3]
    ratio = metrics.measure_join_ratio(rotation, model.find_joins(DRIFT_FRAMES))
    return {
        "acceleration at joins / elsewhere": (ratio, NAN, NAN),
        "drift in ten minutes (°)": (metrics.measure_drift(rotation), NAN, NAN),
    }


def cut_windows(motions: Row, people: Sequence[str]) -> dict[str, np.ndarray]:
    """Return the pose windows ``[N, F]`` of each person."""
    windows = [metrics.cut_pose_windows(motion.pose) for motion in motions]
    names = sorted(set(people))
    return {name: np.concatenate([w for w, p in zip(windows, people, strict=True) if p == name]) for name in names}


def measure_floor(reference: Windows, evaluated: Windows, seed: int) -> Estimate:
    """Compute the pose Fréchet distance of real people from other real people.

    Each draw takes as many people of the reference as are evaluated, and as many windows of each, and measures
    their distance from the other people of the reference.

    Returns:
        Mean, 5th and 95th percentile over draws; NaN if no people are left over.
    """
    names, counts = list(reference), [len(windows) for windows in evaluated.values()]
    if len(names) <= len(counts):
        return NAN, NAN, NAN
    rng = np.random.default_rng(seed)
    distances = []
    for _ in range(FLOOR_DRAWS):
        order = rng.permutation(len(names))
        drawn = [reference[names[i]][:count] for i, count in zip(order, counts, strict=False)]
        others = [reference[names[i]] for i in order[len(counts) :]]
        distances.append(metrics.measure_pose_frechet(others, drawn, list(reference.values())))
    low, high = np.percentile(distances, [5, 95])
    return float(np.mean(distances)), float(low), float(high)


def make_shapes(motion: MotionCoefficients) -> np.ndarray:
    """Return the displacements of landmarks from the rest face in head space, ``[T, P, 3]``."""
    state = np.concatenate([motion.eyes - 1.0, motion.gaze], axis=1)
    return load_shipped_basis().displace(motion.expression, state)


def measure_lip_opening(motion: MotionCoefficients) -> np.ndarray:
    """Return the gap between the inner lips relative to that of the rest face in head units, ``[T]``."""
    return measure_lip_height(make_shapes(motion))
