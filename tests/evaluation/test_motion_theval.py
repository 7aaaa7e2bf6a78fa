"""THEval's measures of motion that is not rendered: real motion agrees with its track, and people weigh the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from s3dnerf.data.clip import load_clip
from s3dnerf.data.tracks import ClipTrack, load_clip_track
from s3dnerf.evaluation.motion_rows import make_still
from s3dnerf.evaluation.motion_theval import (
    BROWS,
    CLOSENESS,
    HEAD,
    average_tracks,
    compare_with_real,
    measure_theval_motion,
    measure_theval_track,
)
from s3dnerf.face.coefficients import MotionCoefficients, compute_coefficients


@pytest.fixture(scope="module")
def track(speaking_clips: Path) -> ClipTrack:
    return load_clip_track(load_clip(speaking_clips / "ida_0"))


def test_real_motion_measures_as_its_track_does(track: ClipTrack) -> None:
    motion, tracked = measure_theval_motion(compute_coefficients(track), track), measure_theval_track(track)
    assert motion[HEAD] == pytest.approx(tracked[HEAD], rel=0.1) and motion[HEAD] > 0.5
    # Brows of a cartoon are not those of the basis.
    assert 0.5 < motion[BROWS] / tracked[BROWS] < 2.0


def test_a_still_head_does_not_move(track: ClipTrack) -> None:
    still = measure_theval_motion(make_still(30), track)
    assert still[HEAD] == pytest.approx(0.0, abs=1e-3) and still[BROWS] == pytest.approx(0.0, abs=1e-6)


def test_a_shift_moves_the_center_by_its_pixels(track: ClipTrack) -> None:
    values = make_still(4).flatten()
    values[1::2, 27] = 0.2
    moved = measure_theval_motion(MotionCoefficients.unflatten(values), track)
    # The center alternates by 0.2 heads of the first pose; the variance is averaged over x and y.
    pixels = 0.2 * float(track.pose.scale[0]) * 128
    assert moved[HEAD] == pytest.approx(pixels / 2 / np.sqrt(2), rel=0.02)


def make_scores(*values: float) -> list[dict[str, float]]:
    return [{HEAD: value, BROWS: 2.0} for value in values]


def test_closeness_is_that_of_people_balanced_means() -> None:
    rows = {"real": make_scores(1.0, 3.0, 4.0), "ours": make_scores(1.0, 1.0, 2.0), "lost": make_scores(*[np.nan] * 3)}
    closeness = compare_with_real(rows, ["a", "a", "b"])
    # Means (2 + 4) / 2 and (1 + 2) / 2; people alone give 1 / 2 each.
    assert closeness["ours"][CLOSENESS[HEAD]] == pytest.approx((0.5, 0.5, 0.5))
    assert closeness["ours"][CLOSENESS[BROWS]] == closeness["real"][CLOSENESS[HEAD]] == (1.0, 1.0, 1.0)
    assert np.isnan(closeness["lost"][CLOSENESS[HEAD]][0])


def test_clips_without_a_value_are_left_out() -> None:
    rows = {"real": make_scores(np.nan, 3.0, 5.0), "ours": make_scores(9.0, 1.0, 3.0)}
    value, low, high = compare_with_real(rows, ["a", "a", "b"])["ours"][CLOSENESS[HEAD]]
    assert (value, low, high) == pytest.approx((0.5, 1 / 3, 3 / 5))


def test_tracks_are_averaged_over_people(track: ClipTrack) -> None:
    assert average_tracks([track, track]) == pytest.approx(measure_theval_track(track))
