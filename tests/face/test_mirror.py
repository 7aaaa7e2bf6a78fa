"""Mirroring is an involution and consistent with the camera."""

from __future__ import annotations

import numpy as np
from scipy.spatial.transform import Rotation

from s3dnerf.face.camera import HeadPose, load_canonical_face, project
from s3dnerf.face.mirror import kept_point_mirrors, mirror_landmarks, mirror_pose
from s3dnerf.face.points import EYE_LEFT, EYE_RIGHT, KEPT_POINTS, LIPS_OUTER


def draw_poses(count: int) -> HeadPose:
    rng = np.random.default_rng(0)
    rotation = Rotation.from_euler("yxz", rng.uniform(-0.8, 0.8, (count, 3))).as_matrix().astype(np.float32)
    return HeadPose(rotation, np.full(count, 0.7, np.float32), rng.uniform(-0.3, 0.3, (count, 2)).astype(np.float32))


def draw_points(count: int) -> np.ndarray:
    noise = 0.05 * np.random.default_rng(1).standard_normal((count, len(KEPT_POINTS), 3))
    return (load_canonical_face()[KEPT_POINTS] + noise).astype(np.float32)


def test_mirror_partners_are_mutual_and_on_the_other_side() -> None:
    pairs = kept_point_mirrors()
    assert np.array_equal(pairs[pairs], np.arange(len(KEPT_POINTS)))
    rows = {number: row for row, number in enumerate(KEPT_POINTS.tolist())}
    assert pairs[rows[33]] == rows[263]  # outer eye corners
    assert pairs[rows[61]] == rows[291]  # mouth corners
    assert pairs[rows[13]] == rows[13]  # middle of the upper lip
    for group, other in ((EYE_LEFT, EYE_RIGHT), (LIPS_OUTER, LIPS_OUTER)):
        assert {int(KEPT_POINTS[pairs[rows[number]]]) for number in group} == set(other)


def test_mirroring_twice_changes_nothing() -> None:
    pose, points = draw_poses(4), draw_points(4)
    eyes = np.random.default_rng(2).uniform(0, 1, (4, 2)).astype(np.float32)
    np.testing.assert_array_equal(mirror_landmarks(mirror_landmarks(points)), points)
    rotation, center, seen = mirror_pose(*mirror_pose(pose.rotation, pose.center, eyes))
    np.testing.assert_allclose(rotation, pose.rotation, atol=1e-7)
    np.testing.assert_array_equal(center, pose.center)
    np.testing.assert_array_equal(seen, eyes)


def test_mirrored_head_projects_to_mirrored_image_coordinates() -> None:
    pose, points = draw_poses(5), draw_points(5)
    rotation, center, _ = mirror_pose(pose.rotation, pose.center, np.zeros((5, 2), np.float32))
    assert np.allclose(np.linalg.det(rotation), 1.0, atol=1e-5)
    seen = project(points, pose)
    mirrored = project(mirror_landmarks(points), HeadPose(rotation, pose.scale, center))
    np.testing.assert_allclose(mirrored, seen[:, kept_point_mirrors()] * [-1, 1, 1], atol=1e-5)


def test_eyes_change_sides() -> None:
    _, _, eyes = mirror_pose(np.eye(3)[None], np.zeros((1, 2)), np.array([[0.2, 0.9]]))
    assert eyes.tolist() == [[0.9, 0.2]]
