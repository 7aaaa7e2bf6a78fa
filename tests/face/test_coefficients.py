"""Motion coefficients: round trips, mirror images, independence of the crop, and what cleaning removes."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from s3dnerf.face.camera import HeadPose, load_canonical_face, project, to_head_space
from s3dnerf.face.coefficients import (
    CHANNELS,
    MotionCoefficients,
    clean_pose,
    compute_coefficients,
    measure_pose_change,
    measure_reference,
    to_eye_openness,
    to_head_pose,
    to_landmarks,
)
from s3dnerf.face.expression_basis import load_shipped_basis
from s3dnerf.face.mirror import mirror_landmarks, mirror_pose
from s3dnerf.face.points import KEPT_POINTS
from s3dnerf.face.pose_cleaning import low_pass, remove_mouth_leak
from s3dnerf.face.regions import measure_gaze

FPS = 25
FRAMES = 150


@dataclass(frozen=True)
class DrawnClip:
    eye_openness: np.ndarray
    lip_opening: np.ndarray


@dataclass(frozen=True)
class DrawnTrack:
    clip: DrawnClip
    pose: HeadPose
    landmarks: np.ndarray
    frames: np.ndarray


def draw_noise(rng: np.random.Generator, channels: int, width: int = 6) -> np.ndarray:
    """Smooth noise ``[FRAMES, channels]`` with a standard deviation of about 1."""
    noise = rng.standard_normal((FRAMES + width, channels))
    total = np.cumsum(noise, axis=0)
    return (total[width:] - total[:-width]) / np.sqrt(width)


def draw_pose(rng: np.random.Generator) -> HeadPose:
    start = Rotation.from_euler("yxz", [0.3, -0.1, 0.05])
    rotation = (start * Rotation.from_rotvec(0.08 * draw_noise(rng, 3))).as_matrix()
    scale = 0.7 * np.exp(0.02 * draw_noise(rng, 1)[:, 0])
    center = np.array([0.1, -0.05]) + 0.05 * draw_noise(rng, 2)
    return HeadPose(*(part.astype(np.float32) for part in (rotation, scale, center)))


@pytest.fixture(scope="module")
def track() -> DrawnTrack:
    """A face whose expressions lie in the shipped basis, apart from small noise, with blinks."""
    rng = np.random.default_rng(0)
    basis = load_shipped_basis()
    blink = np.ones(FRAMES)
    blink[40:44] = blink[100:103] = 0.2
    eyes = (np.array([0.9, 1.0]) * blink[:, None] + 0.02 * draw_noise(rng, 2)).astype(np.float32)
    gaze = 0.04 * draw_noise(rng, 2)
    state = np.concatenate([eyes / np.array([0.9, 1.0]) - 1.0, gaze], axis=1)
    face = load_canonical_face()[KEPT_POINTS] * np.array([1.03, 0.97, 1.0])
    landmarks = face + basis.displace(basis.std[:24] * draw_noise(rng, 24), state)
    landmarks = (landmarks + 0.003 * rng.standard_normal(landmarks.shape)).astype(np.float32)
    opening = (0.05 + 0.03 * draw_noise(rng, 1)[:, 0]).astype(np.float32)
    return DrawnTrack(DrawnClip(eyes, opening), draw_pose(rng), landmarks, np.arange(2, FRAMES - 3))


def mirror_track(track: DrawnTrack) -> DrawnTrack:
    rotation, center, eyes = mirror_pose(track.pose.rotation, track.pose.center, track.clip.eye_openness)
    pose = HeadPose(rotation, track.pose.scale, center)
    return replace(
        track, clip=replace(track.clip, eye_openness=eyes), pose=pose, landmarks=mirror_landmarks(track.landmarks)
    )


def assert_equal(found: MotionCoefficients, expected: MotionCoefficients, tolerance: float) -> None:
    for name in CHANNELS:
        np.testing.assert_allclose(
            getattr(found, name), getattr(expected, name), atol=tolerance, rtol=0, err_msg=f"channel {name}"
        )


def test_flat_form_is_a_round_trip(track: DrawnTrack) -> None:
    coefficients = compute_coefficients(track)
    flat = coefficients.flatten()
    assert flat.shape == (FRAMES, 34) and flat.dtype == np.float32
    again = MotionCoefficients.unflatten(flat)
    for name in CHANNELS:
        assert getattr(again, name).dtype == np.float32
        np.testing.assert_array_equal(getattr(again, name), getattr(coefficients, name))
    assert len(again[10:30]) == 20
    np.testing.assert_array_equal(again[10:30].flatten(), flat[10:30])


@pytest.mark.parametrize("shape", [(5, 33), (34,), (2, 5, 34)])
def test_wrong_flat_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="34"):
        MotionCoefficients.unflatten(np.zeros(shape))


def test_channels_of_other_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="gaze"):
        MotionCoefficients(np.zeros((3, 24)), np.zeros((3, 6)), np.zeros((3, 2)), np.zeros((2, 2)))


@pytest.mark.parametrize("source_frame", [0, 77])
def test_pose_is_a_round_trip(track: DrawnTrack, source_frame: int) -> None:
    cleaned = clean_pose(track.pose, track.clip.lip_opening)
    coefficients = compute_coefficients(track, source_frame)
    assert not coefficients.pose[source_frame].any()
    again = to_head_pose(coefficients, cleaned[source_frame : source_frame + 1])
    for name in ("rotation", "scale", "center"):
        np.testing.assert_allclose(getattr(again, name), getattr(cleaned, name), atol=1e-6)
    np.testing.assert_allclose(measure_pose_change(again, source_frame), coefficients.pose, atol=2e-6)


def test_pose_moves_another_head_alike(track: DrawnTrack) -> None:
    coefficients = compute_coefficients(track)
    source = HeadPose(np.eye(3, dtype=np.float32)[None], np.ones(1, np.float32), np.zeros((1, 2), np.float32))
    np.testing.assert_allclose(measure_pose_change(to_head_pose(coefficients, source)), coefficients.pose, atol=2e-6)


def test_signs_of_the_pose() -> None:
    turns = Rotation.from_rotvec([[0, 0, 0], [0.1, 0, 0], [0, 0.1, 0], [0, 0, 0.1]]).as_matrix().astype(np.float32)
    center = np.array([[0.0, 0.0], [0.7, 0.0], [0.0, 0.7], [0.0, 0.0]], np.float32)
    change = measure_pose_change(HeadPose(turns, np.array([0.7, 0.7, 0.7, 1.4], np.float32), center))
    np.testing.assert_allclose(np.diag(change[1:, :3]), 0.1, atol=1e-6)
    # u is to the right, v down.
    np.testing.assert_allclose(change[1:3, 3:5], [[1, 0], [0, -1]], atol=1e-6)
    np.testing.assert_allclose(change[:, 5], [0, 0, 0, np.log(2)], atol=1e-6)
    # The tip of the nose, which points to the viewer, goes down with pitch and to the right with yaw.
    nose = turns @ np.array([0, 0, 1.0])
    assert nose[1, 1] < 0 < nose[2, 0]


def test_source_frame_outside_the_clip_is_refused(track: DrawnTrack) -> None:
    for frame in (-1, FRAMES):
        with pytest.raises(IndexError):
            compute_coefficients(track, frame)


def test_landmarks_within_the_basis_are_a_round_trip(track: DrawnTrack) -> None:
    coefficients = compute_coefficients(track)
    reference = measure_reference(track)
    landmarks = to_landmarks(coefficients, reference)
    assert np.abs(landmarks - track.landmarks).max() < 0.02
    again = compute_coefficients(replace(track, landmarks=landmarks))
    assert_equal(again, coefficients, 2e-5)


def test_eyes_are_a_round_trip(track: DrawnTrack) -> None:
    coefficients = compute_coefficients(track)
    usual = measure_reference(track).usual_openness
    np.testing.assert_allclose(to_eye_openness(coefficients, usual), track.clip.eye_openness, rtol=1e-6)
    np.testing.assert_allclose(np.median(coefficients.eyes[track.frames], axis=0), 1.0, atol=1e-6)


def test_gaze_moves_irises_and_is_kept_through_blinks(track: DrawnTrack) -> None:
    coefficients = compute_coefficients(track)
    reference = measure_reference(track)
    aside = replace(coefficients, gaze=coefficients.gaze + np.float32([0.1, 0.05]))
    moved = measure_gaze(to_landmarks(aside, reference)) - measure_gaze(to_landmarks(coefficients, reference))
    np.testing.assert_allclose(moved, np.tile([0.1, 0.05], (FRAMES, 1)), atol=1e-5)
    landmarks = track.landmarks.copy()
    landmarks[40:44] += 0.2  # whatever the tracker reports for closed eyes
    found = compute_coefficients(replace(track, landmarks=landmarks)).gaze
    np.testing.assert_allclose(found[40:44], coefficients.gaze[40:44], atol=1e-6)


def test_mirrored_clip_has_mirrored_coefficients(track: DrawnTrack) -> None:
    coefficients = compute_coefficients(track, 5)
    mirrored = compute_coefficients(mirror_track(track), 5)
    assert_equal(mirrored, coefficients.mirror(), 2e-6)
    assert_equal(mirrored.mirror(), coefficients, 2e-6)
    # Left and right do differ in this clip.
    assert np.abs(mirrored.expression - coefficients.expression).max() > 0.05
    assert np.abs(mirrored.pose - coefficients.pose).max() > 0.05


def test_learnt_components_are_symmetric_or_antisymmetric() -> None:
    mirror = load_shipped_basis().mirror
    np.testing.assert_array_equal(np.abs(mirror), np.eye(24))
    assert {-1.0, 1.0} <= set(np.diag(mirror).tolist())


def test_position_and_size_of_the_crop_do_not_matter(track: DrawnTrack) -> None:
    image = project(track.landmarks, track.pose)
    pose = HeadPose(
        track.pose.rotation, track.pose.scale * np.float32(1.7), track.pose.center * np.float32(1.7) + np.float32(0.4)
    )
    image = image * np.float32(1.7)
    image[..., :2] += np.float32(0.4)
    moved = replace(track, pose=pose, landmarks=to_head_space(image, pose))
    assert_equal(compute_coefficients(moved), compute_coefficients(track), 1e-5)


def test_mouth_leak_is_removed_from_pitch_alone() -> None:
    rng = np.random.default_rng(3)
    seconds = np.arange(10 * FPS) / FPS
    nod = 0.06 * np.sin(2 * np.pi * 0.4 * seconds)
    opening = 0.06 * np.sin(2 * np.pi * 1.1 * seconds + np.sin(3 * seconds)) ** 2
    leaked = nod - 0.3 * opening + 0.1 * np.roll(opening, 1) + 0.001 * rng.standard_normal(len(nod))
    before = np.std((leaked - nod) - (leaked - nod).mean())
    found = remove_mouth_leak(leaked, opening)
    after = np.std((found - nod) - (found - nod).mean())
    assert after < 0.25 * before
    assert found.mean() == pytest.approx(leaked.mean(), abs=1e-9)

    turns = np.stack([leaked, 0.1 * opening, 0.1 * opening], axis=1)
    rotation = Rotation.from_rotvec(turns).as_matrix().astype(np.float32)
    pose = HeadPose(rotation, np.ones(len(nod), np.float32), np.zeros((len(nod), 2), np.float32))
    still = clean_pose(pose, np.zeros_like(opening))
    cleaned = clean_pose(pose, opening)
    axes = [Rotation.from_matrix(one.rotation).as_rotvec() for one in (still, cleaned)]
    before, after = (np.std(one[:, 0] - nod) for one in axes)
    assert after < 0.25 * before
    np.testing.assert_allclose(axes[1][:, 1:], axes[0][:, 1:], atol=1e-3)


def test_pitch_without_leak_stays() -> None:
    rng = np.random.default_rng(4)
    pitch, opening = 0.05 * draw_noise(rng, 1, 12)[:, 0], 0.03 * draw_noise(rng, 1)[:, 0]
    found = remove_mouth_leak(pitch, opening)
    assert np.corrcoef(found, pitch)[0, 1] > 0.9


@pytest.mark.parametrize(("hertz", "low", "high"), [(1.0, 0.99, 1.01), (4.0, 0.47, 0.53), (8.0, 0.0, 0.01)])
def test_low_pass_keeps_slow_motion_and_removes_fast(hertz: float, low: float, high: float) -> None:
    wave = np.sin(2 * np.pi * hertz * np.arange(20 * FPS) / FPS + 0.3)[:, None]
    middle = slice(2 * FPS, -2 * FPS)
    filtered = low_pass(wave)
    gain = np.std(filtered[middle]) / np.std(wave[middle])
    assert low <= gain <= high
    if gain > 0.9:  # no lag
        np.testing.assert_allclose(filtered[middle], wave[middle], atol=0.01)


@pytest.mark.parametrize("frames", [1, 2, 5])
def test_short_clips_have_finite_coefficients(track: DrawnTrack, frames: int) -> None:
    clip = DrawnClip(track.clip.eye_openness[:frames], track.clip.lip_opening[:frames])
    short = DrawnTrack(clip, track.pose[:frames], track.landmarks[:frames], np.arange(frames))
    coefficients = compute_coefficients(short)
    assert len(coefficients) == frames
    assert np.isfinite(coefficients.flatten()).all()


def test_closed_eyes_have_finite_coefficients(track: DrawnTrack) -> None:
    asleep = replace(track, clip=replace(track.clip, eye_openness=np.zeros((FRAMES, 2), np.float32)))
    assert np.isfinite(compute_coefficients(asleep).flatten()).all()
