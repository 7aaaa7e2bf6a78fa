"""Lids of generated motion: short blinks stay, long ones end, missing ones are added, streams give the same."""

from __future__ import annotations

import numpy as np

from s3dnerf.metrics.motion import find_blinks
from s3dnerf.models.fd2talk.lids import OPEN_OPENNESS, LidRegulator

OPEN = 1.02


def make_eyes(frames: int, *closures: tuple[int, int]) -> np.ndarray:
    """Return open eyes that are closed from a frame on for some frames."""
    eyes = np.full((frames, 2), OPEN, np.float32)
    for first, length in closures:
        eyes[first : first + length] = 0.2
    return eyes


def test_short_blinks_stay_exactly_as_they_are() -> None:
    eyes = make_eyes(200, (30, 3), (90, 4), (140, 2))
    assert np.array_equal(LidRegulator(0).apply(eyes), eyes)


def test_long_closures_end_and_are_one_blink() -> None:
    eyes = make_eyes(300, (50, 60), (180, 9))
    regulated = LidRegulator(0).apply(eyes)
    blinks = find_blinks(regulated)
    assert blinks[:, 0].tolist() == [50, 180]
    assert blinks[:, 1].max() <= 6
    # As long as the model keeps them closed, they are held open, and they do not flutter.
    assert regulated[60:110].min() >= OPEN_OPENNESS - 1e-6
    assert np.array_equal(regulated[150:180], eyes[150:180])


def test_blinks_do_not_follow_each_other_at_once() -> None:
    regulated = LidRegulator(0).apply(make_eyes(100, (40, 3), (50, 3), (80, 3)))
    assert find_blinks(regulated)[:, 0].tolist() == [40, 80]


def test_missing_blinks_are_added() -> None:
    regulated = LidRegulator(3).apply(make_eyes(25 * 120))
    blinks = find_blinks(regulated)
    pauses = np.diff(blinks[:, 0]) / 25
    assert 5.0 <= pauses.min() < pauses.max() <= 9.0 and pauses.std() > 0.3
    assert set(blinks[:, 1].tolist()) <= {4, 5, 6} and regulated.min() < 0.2
    assert not np.array_equal(regulated, LidRegulator(4).apply(make_eyes(25 * 120)))
    # Eyes that blink often enough get none.
    often = make_eyes(1000, *((first, 3) for first in range(20, 1000, 110)))
    assert np.array_equal(LidRegulator(3).apply(often), often)


def test_blocks_give_what_the_whole_gives() -> None:
    rng = np.random.default_rng(0)
    eyes = (0.8 + 0.3 * rng.standard_normal((700, 2))).astype(np.float32)
    whole, regulator = LidRegulator(5).apply(eyes), LidRegulator(5)
    parts = [regulator.apply(part) for part in np.split(eyes, [0, 1, 40, 400, 401])]
    assert np.array_equal(np.concatenate(parts), whole)
    assert regulator.apply(eyes[:0]).shape == (0, 2)
