"""Idle motion, blinks, and head motion transferred from a video."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from s3dnerf.face.camera import HeadPose
from s3dnerf.face.motion import (
    CLOSED_EYE_OPENNESS,
    NECK_PIVOT,
    REVERSAL_FRAMES,
    IdleMotionRange,
    iterate_blinks,
    iterate_idle_motion,
    iterate_ping_pong,
    rotate_head,
    transfer_motion,
)
from s3dnerf.media.audio import FPS


def make_pose(angles: np.ndarray, scale: np.ndarray, center: np.ndarray) -> HeadPose:
    rotation = Rotation.from_euler("xyz", np.atleast_2d(angles), degrees=True).as_matrix()
    scale, center = np.atleast_1d(scale), np.atleast_2d(center)
    return HeadPose(rotation.astype(np.float32), scale.astype(np.float32), center.astype(np.float32))


def make_idle_motion(count: int, pose0: HeadPose, seed: int, limits: IdleMotionRange | None = None) -> HeadPose:
    poses = list(islice(iterate_idle_motion(pose0, seed, limits), count))
    names = ("rotation", "scale", "center")
    return HeadPose(*(np.concatenate([getattr(pose, name) for pose in poses]) for name in names))


def make_blinks(count: int, openness0: list[float], seed: int) -> np.ndarray:
    return np.stack(list(islice(iterate_blinks(openness0, seed), count)))


@pytest.fixture
def portrait() -> HeadPose:
    return make_pose([5.0, -20.0, 3.0], 0.7, [0.1, -0.05])


def turn_angles(pose0: HeadPose, motion: HeadPose) -> np.ndarray:
    start = Rotation.from_matrix(pose0.rotation.astype(float))
    return np.degrees((start.inv() * Rotation.from_matrix(motion.rotation.astype(float))).as_rotvec())


@pytest.mark.parametrize("seed", range(5))
def test_idle_motion_starts_at_the_given_pose_and_stays_in_range(portrait, seed):
    motion = make_idle_motion(1500, portrait, seed)
    np.testing.assert_array_equal(motion.rotation[0], portrait.rotation[0])
    np.testing.assert_array_equal(motion.center[0], portrait.center[0])
    np.testing.assert_array_equal(motion.scale[0], portrait.scale[0])
    angles = turn_angles(portrait, motion)
    limits = IdleMotionRange()
    assert (np.abs(angles).max(axis=0) <= [limits.pitch, limits.yaw, limits.roll]).all()
    assert angles[:, 1].std() > 0.5
    assert np.abs(np.diff(angles, axis=0)).max() < 0.5
    assert np.abs(motion.center - portrait.center).max() < 0.7 * 0.12
    assert np.abs(np.diff(motion.center, axis=0)).max() < 0.005
    assert np.abs(np.log(motion.scale / portrait.scale)).max() <= limits.zoom + 1e-6


def test_idle_motion_starts_from_rest(portrait):
    angles = turn_angles(portrait, make_idle_motion(3, portrait, 0))
    assert np.abs(angles[1]).max() < 0.01


def test_idle_motion_is_slow_enough_for_a_head(portrait):
    angles = turn_angles(portrait, make_idle_motion(2500, portrait, 4))[100:]
    power = np.abs(np.fft.rfft((angles - angles.mean(0)) * np.hanning(len(angles))[:, None], axis=0)) ** 2
    frequencies = np.fft.rfftfreq(len(angles), 1 / FPS)
    assert power[frequencies > 0.6].sum() < 0.001 * power.sum()


def test_idle_rotations_are_rotations(portrait):
    rotation = make_idle_motion(50, portrait, 1).rotation.astype(float)
    np.testing.assert_allclose(
        rotation @ rotation.transpose(0, 2, 1), np.broadcast_to(np.eye(3), (50, 3, 3)), atol=1e-6
    )
    np.testing.assert_allclose(np.linalg.det(rotation), 1.0, atol=1e-6)


def test_idle_motion_is_determined_by_its_seed(portrait):
    first, again, other = (make_idle_motion(80, portrait, seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first.rotation, again.rotation)
    assert np.abs(first.rotation - other.rotation).max() > 0.005


def test_idle_iterator_gives_the_same_poses_one_by_one(portrait):
    motion = make_idle_motion(12, portrait, 7)
    for index, pose in enumerate(islice(iterate_idle_motion(portrait, 7), 12)):
        assert len(pose) == 1
        np.testing.assert_array_equal(pose.rotation[0], motion.rotation[index])
        np.testing.assert_array_equal(pose.center[0], motion.center[index])


def test_neck_is_fixed_without_shift_and_zoom(portrait):
    limits = IdleMotionRange(shift=0.0, zoom=0.0)
    motion = make_idle_motion(200, portrait, 2, limits)
    neck = motion.center + motion.scale[:, None] * (motion.rotation @ NECK_PIVOT)[:, :2] * [1, -1]
    np.testing.assert_allclose(neck, np.broadcast_to(neck[0], neck.shape), atol=1e-5)


def test_blinks_have_human_statistics():
    minutes = 30
    openness = make_blinks(round(minutes * 60 * FPS), [1.0, 0.9], seed=5)
    closed = openness[:, 0] < 0.5
    starts = np.flatnonzero(np.diff(closed.astype(int)) == 1)
    assert 12 < len(starts) / minutes < 20
    pauses = np.diff(starts) / FPS
    assert 3.0 < pauses.mean() < 4.6
    assert pauses.min() > 0.7
    assert pauses.std() > 1.0
    assert openness[0] == pytest.approx([1.0, 0.9])
    assert openness.min() == pytest.approx(CLOSED_EYE_OPENNESS)


def test_a_blink_closes_in_three_frames_and_opens_in_five():
    openness = make_blinks(500, [1.0, 1.0], seed=1)[:, 0]
    lowest = int(openness.argmin())
    blink = openness[lowest - 3 : lowest + 7]
    assert blink[0] == 1.0 and blink[3] == pytest.approx(CLOSED_EYE_OPENNESS) and blink[-1] == 1.0
    assert (np.diff(blink[:4]) < 0).all() and (np.diff(blink[3:]) >= 0).all()
    assert np.abs(np.diff(openness)).max() < 0.5


def test_both_eyes_blink_together_and_a_closed_eye_stays_closed():
    openness = make_blinks(1000, [0.8, 0.1], seed=2)
    np.testing.assert_array_equal(openness[:, 1], np.float32(0.1))
    both = make_blinks(1000, [0.8, 0.8], seed=2)
    np.testing.assert_array_equal(both[:, 0], both[:, 1])
    np.testing.assert_array_equal(both[:, 0], openness[:, 0])


def test_blinks_are_determined_by_their_seed():
    first, again, other = (list(islice(iterate_blinks(np.ones(2), seed), 300)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.abs(np.array(first) - np.array(other)).max() > 0.5


@pytest.fixture
def driver() -> HeadPose:
    t = np.arange(20)
    angles = np.stack([10 + t, 5 - 0.5 * t, np.zeros(20)], axis=1)
    return make_pose(angles, 100 + t, np.stack([200 + 2 * t, 150 - t], axis=1))


def test_transferred_motion_starts_at_the_given_pose(portrait, driver):
    motion = transfer_motion(portrait, driver)
    assert len(motion) == 20
    np.testing.assert_allclose(motion.rotation[0], portrait.rotation[0], atol=1e-6)
    np.testing.assert_array_equal(motion.center[0], portrait.center[0])
    np.testing.assert_allclose(motion.scale, 0.7 * driver.scale / 100, rtol=1e-6)
    # The driver moves by 2 and -1 for a head of size 100; the source's head has size 0.7.
    np.testing.assert_allclose(motion.center[5] - portrait.center[0], [0.07, -0.035], rtol=1e-4)


def test_transferred_rotations_are_about_the_heads_own_axes(portrait, driver):
    motion = transfer_motion(portrait, driver)
    np.testing.assert_allclose(turn_angles(portrait, motion), turn_angles(driver[:1], driver), atol=1e-3)


def test_transfer_to_the_driver_itself_is_the_identity(driver):
    motion = transfer_motion(driver[:1], driver)
    for part in ("rotation", "scale", "center"):
        np.testing.assert_allclose(getattr(motion, part), getattr(driver, part), rtol=1e-5, atol=1e-5)


def test_short_motion_plays_back_and_forth_without_a_jump(portrait, driver):
    motion = transfer_motion(portrait, driver)
    scales = [float(pose.scale[0]) for pose in islice(iterate_ping_pong(motion), 60)]
    expected = [*range(20), *range(18, -1, -1), *range(1, 20), 18, 17]
    np.testing.assert_array_equal(scales, motion.scale[expected])
    still = list(islice(iterate_ping_pong(motion[:1]), 3))
    assert [len(pose) for pose in still] == [1, 1, 1]


def test_wrong_shapes_raise(portrait, driver):
    with pytest.raises(ValueError, match="one frame"):
        make_idle_motion(3, driver, 0)
    with pytest.raises(ValueError, match="no frame"):
        transfer_motion(portrait, driver[:0])
    with pytest.raises(ValueError, match="two eyes"):
        next(iterate_blinks(np.ones(3), 0))


def test_head_rotates_about_the_neck(portrait):
    turned = rotate_head(portrait, 25.0, -10.0)
    np.testing.assert_allclose(turn_angles(portrait, turned)[0], [10.0, 25.0, 0.0], atol=1e-4)
    assert turned.scale[0] == portrait.scale[0]

    def project_neck(pose: HeadPose) -> np.ndarray:
        return pose.center[0] + pose.scale[0] * (pose.rotation[0] @ NECK_PIVOT)[:2] * [1.0, -1.0]

    np.testing.assert_allclose(project_neck(turned), project_neck(portrait), atol=1e-6)


def test_frontal_head_rotates_to_the_right_and_up():
    turned = rotate_head(make_pose([0.0, 0.0, 0.0], 1.0, [0.0, 0.0]), 30.0, 0.0)
    np.testing.assert_allclose(turned.rotation[0] @ [0.0, 0.0, 1.0], [0.5, 0.0, np.sqrt(0.75)], atol=1e-6)
    raised = rotate_head(make_pose([0.0, 0.0, 0.0], 1.0, [0.0, 0.0]), 0.0, 30.0)
    np.testing.assert_allclose(raised.rotation[0] @ [0.0, 0.0, 1.0], [0.0, 0.5, np.sqrt(0.75)], atol=1e-6)


def test_long_motion_reverses_smoothly():
    steps = np.arange(80.0)
    motion = make_pose(np.outer(steps, [0.0, 0.5, 0.0]), np.full(80, 0.7), np.outer(steps, [0.01, 0.0]))
    poses = list(islice(iterate_ping_pong(motion), 330))
    centers = np.array([pose.center[0, 0] for pose in poses])
    np.testing.assert_array_equal(centers[:68], motion.center[:68, 0])
    assert np.abs(np.diff(centers, 2)).max() < 0.01 / REVERSAL_FRAMES + 1e-5
    assert centers.max() == pytest.approx(0.01 * (79 - REVERSAL_FRAMES / 2), abs=1e-5)
    assert centers[100:].min() == pytest.approx(0.01 * REVERSAL_FRAMES / 2, abs=1e-5)
    angles = np.array([turn_angles(motion[:1], pose)[0, 1] for pose in poses])
    np.testing.assert_allclose(angles, centers * 50.0, atol=1e-3)
