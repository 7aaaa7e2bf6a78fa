"""Ridge regression from speech to motion that tells the speech of a clip from that of other people.

Every prediction is made by a fit without the person. The channels that speech predicts for unseen people are head
speed, pitch, the velocity of pitch and vertical gaze; yaw, roll and horizontal gaze have no sign that speech
could know.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from s3dnerf.constants import SAMPLES_PER_FRAME
from s3dnerf.face.coefficients import MotionCoefficients
from s3dnerf.metrics.head_motion import compute_speed, correlate, measure_own_share
from s3dnerf.models.speech_features import Moonshine

SPEECH_COMPONENTS = 32
CONTEXT = range(-12, 13, 4)
"""Frames of speech around a frame of motion; heads move before the voice."""
FOLDS = 4
PENALTIES = (1e2, 1e3, 1e4, 1e5)
MIN_SPEED = 1.0
"""Degrees per second below which speeds are alike, so that the logarithm of stillness is finite."""


@dataclass(frozen=True)
class Fit:
    """A ridge regression: ``(inputs - mean) @ weights``."""

    mean: np.ndarray
    weights: np.ndarray


class SpeechReader:
    """Reads speech as features per frame."""

    def __init__(self) -> None:
        self._network = Moonshine()

    def read(self, speech: np.ndarray, frames: int) -> np.ndarray:
        """Return hidden states and the level in decibels of the frames, ``[T, C + 1]``."""
        sound = torch.from_numpy(np.asarray(speech[: frames * SAMPLES_PER_FRAME], np.float32))[None]
        hidden = self._network(sound)[0].unflatten(1, (frames, -1)).mean(-1).T.numpy()
        return np.concatenate([hidden, measure_frame_level(speech, frames)[:, None]], axis=1)


def measure_frame_level(speech: np.ndarray, frames: int) -> np.ndarray:
    """Measure the level of 16 kHz speech in decibels by frame, ``[T]``, at least -60."""
    power = np.square(speech[: frames * SAMPLES_PER_FRAME].astype(np.float64)).reshape(frames, -1).mean(axis=1)
    return 10 * np.log10(power + 1e-6)


def compute_judged_channels(motion: MotionCoefficients) -> np.ndarray:
    """Return logarithm of head speed, pitch, velocity of pitch and vertical gaze, ``[T, 4]``."""
    speed = np.log(np.maximum(compute_speed(motion.pose[:, :3]), MIN_SPEED))
    pitch = motion.pose[:, 0]
    velocity = np.gradient(pitch)
    return np.stack([np.append(speed, speed[-1]), pitch, velocity, motion.gaze[:, 1]], axis=1)


class MotionJudge:
    """Predictions of the motion of each clip by regressions without its person."""

    def __init__(
        self, features: Sequence[np.ndarray], motions: Sequence[MotionCoefficients], people: Sequence[str]
    ) -> None:
        """Fit one regression for each fold of people.

        Args:
            features: of each clip ``[T, C]``, see :class:`SpeechReader`.
            motions: real motion of each clip.
            people: the person of each clip; two or more people.
        """
        if len(set(people)) < 2:
            raise ValueError("the judge needs two people or more")
        self._people = list(people)
        names = sorted(set(people))
        self._fold = {name: index % min(FOLDS, len(names)) for index, name in enumerate(names)}
        inputs = _reduce_and_widen(features)
        targets = [np.concatenate([compute_judged_channels(m), m.flatten()], axis=1) for m in motions]
        targets = [target - target.mean(axis=0) for target in targets]
        self._predictions: list[np.ndarray] = [np.zeros(0)] * len(inputs)
        for fold in sorted(set(self._fold.values())):
            known = [clip for clip, name in enumerate(people) if self._fold[name] != fold]
            penalty = self._choose_penalty(inputs, targets, known)
            fit = _fit_ridge(inputs, targets, known, penalty)
            for clip, name in enumerate(people):
                if self._fold[name] == fold:
                    self._predictions[clip] = (inputs[clip] - fit.mean) @ fit.weights

    def predict_motion(self, clip: int) -> MotionCoefficients:
        """Return the motion that the regression predicts of the speech of a clip, from the mean with open eyes."""
        values = self._predictions[clip][:, 4:].copy()
        values[:, 24:30] -= values[0, 24:30]
        values[:, 30:32] += 1.0
        return MotionCoefficients.unflatten(values)

    def measure_agreement(self, motion: MotionCoefficients, clip: int, donor: int | None = None) -> float:
        """Compute the AUC of the speech of a clip against that of other people; 0.5 is chance.

        Args:
            motion: of the row that is measured.
            clip: the clip that it belongs to. Its speech is compared with that of other people.
            donor: the clip from which the motion was made, if it is another one; its person is left out.
        """
        channels = compute_judged_channels(motion)
        excluded = {self._people[clip], self._people[clip if donor is None else donor]}
        pairs = []
        for other, name in enumerate(self._people):
            if name in excluded:
                continue
            frames = min(len(channels), len(self._predictions[clip]), len(self._predictions[other]))
            pairs.append([self._score(channels, index, frames) for index in (clip, other)])
        scores = np.array(pairs).reshape(-1, 2)
        return measure_own_share(scores[:, 0], scores[:, 1])

    def _score(self, channels: np.ndarray, clip: int, frames: int) -> float:
        predicted = self._predictions[clip][:frames]
        return float(np.mean([correlate(channels[:frames, c], predicted[:, c]) for c in range(4)]))

    def _choose_penalty(self, inputs: list[np.ndarray], targets: list[np.ndarray], known: list[int]) -> float:
        """Return the penalty that predicts every other person of the known ones best."""
        names = sorted({self._people[clip] for clip in known})
        held_out = set(names[::2])
        fitted = [clip for clip in known if self._people[clip] not in held_out]
        tested = [clip for clip in known if self._people[clip] in held_out]
        if not fitted:
            return PENALTIES[-1]

        def score(penalty: float) -> float:
            fit = _fit_ridge(inputs, targets, fitted, penalty)
            predicted = [(inputs[clip] - fit.mean) @ fit.weights for clip in tested]
            pairs = list(zip(predicted, (targets[clip] for clip in tested), strict=True))
            return float(np.mean([correlate(one[:, c], other[:, c]) for one, other in pairs for c in range(4)]))

        return max(PENALTIES, key=score)


def _reduce_and_widen(features: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return principal components of speech, with those of the frames around, for each clip."""
    rows = np.concatenate(list(features)).astype(np.float64)
    mean, spread = rows.mean(axis=0), rows.std(axis=0).clip(min=1e-6)
    scaled = (rows - mean) / spread
    axes = np.linalg.eigh(scaled.T @ scaled)[1][:, -SPEECH_COMPONENTS:]
    level = scaled[:, -1:]
    values = np.concatenate([scaled @ axes, level], axis=1)
    values /= values.std(axis=0).clip(min=1e-6)
    ends = np.cumsum([len(one) for one in features])[:-1]
    widened = []
    for clip in np.split(values, ends):
        near = np.clip(np.arange(len(clip))[:, None] + np.array(CONTEXT), 0, len(clip) - 1)
        widened.append(clip[near].reshape(len(clip), -1))
    return widened


def _fit_ridge(inputs: list[np.ndarray], targets: list[np.ndarray], clips: list[int], penalty: float) -> Fit:
    rows = np.concatenate([inputs[clip] for clip in clips])
    wanted = np.concatenate([targets[clip] for clip in clips])
    mean = rows.mean(axis=0)
    centered = rows - mean
    gram = centered.T @ centered + penalty * np.eye(rows.shape[1])
    return Fit(mean, np.linalg.solve(gram, centered.T @ wanted))
