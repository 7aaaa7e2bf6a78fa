"""The head camera: projection by hand, pose fitted to projected points, smoothing without lag."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from s3dnerf.face.camera import (
    HeadPose,
    align_depth,
    align_similarity,
    fit_head_pose,
    load_canonical_face,
    project,
    smooth_head_pose,
    to_head_space,
)
from s3dnerf.face.points import KEPT_POINTS, RIGID_POINTS


def make_poses(count: int, seed: int = 0) -> HeadPose:
    random = np.random.default_rng(seed)
    turns = Rotation.from_rotvec(random.uniform(-0.5, 0.5, (count, 3))).as_matrix()
    scale = random.uniform(0.3, 1.2, count)
    center = random.uniform(-0.3, 0.3, (count, 2))
    return HeadPose(turns.astype(np.float32), scale.astype(np.float32), center.astype(np.float32))


def measure_angle(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Angle in degrees between rotations [T, 3, 3]."""
    return np.degrees((Rotation.from_matrix(one) * Rotation.from_matrix(other).inv()).magnitude())


def test_canonical_face_follows_the_head_space_convention() -> None:
    face = load_canonical_face()
    assert face.shape == (478, 3) and face.dtype == np.float32
    assert np.linalg.norm(face[33] - face[263]) == pytest.approx(0.75, abs=1e-5)
    assert (face[33] + face[263]) / 2 == pytest.approx([0, 0.2, 0.35], abs=1e-5)
    assert face[33, 0] < 0 < face[263, 0], "point 33 is the viewer's left eye"
    assert face[152, 1] < face[1, 1] < face[10, 1], "the chin is down"
    assert face[1, 2] == pytest.approx(face[:, 2].max(), abs=0.05), "the nose points at the viewer"
    assert np.abs(face).max() < 1


def test_projection_by_hand() -> None:
    quarter = Rotation.from_euler("y", 90, degrees=True).as_matrix()
    pose = HeadPose(
        np.stack([np.eye(3), quarter]).astype(np.float32),
        np.array([0.5, 2.0], np.float32),
        np.array([[0.1, -0.2], [0.0, 0.0]], np.float32),
    )
    seen = project(np.array([[0.2, 0.4, 0.6]], np.float32), pose)
    assert seen[0, 0] == pytest.approx([0.1 + 0.5 * 0.2, -0.2 - 0.5 * 0.4, 0.5 * 0.6])
    # A rotation by 90 degrees about y maps z to x and x to -z.
    assert seen[1, 0] == pytest.approx([2 * 0.6, -2 * 0.4, -2 * 0.2], abs=1e-6)


def test_to_head_undoes_project() -> None:
    pose = make_poses(6)
    points = np.random.default_rng(1).uniform(-1, 1, (6, 40, 3)).astype(np.float32)
    assert to_head_space(project(points, pose), pose) == pytest.approx(points, abs=1e-5)


@pytest.mark.parametrize("kept", [False, True])
def test_pose_is_recovered_exactly(kept: bool) -> None:
    pose = make_poses(20)
    landmarks = project(load_canonical_face(), pose)
    landmarks[..., 2] += 0.7  # A tracker's depth has an arbitrary origin.
    found = fit_head_pose(landmarks[:, KEPT_POINTS] if kept else landmarks)
    assert measure_angle(found.rotation, pose.rotation).max() < 0.01
    assert found.scale == pytest.approx(pose.scale, rel=1e-4)
    assert found.center == pytest.approx(pose.center, abs=1e-4)
    aligned = align_depth(landmarks, found)
    assert to_head_space(aligned, found)[0] == pytest.approx(load_canonical_face(), abs=1e-3)


def test_pose_survives_noise_and_outliers() -> None:
    random = np.random.default_rng(2)
    pose = make_poses(20)
    landmarks = project(load_canonical_face(), pose)
    landmarks += random.normal(0, 0.005, landmarks.shape)
    wrong = random.random((20, len(RIGID_POINTS))) < 0.25
    moved = landmarks[:, RIGID_POINTS] + wrong[..., None] * random.normal(0, 0.3, (*wrong.shape, 3))
    landmarks[:, RIGID_POINTS] = moved
    found = fit_head_pose(landmarks)
    assert measure_angle(found.rotation, pose.rotation).max() < 1.0
    assert found.scale == pytest.approx(pose.scale, rel=0.02)
    assert found.center == pytest.approx(pose.center, abs=0.01)
    plain = align_similarity(load_canonical_face()[RIGID_POINTS], moved * [1, -1, 1])
    assert measure_angle(plain.rotation, pose.rotation).mean() > 2, "without robustness the fit is lost"


def test_jaw_and_lips_do_not_move_the_pose() -> None:
    pose = make_poses(3)
    landmarks = project(load_canonical_face(), pose)
    still = fit_head_pose(landmarks)
    landmarks[:, [13, 14, 152, 17, 0, 61, 291, 105, 334]] += 0.2
    moved = fit_head_pose(landmarks)
    assert np.array_equal(still.rotation, moved.rotation) and np.array_equal(still.scale, moved.scale)


def test_nonfinite_landmarks_raise() -> None:
    with pytest.raises(ValueError, match="finite"):
        fit_head_pose(np.full((2, 478, 3), np.nan, np.float32))


def test_similarity_by_hand() -> None:
    corner = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], np.float64)
    turn = Rotation.from_euler("z", 90, degrees=True).as_matrix()
    fit = align_similarity(corner, 3 * corner @ turn.T + [1, 2, 3])
    assert fit.scale == pytest.approx(3) and fit.offset == pytest.approx([1, 2, 3])
    assert fit.rotation == pytest.approx(turn, abs=1e-9)
    mirrored = align_similarity(corner, corner * [-1, 1, 1])
    assert np.linalg.det(mirrored.rotation) == pytest.approx(1), "never a reflection"


def make_track(turn_x: np.ndarray, center_x: np.ndarray) -> HeadPose:
    count = len(turn_x)
    turns = np.stack([turn_x, np.zeros(count), np.zeros(count)], axis=1)
    center = np.stack([center_x, np.zeros(count)], axis=1).astype(np.float32)
    rotation = Rotation.from_rotvec(turns).as_matrix().astype(np.float32)
    return HeadPose(rotation, np.ones(count, np.float32), center)


def test_smoothing_has_no_lag() -> None:
    impulse = np.zeros(41)
    impulse[20] = 0.1
    smooth = smooth_head_pose(make_track(impulse, impulse), 1.5)
    answer = smooth.center[:, 0]
    assert np.argmax(answer) == 20
    assert answer == pytest.approx(answer[::-1], abs=1e-7)
    assert answer.sum() == pytest.approx(0.1, rel=1e-5)
    weight = np.exp(-0.5 * (1 / 1.5) ** 2)
    assert answer[21] / answer[20] == pytest.approx(weight, rel=1e-4)
    angle = Rotation.from_matrix(smooth.rotation).as_rotvec()[:, 0]
    assert angle == pytest.approx(angle[::-1], abs=1e-6) and np.argmax(angle) == 20


def test_smoothing_keeps_steady_motion() -> None:
    ramp = np.linspace(-0.3, 0.3, 61)
    smooth = smooth_head_pose(make_track(ramp, ramp), 2.0)
    assert smooth.center[10:-10, 0] == pytest.approx(ramp[10:-10], abs=1e-6)
    angles = Rotation.from_matrix(smooth.rotation).as_rotvec()[10:-10, 0]
    assert angles == pytest.approx(ramp[10:-10], abs=1e-5)


def test_smoothing_edge_cases() -> None:
    pose = make_poses(5)
    assert smooth_head_pose(pose, 0) is pose
    assert len(smooth_head_pose(pose[:1], 1.0)) == 1
    assert np.linalg.det(smooth_head_pose(pose, 1.0).rotation) == pytest.approx(np.ones(5), abs=1e-5)
