"""Soft limits of head motion: small motion is unchanged, large motion bounded, the start exact."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from s3dnerf.face.camera import HeadPose
from s3dnerf.face.crop import CROP_CENTER_Y
from s3dnerf.face.motion import rotate_head, transfer_motion
from s3dnerf.face.motion_limits import MAX_ROTATION_DEGREES, invert_soft_clip, limit_motion, soft_clip


def make_motion(angles: np.ndarray, scale: np.ndarray, center: np.ndarray) -> HeadPose:
    rotation = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
    return HeadPose(*(np.asarray(part, np.float32) for part in (rotation, scale, center)))


def make_still(scale: float = 0.75, center: tuple[float, float] = (0.0, 0.0)) -> HeadPose:
    return make_motion(np.zeros((1, 3)), [scale], [center])


def measure_turn(portrait: HeadPose, motion: HeadPose) -> np.ndarray:
    turned = portrait.rotation[0].astype(float).T @ motion.rotation.astype(float)
    return np.degrees(Rotation.from_matrix(turned).magnitude())


def test_soft_clip_is_smooth_and_keeps_small_values() -> None:
    values = np.linspace(-5.0, 5.0, 10001)
    bent = soft_clip(values, 1.0)
    near = np.abs(values) <= 0.5
    np.testing.assert_array_equal(bent[near], values[near])
    assert np.abs(bent).max() <= 1.0 and bent[-1] > 0.999
    slopes = np.diff(bent) / np.diff(values)
    assert (slopes >= 0).all() and np.abs(np.diff(slopes)).max() < 0.004
    np.testing.assert_allclose(invert_soft_clip(soft_clip(values[3000:7000], 1.0), 1.0), values[3000:7000], atol=1e-9)


def test_small_motion_is_unchanged() -> None:
    wave = np.sin(np.arange(50) / 8.0)
    portrait = make_still()
    motion = make_motion(np.outer(wave, [5.0, 9.0, 3.0]), 0.75 * np.exp(0.02 * wave), np.outer(wave, [0.04, 0.03]))
    held = limit_motion(portrait, motion)
    for part in ("rotation", "scale", "center"):
        np.testing.assert_allclose(getattr(held.motion, part), getattr(motion, part), atol=1e-6)
    assert held.describe() == ""


def test_zoom_by_two_is_limited() -> None:
    portrait = make_still()
    motion = make_motion(np.zeros((75, 3)), 0.75 * np.exp(np.linspace(0.0, np.log(2.0), 75)), np.zeros((75, 2)))
    held = limit_motion(portrait, motion)
    ratio = held.motion.scale / 0.75
    assert 1.2 < ratio.max() < 1.3
    assert (np.diff(ratio) > 0).all() and np.abs(np.diff(ratio, 2)).max() < 0.001
    assert held.describe() == "size x2.00 to x1.23"


@pytest.mark.parametrize(
    ("scale", "center"), [(0.75, (0.0, 0.0)), (0.6, (0.3, -0.2)), (0.75, (-0.2, 0.2)), (1.1, (0.0, 0.1))]
)
@pytest.mark.parametrize("way", [(1.0, 0.0), (-0.6, 0.8), (0.3, -1.0)])
def test_large_shifts_stay_inside_the_crop(scale: float, center: tuple[float, float], way: tuple[float, float]) -> None:
    portrait = make_still(scale, center)
    far = np.linspace(0.0, 3.0, 120)
    motion = make_motion(np.zeros((120, 3)), np.full(120, scale) * np.exp(far), np.array(center) + far[:, None] * way)
    held = limit_motion(portrait, motion)
    moved = held.motion.center - np.array(center)
    middle = held.motion.center - held.motion.scale[:, None] * CROP_CENTER_Y * np.array([0.0, 1.0])
    beyond = np.maximum(np.abs(middle) + held.motion.scale[:, None] - 1.0, 0.0)
    # A head that fills its crop may still move a little.
    begins = np.maximum(np.abs(np.array(center) - scale * CROP_CENTER_Y * np.array([0.0, 1.0])) + scale - 1.0, 0.0)
    assert (beyond <= begins + 0.15 * scale).all()
    assert np.abs(moved).max() <= 0.36 * scale
    assert np.abs(np.diff(moved, axis=0)).max() < 0.03
    assert "shift of" in held.describe() and "size" in held.describe()


def test_rotations_are_limited_about_every_axis() -> None:
    portrait = make_motion([[4.0, -15.0, 2.0]], [0.75], [[0.0, 0.0]])
    angles = np.linspace(0.0, 85.0, 100)[:, None]
    for axis in np.eye(3):
        away = transfer_motion(portrait, make_motion(angles * axis, np.ones(100), np.zeros((100, 2))))
        held = limit_motion(portrait, away)
        turns = measure_turn(portrait, held.motion)
        assert 38.0 < turns.max() <= MAX_ROTATION_DEGREES
        assert (np.diff(turns) > -1e-3).all() and np.diff(turns).max() < 1.0
        assert held.describe() == f"turn of 85 to {turns.max():.0f} degrees"


@pytest.mark.parametrize("turn", [(40.0, 0.0), (-40.0, 40.0), (25.0, -5.0)])
def test_rotated_start_is_exact_and_continues_without_a_jump(turn: tuple[float, float]) -> None:
    portrait = make_still()
    first = rotate_head(portrait, *turn)
    angles = np.stack([np.zeros(60), np.sign(turn[0]) * np.linspace(0.0, 30.0, 60), np.zeros(60)], axis=1)
    motion = transfer_motion(first, make_motion(angles, np.ones(60), np.zeros((60, 2))))
    held = limit_motion(portrait, motion).motion
    np.testing.assert_allclose(held.rotation[0], first.rotation[0], atol=1e-6)
    np.testing.assert_allclose(held.center[0], first.center[0], atol=1e-6)
    turns = measure_turn(portrait, held)
    assert turns.max() < max(MAX_ROTATION_DEGREES, 1.1 * turns[0])
    assert np.abs(np.diff(turns)).max() < 0.6
    # Motion back toward the source pose is not limited.
    back = transfer_motion(first, make_motion(-angles, np.ones(60), np.zeros((60, 2))))
    assert measure_turn(portrait, limit_motion(portrait, back).motion)[-1] < turns[0] - 7.0
