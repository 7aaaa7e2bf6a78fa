"""What is measured on a made video beside the real one, and the names, units and order of these numbers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from itertools import zip_longest

import numpy as np

from s3dnerf.evaluation.tracking import FaceRuler, FaceTrack, cut_window, measured_size
from s3dnerf.media.audio import FPS
from s3dnerf.media.image import resize_image
from s3dnerf.metrics import (
    MOUTH_POINTS,
    correlate_openings,
    measure_blink_rate,
    measure_cpbd,
    measure_detail,
    measure_f_lmd,
    measure_jitter,
    measure_m_lmd,
    measure_opening_gain,
    measure_opening_slope,
    measure_psnr,
    measure_ssim,
)

MOUTH_WINDOW = (1.2, 0.8)
"""Width and height of the window whose detail is measured, in widths of the clip's usual mouth."""


@dataclass(frozen=True)
class Scores:
    """One clip, or the mean over clips. NaN means: cannot be said (a real mouth that never moves, no face).

    None means: not measured, because the weights of the network are not there.

    The first frame is given as the portrait and is not judged. Frames are compared with the shorter side
    scaled to 256 pixels; landmark distances and jitter are in these pixels.
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
    lip_gain_plain: float | None = None
    sync_confidence: float | None = None
    sync_distance: float | None = None
    lpips: float | None = None
    lpips_vgg: float | None = None
    csim: float | None = None
    lse_c: float | None = None
    lse_d: float | None = None
    fid: float | None = None
    """Of all clips of a row together; a single clip has none."""

    def as_dict(self) -> dict[str, float | None]:
        """Name to value, in order."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True)
class Measurement:
    """Scores of one made clip, its track, and the frames picked for the contact sheet, in order."""

    scores: Scores
    track: FaceTrack
    picks: list[np.ndarray]
    features: np.ndarray | None = None
    """Inception's features of the judged frames, float32 [T - 1, 2048], where its weights are there."""


def measure_clip(
    real: Iterable[np.ndarray],
    made: Iterable[np.ndarray],
    real_track: FaceTrack,
    picked: Iterable[int] = (),
) -> Measurement:
    """Compare made frames with real ones, both streams of uint8 [H, W, 3], and keep the made frames `picked`.

    `real_track` is the track of the real clip, at least two frames. Raises ValueError if one stream ends
    before the other or made frames are smaller.
    """
    wanted = set(picked)
    picks: dict[int, np.ndarray] = {}
    pictures = PictureScores(real_track)
    with FaceRuler() as ruler:
        for index, (a, b) in enumerate(zip_longest(real, made)):
            if a is None or b is None:
                shorter = "real" if a is None else "made"
                raise ValueError(f"the {shorter} video ends first, after {index} frames")
            # A video of odd sides was written with one more column or row.
            b = b[: a.shape[0], : a.shape[1]]
            points = ruler.add(b)
            if index in wanted:
                picks[index] = b
            if index > 0:
                pictures.add(resize_image(a, measured_size(a)), resize_image(b, measured_size(b)), index, points)
        track = ruler.finish()
    scores = Scores(**pictures.finish(), **compare_tracks(real_track, track))
    return Measurement(scores, track, [picks[index] for index in sorted(picks)])


class PictureScores:
    """Collects the part of `Scores` that is measured on pictures, frame by frame."""

    def __init__(self, real_track: FaceTrack) -> None:
        self._real_mouths = real_track.plain[:, MOUTH_POINTS]
        self._window = np.array(MOUTH_WINDOW) * _known_median(np.ptp(self._real_mouths[..., 0], axis=1))
        self._values: dict[str, list[float]] = {"psnr": [], "ssim": [], "cpbd": []}
        self._details: list[tuple[float, float]] = []

    def add(self, real: np.ndarray, made: np.ndarray, index: int, made_points: np.ndarray) -> None:
        """Compare two frames [H, W, 3] of the measured size; made_points: the plain mesh of the made one."""
        self._values["psnr"].append(float(measure_psnr(real, made)[0]))
        self._values["ssim"].append(float(measure_ssim(real, made)[0]))
        self._values["cpbd"].append(float(measure_cpbd(made)[0]))
        centers = [mouth.mean(axis=0) for mouth in (self._real_mouths[index], made_points[list(MOUTH_POINTS)])]
        if np.isfinite(centers).all():
            windows = [cut_window(*pair, self._window) for pair in zip((real, made), centers, strict=True)]
            self._details.append(tuple(float(measure_detail(window)[0]) for window in windows))

    def finish(self) -> dict[str, float]:
        """The means over frames."""
        real, made = np.array(self._details).mean(axis=0) if self._details else (np.nan, np.nan)
        means = {name: float(np.mean(values)) for name, values in self._values.items()}
        return means | {"mouth_detail": float(made / real) if real else float("nan")}


def compare_tracks(real: FaceTrack, made: FaceTrack) -> dict[str, float]:
    """The landmark part of `Scores`. A made clip that never shows a face has NaN distances, `found` 0."""
    judged = slice(1, None)
    found = float(made.found[judged].mean())
    real_fine, made_fine = _scale_to_pixels(real), _scale_to_pixels(made)
    made_opening = made.lip_opening[judged] if found else np.full(len(made) - 1, np.nan)
    opening = real.lip_opening[judged], made_opening
    return {
        "f_lmd": average_known(measure_f_lmd(real.plain[judged], made.plain[judged])),
        "m_lmd": average_known(measure_m_lmd(real.plain[judged], made.plain[judged])),
        "m_lmd_fine": average_known(measure_m_lmd(real_fine[judged], made_fine[judged])),
        "lip_correlation": correlate_openings(*opening),
        "lip_gain": measure_opening_gain(*opening),
        "lip_slope": measure_opening_slope(*opening),
        "lip_gain_plain": measure_opening_gain(real.plain_lip_opening[judged], made.plain_lip_opening[judged]),
        "jitter": measure_jitter(made.plain[judged]),
        "blink_rate": measure_blink_rate(made.eye_openness[judged], FPS) if found else float("nan"),
        "found": found,
    }


def average_scores(scores: Iterable[Scores]) -> Scores:
    """Mean of each number over clips, leaving out clips where it is NaN; NaN where it is NaN in all.

    What was measured in no clip stays None.
    """
    entries = [entry.as_dict() for entry in scores]
    return Scores(**{name: _average([entry[name] for entry in entries]) for name in entries[0]})


def spread_scores(scores: Iterable[Scores]) -> Scores:
    """Sample standard deviation of each number, leaving out NaN; NaN where fewer than two are known.

    What was measured nowhere stays None.
    """
    entries = [entry.as_dict() for entry in scores]
    return Scores(**{name: _spread([entry[name] for entry in entries]) for name in entries[0]})


def _spread(values: list[float | None]) -> float | None:
    measured = np.array([value for value in values if value is not None], np.float64)
    known = measured[~np.isnan(measured)]
    if not len(measured):
        return None
    return float(known.std(ddof=1)) if len(known) > 1 else float("nan")


def _average(values: list[float | None]) -> float | None:
    measured = np.array([value for value in values if value is not None], np.float64)
    return average_known(measured) if len(measured) else None


def _scale_to_pixels(track: FaceTrack) -> np.ndarray:
    height, width = track.size
    return track.fine[..., :2] * np.array([width / 2, height / 2], np.float32)


def average_known(values: np.ndarray) -> float:
    """Mean of the values that are not NaN; NaN if there is none."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")


def _known_median(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(np.median(known)) if known.size else float("nan")
