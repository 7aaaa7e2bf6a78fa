"""Scores of a generated video against its target: names, units, order, and how they are measured."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from itertools import zip_longest
from typing import Any

import numpy as np

from s3dnerf.constants import FPS
from s3dnerf.evaluation.frame_measures import FrameMeasures
from s3dnerf.evaluation.tracking import FaceTrack, FaceTrackRecorder, crop_window, evaluation_size
from s3dnerf.face.points import EYE_LEFT, EYE_RIGHT
from s3dnerf.media.image import resize_image
from s3dnerf.metrics import (
    MOUTH_POINTS,
    align_openings,
    measure_blink_rate,
    measure_closure_chance,
    measure_closure_f1,
    measure_cpbd,
    measure_f_lmd,
    measure_jitter,
    measure_m_lmd,
    measure_opening_correlation,
    measure_opening_gain,
    measure_opening_slope,
    measure_psnr,
    measure_rms_gradient,
    measure_silent_opening,
    measure_ssim,
)

MOUTH_WINDOW = (1.2, 0.8)
"""Width and height of the window in which detail is measured, in median widths of the clip's mouth."""

EYE_POINTS = (*EYE_LEFT, *EYE_RIGHT)
EYE_MARGIN = 0.25
"""Margin of the boxes around the eyes, in eye widths."""
OF_REAL = {"sync_of_real": "sync_confidence", "cpbd_of_real": "cpbd", "jitter_of_real": "jitter"}
"""Scores in percent of the row ``ground_truth``, and the scores that they are of."""


@dataclass(frozen=True)
class Scores:
    """Scores of one clip, or the mean over clips.

    NaN is an undefined score, such as the correlation with a mouth that never moves. None is a score that was not
    measured, because the weights of its network are missing or an older version did not measure it. The first frame is
    the source image and is not scored. Frames are compared at a shorter side of 256 pixels; landmark distances and
    jitter are in these pixels.
    """

    psnr: float
    ssim: float
    f_lmd: float
    m_lmd: float
    m_lmd_fine: float
    lip_correlation: float
    lip_gain: float
    lip_slope: float
    jitter: float
    blink_rate: float
    found: float
    cpbd: float
    mouth_detail: float
    eye_psnr: float | None = None
    eye_openness: float | None = None
    lip_gain_plain: float | None = None
    sync_confidence: float | None = None
    sync_distance: float | None = None
    sync_in_step: float | None = None
    lpips: float | None = None
    lpips_vgg: float | None = None
    csim: float | None = None
    lse_c: float | None = None
    lse_d: float | None = None
    closure_f1: float | None = None
    closure_chance: float | None = None
    sound_offset: float | None = None
    lip_correlation_at_offset: float | None = None
    closure_f1_at_offset: float | None = None
    silent_opening: float | None = None
    fid: float | None = None
    """Measured over all clips of a row; None for a single clip, as are the three below."""
    sync_of_real: float | None = None
    cpbd_of_real: float | None = None
    jitter_of_real: float | None = None

    def as_dict(self) -> dict[str, float | None]:
        """Return the scores by name, in order."""
        return {part.name: getattr(self, part.name) for part in fields(self)}


@dataclass(frozen=True)
class SpeechTiming:
    """What the audio of a clip tells about its T frames."""

    is_pause: np.ndarray
    """``bool [T]``: frames in pauses of the speech, see ``find_pauses``."""
    offset: int | None = None
    """Frames by which the lips follow the sound late, because the sound of the clip is late; None if not measured."""


@dataclass(frozen=True)
class Measurement:
    """Scores of one generated clip, its track, and its frames for the contact sheet."""

    scores: Scores
    track: FaceTrack
    sampled: list[np.ndarray]
    features: np.ndarray | None = None
    """Inception features of all frames but the first, ``float32 [T - 1, 2048]``; None without its weights."""
    of_frames: dict[str, float] = field(default_factory=dict)
    """What :class:`FrameMeasures` measured, if asked for."""


def measure_clip(
    target: Iterable[np.ndarray],
    generated: Iterable[np.ndarray],
    target_track: FaceTrack,
    sampled_at: Iterable[int] = (),
    timing: SpeechTiming | None = None,
    frame_measures: FrameMeasures | None = None,
) -> Measurement:
    """Score a stream of generated frames against the target frames.

    Args:
        target: frames ``uint8 [H, W, 3]``.
        generated: of the same number and size; odd sides may be padded by one.
        target_track: of the target frames, at least two.
        sampled_at: numbers of the generated frames to keep.
        timing: of the audio; None leaves out the scores that need it.
        frame_measures: further measures to take on the way.

    Raises:
        ValueError: one stream ends before the other, or generated frames are smaller.
    """
    wanted = set(sampled_at)
    sampled: dict[int, np.ndarray] = {}
    images = ImageScores(target_track)
    recorder = FaceTrackRecorder()
    for index, (a, b) in enumerate(zip_longest(target, generated)):
        if a is None or b is None:
            shorter = "target" if a is None else "generated"
            raise ValueError(f"the {shorter} video ends first, after {index} frames")
        # The writer pads odd sides by one column or row.
        b = b[: a.shape[0], : a.shape[1]]
        points = recorder.add(b)
        if index in wanted:
            sampled[index] = b
        scaled = resize_image(a, evaluation_size(a)), resize_image(b, evaluation_size(b))
        if index > 0:
            images.add(*scaled, index, points)
        if frame_measures is not None:
            frame_measures.add(scaled[1], points, scaled[0])
    track = recorder.finish()
    scores = Scores(**images.finish(), **compare_tracks(target_track, track, timing))
    of_frames = {} if frame_measures is None else frame_measures.finish()
    return Measurement(scores, track, [sampled[index] for index in sorted(sampled)], of_frames=of_frames)


class ImageScores:
    """Accumulates the image-based part of ``Scores`` frame by frame."""

    def __init__(self, target_track: FaceTrack) -> None:
        self._target_mouths = target_track.plain[:, MOUTH_POINTS]
        self._window = np.array(MOUTH_WINDOW) * _median_ignoring_nan(np.ptp(self._target_mouths[..., 0], axis=1))
        self._target_eyes = target_track.plain[:, EYE_POINTS]
        self._values: dict[str, list[float]] = {"psnr": [], "ssim": [], "cpbd": [], "eye_psnr": []}
        self._details: list[tuple[float, float]] = []

    def add(self, target: np.ndarray, generated: np.ndarray, index: int, generated_points: np.ndarray) -> None:
        """Add two frames ``[H, W, 3]`` at evaluation size, and the plain mesh of the generated one."""
        self._values["psnr"].append(float(measure_psnr(target, generated)[0]))
        self._values["ssim"].append(float(measure_ssim(target, generated)[0]))
        self._values["cpbd"].append(float(measure_cpbd(generated)[0]))
        boxes = [box_eye(eye, target.shape[:2]) for eye in np.split(self._target_eyes[index], 2)]
        if None not in boxes:
            pairs = [[image[box].reshape(-1, 1, 3) for box in boxes] for image in (target, generated)]
            self._values["eye_psnr"].append(float(measure_psnr(*map(np.concatenate, pairs))[0]))
        centers = [mouth.mean(axis=0) for mouth in (self._target_mouths[index], generated_points[list(MOUTH_POINTS)])]
        if np.isfinite(centers).all():
            windows = [crop_window(*pair, self._window) for pair in zip((target, generated), centers, strict=True)]
            target_detail, detail = (float(measure_rms_gradient(window)[0]) for window in windows)
            self._details.append((target_detail, detail))

    def finish(self) -> dict[str, float]:
        """Return the means over frames."""
        target, generated = np.array(self._details).mean(axis=0) if self._details else (np.nan, np.nan)
        means = {name: float(np.mean(values)) if values else float("nan") for name, values in self._values.items()}
        return means | {"mouth_detail": float(generated / target) if target else float("nan")}


def box_eye(eye: np.ndarray, shape: tuple[int, int]) -> tuple[slice, slice] | None:
    """Return the rows and columns of the box around an eye; None if none of it is in the frame.

    Args:
        eye: ``[16, 2]`` points around it, pixels.
        shape: height and width of the frame.
    """
    if not np.isfinite(eye).all():
        return None
    low, high = eye.min(axis=0), eye.max(axis=0)
    margin = EYE_MARGIN * (high - low)[0]
    rows, columns = (
        slice(max(0, math.floor(low[axis] - margin)), min(side, math.ceil(high[axis] + margin)))
        for axis, side in ((1, shape[0]), (0, shape[1]))
    )
    return (rows, columns) if rows.start < rows.stop and columns.start < columns.stop else None


def compare_tracks(target: FaceTrack, generated: FaceTrack, timing: SpeechTiming | None = None) -> dict[str, float]:
    """Compute the landmark-based part of ``Scores``; arguments as for :func:`measure_clip`.

    A generated clip that never shows a face has NaN distances and ``found`` 0.
    """
    compared = slice(1, None)
    found = float(generated.found[compared].mean())
    target_fine, generated_fine = _scale_to_pixels(target), _scale_to_pixels(generated)
    generated_opening = generated.lip_opening[compared] if found else np.full(len(generated) - 1, np.nan)
    opening = target.lip_opening[compared], generated_opening
    return {
        "f_lmd": mean_ignoring_nan(measure_f_lmd(target.plain[compared], generated.plain[compared])),
        "m_lmd": mean_ignoring_nan(measure_m_lmd(target.plain[compared], generated.plain[compared])),
        "m_lmd_fine": mean_ignoring_nan(measure_m_lmd(target_fine[compared], generated_fine[compared])),
        "lip_correlation": measure_opening_correlation(*opening),
        "lip_gain": measure_opening_gain(*opening),
        "lip_slope": measure_opening_slope(*opening),
        "closure_f1": measure_closure_f1(*opening),
        "closure_chance": measure_closure_chance(*opening),
        "lip_gain_plain": measure_opening_gain(
            target.plain_lip_opening[compared], generated.plain_lip_opening[compared]
        ),
        "jitter": measure_jitter(generated.plain[compared]),
        "eye_openness": _compare_openness(target, generated) if found else float("nan"),
        "blink_rate": measure_blink_rate(generated.eye_openness[compared], FPS) if found else float("nan"),
        "found": found,
        **(compare_timing(*opening, timing) if timing else {}),
    }


def _compare_openness(target: FaceTrack, generated: FaceTrack) -> float:
    """Return the mean openness of generated eyes over that of the real ones, without the first frame."""
    ours, real = (mean_ignoring_nan(track.eye_openness[1:]) for track in (generated, target))
    return ours / real if real else float("nan")


def compare_timing(target: np.ndarray, generated: np.ndarray, timing: SpeechTiming) -> dict[str, float]:
    """Compute the scores of lip openings ``[T - 1]`` of all frames but the first that need the timing of the audio."""
    scores = {"silent_opening": measure_silent_opening(target, generated, timing.is_pause[1:])}
    if timing.offset is not None:
        aligned = align_openings(target, generated, timing.offset)
        scores |= {
            "sound_offset": float(timing.offset),
            "lip_correlation_at_offset": measure_opening_correlation(*aligned),
            "closure_f1_at_offset": measure_closure_f1(*aligned),
        }
    return scores


def average_scores(scores: Iterable[Scores]) -> Scores:
    """Average each score over clips, ignoring NaN; NaN if it is NaN in all clips, None if it was never measured."""
    entries = [entry.as_dict() for entry in scores]
    means: dict[str, Any] = {name: _average([entry[name] for entry in entries]) for name in entries[0]}
    return Scores(**means)


def spread_scores(scores: Iterable[Scores]) -> Scores:
    """Compute the sample standard deviation of each score, ignoring NaN.

    It is NaN for fewer than two values, None if the score was never measured.
    """
    entries = [entry.as_dict() for entry in scores]
    spreads: dict[str, Any] = {name: _spread([entry[name] for entry in entries]) for name in entries[0]}
    return Scores(**spreads)


def _spread(values: list[float | None]) -> float | None:
    measured = np.array([value for value in values if value is not None], np.float64)
    known = measured[~np.isnan(measured)]
    if not len(measured):
        return None
    return float(known.std(ddof=1)) if len(known) > 1 else float("nan")


def _average(values: list[float | None]) -> float | None:
    measured = np.array([value for value in values if value is not None], np.float64)
    return mean_ignoring_nan(measured) if len(measured) else None


def _scale_to_pixels(track: FaceTrack) -> np.ndarray:
    height, width = track.size
    return track.fine[..., :2] * np.array([width / 2, height / 2], np.float32)


def mean_ignoring_nan(values: np.ndarray) -> float:
    """Average the values that are not NaN; NaN if there are none."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")


def _median_ignoring_nan(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(np.median(known)) if known.size else float("nan")
