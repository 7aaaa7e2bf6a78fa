"""Cuts in videos and motion across them."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from s3dnerf.face.camera import HeadPose
from s3dnerf.face.shots import (
    CutCandidate,
    concatenate_shots,
    find_cut_candidates,
    find_cuts,
    interpolate_pose_gaps,
    measure_frame_differences,
    measure_head_step,
)


def make_motion(yaw: np.ndarray, scale: np.ndarray, x: np.ndarray) -> HeadPose:
    yaw = np.asarray(yaw, float)
    rotation = Rotation.from_euler("y", yaw[:, None], degrees=True).as_matrix()
    center = np.stack([np.broadcast_to(x, len(yaw)), np.zeros(len(yaw))], axis=1)
    scale = np.broadcast_to(scale, len(yaw))
    return HeadPose(*(np.array(part, np.float32) for part in (rotation, scale, center)))


def read_yaw(motion: HeadPose) -> np.ndarray:
    return np.degrees(Rotation.from_matrix(motion.rotation.astype(float)).as_rotvec()[:, 1])


def make_scene(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.kron(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8), np.ones((16, 16, 1), np.uint8))


def test_cuts_are_found_and_pans_and_noise_are_not() -> None:
    rng = np.random.default_rng(0)
    first, second = make_scene(1), make_scene(2)
    frames = [np.roll(first, 2 * index, axis=1) for index in range(20)]
    frames += [np.roll(second, -3 * index, axis=1) for index in range(20)]
    frames = [np.clip(frame + rng.normal(0, 6, frame.shape), 0, 255).astype(np.uint8) for frame in frames]
    changes = measure_frame_differences(iter(frames))
    assert changes.shape == (39,)
    assert find_cut_candidates(changes) == [CutCandidate(20, certain=False)] or find_cut_candidates(changes) == [
        CutCandidate(20, certain=True)
    ]
    assert find_cut_candidates(measure_frame_differences(frames[:20])) == []
    assert find_cut_candidates(measure_frame_differences(frames[:1])) == []
    assert find_cut_candidates(measure_frame_differences([])) == []


def test_shaky_camera_has_no_cuts() -> None:
    rng = np.random.default_rng(3)
    scene = make_scene(4)
    frames = [np.roll(scene, rng.integers(-8, 9, 2), axis=(0, 1)) for _ in range(50)]
    assert find_cut_candidates(measure_frame_differences(frames)) == []


def test_cuts_need_a_jump_of_the_head() -> None:
    seen = np.ones(20, bool)
    still = make_motion(np.zeros(20), 100.0, 50.0)
    moved = make_motion(np.zeros(20), 100.0, np.where(np.arange(20) < 10, 50.0, 90.0))
    nudged = make_motion(np.zeros(20), 100.0, np.where(np.arange(20) < 10, 50.0, 60.0))
    for certain, pose, expected in (
        (True, still, []),  # a flash
        (True, moved, [10]),
        (True, nudged, [10]),
        (False, moved, [10]),
        (False, nudged, []),
    ):
        assert find_cuts([CutCandidate(10, certain)], pose, seen) == expected
    faceless = np.arange(20) < 10
    assert find_cuts([CutCandidate(10, True)], still, faceless) == [10]
    assert find_cuts([CutCandidate(10, False)], still, faceless) == []


def test_head_steps_are_measured_in_head_sizes() -> None:
    for unit in (1.0, 250.0):
        pair = make_motion([0.0, 0.0], unit, np.array([0.0, 0.5 * unit]))
        assert measure_head_step(pair[:1], pair[1:]) == pytest.approx(2.0, rel=1e-5)
    pair = make_motion([0.0, 20.0], 1.0, 0.0)
    assert measure_head_step(pair[:1], pair[1:]) == pytest.approx(2.0, rel=1e-5)


def test_motion_continues_across_shots_of_any_size_and_position() -> None:
    steps = np.arange(10.0)
    first = make_motion(steps, 100.0 + steps, 300.0 + steps)
    other = make_motion(-30.0 - 2.0 * steps, 0.5 * (1.0 - 0.01 * steps), 0.9 + 0.01 * steps)
    joined = concatenate_shots([first, other, first])
    assert len(joined) == 30
    np.testing.assert_allclose(read_yaw(joined)[:11], [*steps, 9.0], atol=1e-4)
    np.testing.assert_allclose(read_yaw(joined)[10:20], 9.0 - 2.0 * steps, atol=1e-4)
    np.testing.assert_allclose(read_yaw(joined)[20:], -9.0 + steps, atol=1e-4)
    np.testing.assert_allclose(joined.scale[10:20], 109.0 * (1.0 - 0.01 * steps), rtol=1e-5)
    # 0.01 units are 0.02 of the second head's size, and therefore of the first head's.
    np.testing.assert_allclose(joined.center[10:20, 0], 309.0 + 0.02 * 109.0 * steps, rtol=1e-5)
    assert np.abs(np.diff(joined.center[:, 0])).max() < 3.0


def test_poses_are_interpolated_over_frames_without_a_face() -> None:
    yaw = np.full(40, np.nan)
    yaw[5:15], yaw[25:35] = np.linspace(0.0, 4.0, 10), np.linspace(20.0, 24.0, 10)
    seen = np.isfinite(yaw)
    motion = make_motion(np.where(seen, yaw, 90.0), np.where(seen, 2.0, 9.0), np.where(seen, 0.0, 7.0))
    eased = interpolate_pose_gaps(motion, seen)
    turned = read_yaw(eased)
    np.testing.assert_allclose(turned[seen], yaw[seen], atol=1e-4)
    np.testing.assert_allclose(turned[:5], 0.0, atol=1e-4)
    np.testing.assert_allclose(turned[35:], 24.0, atol=1e-4)
    assert (np.diff(turned) >= -1e-4).all() and np.diff(turned).max() < 3.0
    np.testing.assert_allclose(eased.scale, 2.0, rtol=1e-6)
    np.testing.assert_allclose(eased.center, 0.0, atol=1e-6)
    alone = interpolate_pose_gaps(motion, np.arange(40) == 7)
    np.testing.assert_array_equal(alone.rotation, np.broadcast_to(motion.rotation[7], (40, 3, 3)))
