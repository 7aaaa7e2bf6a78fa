"""The measures of THEval: values computed by hand, invariances, and frames without a face."""

import numpy as np
import pytest

from s3dnerf.metrics import theval

UP = np.array([0.0, 1.0])
BROWS = [points for points, _ in theval.BROWS_AND_EYES]
EYES = [points for _, points in theval.BROWS_AND_EYES]


@pytest.fixture
def face() -> np.ndarray:
    """A face with eyes at (100, 100) and (160, 100), brows 18 above them, and lips 6 apart around (130, 170)."""
    points = np.zeros((468, 2)) + [130.0, 130.0]
    for side, x in enumerate((100.0, 160.0)):
        points[list(EYES[side])], points[list(BROWS[side])] = [x, 100.0], [x, 82.0]
    points[list(theval.MOUTH_POINTS)] = np.random.default_rng(0).uniform([110, 160], [150, 180], (40, 2))
    points[list(theval.UPPER_LIP)], points[list(theval.LOWER_LIP)] = [130.0, 167.0], [130.0, 173.0]
    points[33], points[133], points[362], points[263] = [90.0, 100], [110.0, 100], [150.0, 100], [170.0, 100]
    return points


def repeat(face: np.ndarray, frames: int) -> np.ndarray:
    return np.repeat(face[None], frames, axis=0)


def lose_face(landmarks: np.ndarray, frame: int) -> np.ndarray:
    return np.insert(landmarks, frame, np.nan, axis=0)


def test_lip_dynamics_are_the_mean_deviation_of_distances(face: np.ndarray) -> None:
    moving = repeat(face, 4)
    moving[[1, 3]] = 1.1 * face
    mouth = face[list(theval.MOUTH_POINTS)]
    distances = np.linalg.norm(mouth[:, None] - mouth, axis=-1)[np.triu_indices(40, 1)]
    # Each distance d alternates between d and 1.1 d.
    assert theval.measure_lip_dynamics(moving) == pytest.approx(0.05 * distances.mean())
    assert len(distances) == 780


def test_lip_dynamics_ignore_position_and_tilt(face: np.ndarray) -> None:
    turn = np.array([[np.cos(0.3), -np.sin(0.3)], [np.sin(0.3), np.cos(0.3)]])
    assert theval.measure_lip_dynamics(np.stack([face, face @ turn.T + 9.0])) == pytest.approx(0.0, abs=1e-9)


def test_brow_dynamics_are_the_mean_change_of_height(face: np.ndarray) -> None:
    moving = repeat(face, 3)
    # The viewer's left brow rises by 6 and stays; with the eyes 60 apart this is 0.1, in one of four steps.
    moving[1:, list(BROWS[0])] -= 6 * UP
    assert theval.measure_brow_dynamics(moving) == pytest.approx(0.1 / 4, rel=0.02)
    assert theval.measure_brow_dynamics(2.0 * moving + 5.0) == pytest.approx(theval.measure_brow_dynamics(moving))
    assert theval.measure_brow_dynamics(repeat(face, 3)) == 0.0


def test_head_dynamics_combine_angles_and_center() -> None:
    still, center = np.zeros((4, 3)), np.array([[0.0, 0], [6, 2], [0, 0], [6, 2]])
    # Variances 9 and 1.
    assert theval.measure_head_dynamics(still, center) == pytest.approx(np.sqrt(5.0))
    yaw = np.radians([[0, 0, 0], [0, 6, 0], [0, 0, 0], [0, 6, 0.0]])
    # Deviation 3 and changes +6, -6, +6 of variance 32, each of one axis in three.
    assert theval.measure_head_dynamics(yaw, np.zeros((4, 2))) == pytest.approx(np.sqrt(3 / 3 * 32 / 3))
    assert theval.measure_head_dynamics(yaw, center) == pytest.approx(np.sqrt(32 / 3 + 5.0))
    # Uniform turning changes no change.
    turning = np.radians(np.arange(5.0))[:, None] * [0, 1, 0]
    assert theval.measure_head_dynamics(turning, np.zeros((5, 2))) == pytest.approx(0.0, abs=1e-6)


def test_the_center_is_that_of_the_box(face: np.ndarray) -> None:
    face[0], face[1] = [20.0, 30.0], [240.0, 250.0]
    landmarks = lose_face(repeat(face, 2), 1)
    landmarks[0, 1] = np.nan
    expected = [[(20 + 170) / 2, (30 + face[:, 1][face[:, 1] < 200].max()) / 2], [np.nan, np.nan], [130.0, 140.0]]
    np.testing.assert_allclose(theval.measure_box_center(landmarks), expected)


def test_openings_are_relative_to_the_eyes(face: np.ndarray) -> None:
    # Outer corners are 80 apart, centers of eyes 60.
    landmarks = lose_face(repeat(face, 2), 1)
    np.testing.assert_allclose(theval.measure_mouth_height(landmarks), [6 / 80, np.nan, 6 / 80])
    np.testing.assert_allclose(theval.measure_mouth_openness(landmarks), [6 / 60, np.nan, 6 / 60])
    # Lips that are crossed in pairs have a height, but on average no opening.
    for upper, lower, sign in zip(theval.UPPER_LIP, theval.LOWER_LIP, [1, -1] * 4, strict=True):
        face[upper, 1], face[lower, 1] = 170.0 - 3 * sign, 170.0 + 3 * sign
    assert theval.measure_mouth_height(face[None])[0] == pytest.approx(6 / 80)
    assert theval.measure_mouth_openness(face[None])[0] == pytest.approx(0.0)


def test_silence_lasts_as_long_as_its_shortest_length() -> None:
    is_speech = np.ones(40, bool)
    is_speech[:8] = is_speech[10:17] = is_speech[30:] = False
    # 0.3 s are 7.5 frames at 25 frames per second, so 8 frames are silence and 7 are not.
    assert np.flatnonzero(theval.find_silence(is_speech)).tolist() == [*range(8), *range(30, 40)]
    # At 20 frames per second they are 6 frames.
    np.testing.assert_array_equal(theval.find_silence(is_speech, fps=20.0), ~is_speech)
    assert theval.find_silence(np.zeros(8, bool)).all() and not len(theval.find_silence(np.zeros(0, bool)))


def test_silent_lips_are_measured_by_the_median_distance_from_the_mean() -> None:
    height = np.array([9.0, 1.0, 2.0, 3.0, np.nan, 6.0])
    is_silent = np.array([False, True, True, True, True, True])
    # The mean is 3; the distances are 2, 1, 0 and 3.
    assert theval.measure_silent_lips(height, is_silent) == pytest.approx(1.5)
    assert np.isnan(theval.measure_silent_lips(height, ~is_silent))


def test_loudness_is_the_root_mean_square_at_the_times_of_frames() -> None:
    tone = 0.5 * np.sqrt(2) * np.sin(2 * np.pi * 400 * np.arange(16000) / 16000)
    tone[8000:] = 0.0
    loudness = theval.measure_loudness(tone, 30)
    # The first window begins before the sound, the one at 0.5 s is half silent, and the last value is kept.
    assert loudness[0] == pytest.approx(0.5 / np.sqrt(2)) and loudness[2:11] == pytest.approx(0.5)
    between = np.interp(12 / 25, [0.45, 0.5], [0.5, 0.5 / np.sqrt(2)])
    assert loudness[12] == pytest.approx(between) and loudness[14:] == pytest.approx(0.0)


def test_loudness_mismatch_scales_both_to_the_same_range() -> None:
    loudness, is_speech = np.array([0.0, 1.0, 2.0, 4.0, 100.0]), np.array([True, True, True, True, False])
    assert theval.measure_loudness_mismatch(3.0 + 0.1 * loudness, loudness, is_speech) == pytest.approx(0.0, abs=1e-6)
    # Scaled loudness 0, 1/4, 1/2, 1 and its mirror image.
    assert theval.measure_loudness_mismatch(-loudness, loudness, is_speech) == pytest.approx(2.5 / 4)
    unseen = np.array([np.nan, 1.0, 2.0, 4.0, 100.0])
    assert theval.measure_loudness_mismatch(unseen, loudness, is_speech) == pytest.approx(0.0, abs=1e-6)


def test_loudness_mismatch_needs_speech() -> None:
    series, is_speech = np.arange(100.0), np.arange(100) < 9
    assert np.isnan(theval.measure_loudness_mismatch(series, series, is_speech))
    assert theval.measure_loudness_mismatch(series, series, np.arange(100) < 10) == 0.0
    assert np.isnan(theval.measure_loudness_mismatch(np.full(100, np.nan), series, ~is_speech))
    assert np.isnan(theval.measure_loudness_mismatch(np.zeros(0), np.zeros(0), np.zeros(0, bool)))


@pytest.mark.parametrize(("value", "score"), [(2.0, 1.0), (1.0, 0.5), (3.0, 0.5), (0.0, 0.0), (5.0, -0.5)])
def test_closeness_is_one_minus_the_relative_error(value: float, score: float) -> None:
    assert theval.measure_closeness(value, 2.0) == pytest.approx(score)
    assert theval.measure_closeness(-value, -2.0) == pytest.approx(score)


def test_closeness_is_undefined_without_a_real_value() -> None:
    assert np.isnan(theval.measure_closeness(1.0, 0.0)) and np.isnan(theval.measure_closeness(np.nan, 1.0))
    assert np.isnan(theval.measure_closeness(1.0, np.nan))


@pytest.mark.parametrize("measure", [theval.measure_lip_dynamics, theval.measure_brow_dynamics])
def test_frames_without_a_face_are_left_out(measure: object, face: np.ndarray) -> None:
    rng = np.random.default_rng(1)
    moving = repeat(face, 6) + rng.normal(size=(6, 468, 2))
    assert measure(lose_face(moving, 3)) == measure(moving) > 0
    assert np.isnan(measure(moving[:1])) and np.isnan(measure(np.full((5, 478, 3), np.nan)))
    with pytest.raises(ValueError, match="468"):
        measure(moving[:, :400])


def test_poses_without_a_face_are_left_out() -> None:
    rng = np.random.default_rng(1)
    rotation, center = 0.1 * rng.normal(size=(6, 3)), rng.normal(size=(6, 2))
    gap = np.insert(center, 3, np.nan, axis=0)
    assert theval.measure_head_dynamics(np.insert(rotation, 3, 9.0, axis=0), gap) == pytest.approx(
        theval.measure_head_dynamics(rotation, center)
    )
    assert np.isnan(theval.measure_head_dynamics(rotation[:1], center[:1]))
    with pytest.raises(ValueError, match="centers"):
        theval.measure_head_dynamics(rotation, center[:5])


def test_series_of_other_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="equal length"):
        theval.measure_silent_lips(np.zeros(4), np.zeros(5, bool))
    with pytest.raises(ValueError, match="equal length"):
        theval.measure_loudness_mismatch(np.zeros(4), np.zeros(5), np.zeros(4, bool))
