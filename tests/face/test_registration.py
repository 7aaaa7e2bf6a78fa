"""Head pose registration with known ground truth and without flow confidence."""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from skimage.data import astronaut

from s3dnerf.face.camera import HeadPose, load_canonical_face, project
from s3dnerf.face.registration import (
    FLOW_MARGIN,
    PIXEL,
    REGISTRATION_SIZE,
    TRACKED_POSE_STD,
    choose_window,
    refine_head_poses,
    register_head_poses,
    select_reference_frame,
    track_points,
)

FRAMES = 7


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    return cv2.resize(astronaut()[:320, 60:380], (REGISTRATION_SIZE, REGISTRATION_SIZE), interpolation=cv2.INTER_AREA)


def make_pose(turns: np.ndarray, scale: np.ndarray, center: np.ndarray) -> HeadPose:
    """Poses from rotation vectors [T, 3], scales [T] and centers [T, 2]."""
    rotation = Rotation.from_rotvec(turns).as_matrix()
    return HeadPose(*(np.asarray(part, np.float32) for part in (rotation, scale, center)))


def strays(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 6)) * TRACKED_POSE_STD


def stray(pose: HeadPose, by: np.ndarray) -> HeadPose:
    rotation = Rotation.from_rotvec(by[:, :3]).as_matrix() @ pose.rotation
    parts = (rotation, pose.scale * np.exp(by[:, 3]), pose.center + by[:, 4:])
    return HeadPose(*(np.asarray(part, np.float32) for part in parts))


def move_in_plane(picture: np.ndarray, roll: float, size: float, shift: np.ndarray) -> np.ndarray:
    """An image rotated (radians, counterclockwise), scaled and shifted (image coordinates)."""
    middle = (REGISTRATION_SIZE - 1) / 2
    matrix = cv2.getRotationMatrix2D((middle, middle), np.degrees(roll), size)
    matrix[:, 2] += shift / PIXEL
    return cv2.warpAffine(
        picture, matrix, (REGISTRATION_SIZE, REGISTRATION_SIZE), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT
    )


def measure_errors(pose: HeadPose, true: HeadPose) -> np.ndarray:
    """Root mean square errors ``[T]`` of the face's points in pixels, relative to the first frame."""
    face = load_canonical_face()[None]
    miss = (project(face, pose) - project(face, true))[..., :2] / PIXEL
    miss = miss - miss[:1]
    return np.sqrt(np.square(miss).sum(-1).mean(-1))


def test_registration_is_more_accurate_than_noisy_landmarks(picture: np.ndarray) -> None:
    roll, shift = np.linspace(0.0, 0.12, FRAMES), np.linspace([0.0, 0.0], [0.06, -0.04], FRAMES)
    size = np.linspace(1.0, 1.06, FRAMES)
    frames = [move_in_plane(picture, *moved) for moved in zip(roll, size, shift, strict=True)]
    still = np.zeros(FRAMES)
    true = make_pose(np.stack([still, still, roll], axis=-1), 0.7 * size, shift)
    tracked = stray(true, strays(FRAMES))
    found = register_head_poses(lambda: iter(frames), project(load_canonical_face()[None], tracked))
    assert len(found) == FRAMES and all(part.dtype == np.float32 for part in vars(found).values())
    assert measure_errors(tracked, true)[1:].mean() > 0.6
    assert measure_errors(found, true)[1:].mean() < 0.25


def test_visible_points_are_tracked_with_confidence(picture: np.ndarray) -> None:
    shift = np.array([0.05, 0.03])
    frame = move_in_plane(picture, 0.0, 1.0, shift)
    frame[:, : REGISTRATION_SIZE // 3] = np.random.default_rng(0).integers(
        0, 256, (REGISTRATION_SIZE, REGISTRATION_SIZE // 3, 3)
    )
    places = np.stack(np.meshgrid([-0.6, -0.2, 0.0, 0.2], [-0.4, -0.1, 0.2]), axis=-1).reshape(-1, 2)
    for expected in (places, places + shift + 0.01):
        seen, confidence = track_points(picture, frame, places, expected)
        hidden = places[:, 0] < -0.5
        assert confidence[hidden].max() < 0.1 and np.median(confidence[~hidden]) > 0.3
        miss = np.abs(seen - places - shift).max(-1)
        assert (miss * confidence).sum() / confidence.sum() < 0.2 * PIXEL


def test_flow_window_holds_the_points_with_a_margin() -> None:
    points = np.array([[60.0, 70.0], [90.0, 100.0], [149.0, 81.0]])
    left, top, side = choose_window(points, 256)
    assert side % 2 == 0 and side == 90 + 2 * FLOW_MARGIN
    assert left <= 60 - FLOW_MARGIN + 1 and left + side >= 149 + FLOW_MARGIN
    assert (top + side / 2) == pytest.approx(85.5, abs=1)
    # Inside the image, and never larger than it.
    assert choose_window(points - 55, 256)[:2] == (0, 0)
    assert choose_window(points + 105, 256)[0] == 256 - side
    assert choose_window(np.array([[-50.0, 3.0], [300.0, 200.0]]), 256) == (0, 0, 256)


@pytest.fixture
def tracked() -> HeadPose:
    turns = [[0.1, -0.3, 0.05], [-0.1, 0.4, 0.0], [0.0, 0.0, -0.2]]
    return make_pose(np.array(turns), np.array([0.7, 0.6, 0.8]), np.array([[0.0, 0.1], [-0.1, 0.0], [0.2, 0.2]]))


def see(face: np.ndarray, pose: HeadPose) -> np.ndarray:
    return project(face[None], pose)[..., :2].astype(np.float64)


def test_refined_pose_matches_the_observed_points(tracked: HeadPose) -> None:
    face, true = load_canonical_face(), stray(tracked, strays(3))
    found = refine_head_poses(face, see(face, true), np.ones((3, len(face))), tracked)
    left = np.abs(see(face, found) - see(face, true)).max()
    assert left < 0.03 * np.abs(see(face, tracked) - see(face, true)).max()
    squares = found.rotation @ np.swapaxes(found.rotation, 1, 2)
    np.testing.assert_allclose(squares, np.tile(np.eye(3), (3, 1, 1)), atol=1e-5)


def test_outliers_have_little_weight(tracked: HeadPose) -> None:
    face, true = load_canonical_face(), stray(tracked, strays(3))
    seen = see(face, true)
    seen[:, ::5] += 10 * PIXEL
    found = refine_head_poses(face, seen, np.ones((3, len(face))), tracked)
    assert np.abs(see(face, found) - see(face, true)).max() < 0.2 * PIXEL


def test_tracked_pose_remains_without_confidence(tracked: HeadPose) -> None:
    face = load_canonical_face()
    found = refine_head_poses(face, see(face, tracked) + 0.1, np.zeros((3, len(face))), tracked)
    for part, expected in zip(vars(found).values(), vars(tracked).values(), strict=True):
        np.testing.assert_allclose(part, expected, atol=1e-6)


def test_few_points_move_the_pose_less_than_many(tracked: HeadPose) -> None:
    face, true = load_canonical_face(), stray(tracked, strays(3))
    confidence = np.zeros((3, len(face)))
    confidence[:, :2] = 0.1
    few = refine_head_poses(face, see(face, true), confidence, tracked)
    many = refine_head_poses(face, see(face, true), np.ones_like(confidence), tracked)
    far, near = (np.abs(see(face, pose) - see(face, true)).mean() for pose in (few, many))
    assert far > 3 * near


def test_reference_frame_is_in_the_middle_of_the_motion() -> None:
    centers = np.array([[0.5, 0.0], [0.1, 0.0], [0.0, 0.0], [-0.05, 0.0], [-0.3, 0.0]])
    poses = make_pose(np.zeros((5, 3)), np.full(5, 0.7), centers)
    assert select_reference_frame(project(load_canonical_face()[None], poses)) == 2


def test_a_single_frame_keeps_its_tracked_pose(picture: np.ndarray, tracked: HeadPose) -> None:
    landmarks = project(load_canonical_face()[None], tracked[:1])
    found = register_head_poses(lambda: iter([picture]), landmarks)
    np.testing.assert_allclose(found.rotation, tracked.rotation[:1], atol=1e-4)


def test_too_few_crops_raise(picture: np.ndarray, tracked: HeadPose) -> None:
    def stream() -> Iterator[np.ndarray]:
        return iter([picture, picture])

    with pytest.raises(ValueError, match="shorter|longer"):
        register_head_poses(stream, project(load_canonical_face()[None], tracked))
