"""What is measured on a made video beside the real one, and the names, units and order of these numbers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from itertools import zip_longest

import numpy as np

from s3dnerf.evaluation.tracking import FaceRuler, FaceTrack, measured_size
from s3dnerf.media.audio import FPS
from s3dnerf.media.image import resize_image
from s3dnerf.metrics import (
    correlate_openings,
    measure_blink_rate,
    measure_f_lmd,
    measure_jitter,
    measure_m_lmd,
    measure_opening_gain,
    measure_opening_slope,
    measure_psnr,
    measure_ssim,
)


@dataclass(frozen=True)
class Scores:
    """One clip, or the mean over clips. NaN means: cannot be said (a real mouth that never moves, no face).

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

    def as_dict(self) -> dict[str, float]:
        """Name to value, in order."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True)
class Measurement:
    """Scores of one made clip, its track, and the frames picked for the contact sheet, in order."""

    scores: Scores
    track: FaceTrack
    picks: list[np.ndarray]


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
    psnr: list[float] = []
    ssim: list[float] = []
    with FaceRuler() as ruler:
        for index, (a, b) in enumerate(zip_longest(real, made)):
            if a is None or b is None:
                shorter = "real" if a is None else "made"
                raise ValueError(f"the {shorter} video ends first, after {index} frames")
            # A video of odd sides was written with one more column or row.
            b = b[: a.shape[0], : a.shape[1]]
            ruler.add(b)
            if index in wanted:
                picks[index] = b
            if index == 0:
                continue
            a, b = resize_image(a, measured_size(a)), resize_image(b, measured_size(b))
            psnr.append(float(measure_psnr(a, b)[0]))
            ssim.append(float(measure_ssim(a, b)[0]))
        track = ruler.finish()
    pictures = {"psnr": float(np.mean(psnr)), "ssim": float(np.mean(ssim))}
    scores = Scores(**pictures, **compare_tracks(real_track, track))
    return Measurement(scores, track, [picks[index] for index in sorted(picks)])


def compare_tracks(real: FaceTrack, made: FaceTrack) -> dict[str, float]:
    """The landmark part of `Scores`. A made clip that never shows a face has NaN distances, `found` 0."""
    judged = slice(1, None)
    found = float(made.found[judged].mean())
    real_fine, made_fine = _scale_to_pixels(real), _scale_to_pixels(made)
    made_opening = made.lip_opening[judged] if found else np.full(len(made) - 1, np.nan)
    opening = real.lip_opening[judged], made_opening
    return {
        "f_lmd": _known_mean(measure_f_lmd(real.plain[judged], made.plain[judged])),
        "m_lmd": _known_mean(measure_m_lmd(real.plain[judged], made.plain[judged])),
        "m_lmd_fine": _known_mean(measure_m_lmd(real_fine[judged], made_fine[judged])),
        "lip_correlation": correlate_openings(*opening),
        "lip_gain": measure_opening_gain(*opening),
        "lip_slope": measure_opening_slope(*opening),
        "jitter": measure_jitter(made.plain[judged]),
        "blink_rate": measure_blink_rate(made.eye_openness[judged], FPS) if found else float("nan"),
        "found": found,
    }


def average_scores(scores: Iterable[Scores]) -> Scores:
    """Mean of each number over clips, leaving out clips where it is NaN; NaN where it is NaN in all."""
    rows = np.array([list(entry.as_dict().values()) for entry in scores], np.float64)
    return Scores(*(_known_mean(column) for column in rows.T))


def _scale_to_pixels(track: FaceTrack) -> np.ndarray:
    height, width = track.size
    return track.fine[..., :2] * np.array([width / 2, height / 2], np.float32)


def _known_mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")
