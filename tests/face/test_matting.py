"""Person and background told apart, on a photograph of an astronaut before a flag and a shuttle."""

from __future__ import annotations

import numpy as np
import pytest
from skimage.data import astronaut

from s3dnerf.face.matting import paint_behind, segment_person, widen_matte


@pytest.fixture(scope="module")
def matte() -> np.ndarray:
    return segment_person(astronaut()[:256, 96:352])


def test_matte_is_a_share_of_each_pixel(matte: np.ndarray) -> None:
    assert matte.shape == (256, 256) and matte.dtype == np.float32
    assert matte.min() >= 0.0 and matte.max() <= 1.0


def test_face_hair_and_shoulders_are_the_person(matte: np.ndarray) -> None:
    for row, column in ((100, 128), (145, 120), (40, 120), (240, 128), (250, 60)):
        assert matte[row, column] > 0.95


def test_flag_and_shuttle_are_not(matte: np.ndarray) -> None:
    for row, column in ((5, 5), (60, 20), (30, 240), (120, 230), (150, 10)):
        assert matte[row, column] < 0.05


def test_outline_is_narrow(matte: np.ndarray) -> None:
    assert 0.4 < matte.mean() < 0.6
    assert ((matte > 0.1) & (matte < 0.9)).mean() < 0.08


def test_another_size_gives_the_same_outline(matte: np.ndarray) -> None:
    large = segment_person(astronaut()[:256, 96:352].repeat(2, axis=0).repeat(2, axis=1))
    assert large.shape == (512, 512)
    small = large.reshape(256, 2, 256, 2).mean(axis=(1, 3))
    assert np.abs(small - matte).mean() < 0.01


def test_a_picture_without_a_person_is_background() -> None:
    assert segment_person(np.zeros((64, 64, 3), np.uint8)).max() < 0.01


def test_the_same_picture_gives_the_same_matte(matte: np.ndarray) -> None:
    np.testing.assert_array_equal(segment_person(astronaut()[:256, 96:352]), matte)


def test_native_log_stays_off_the_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    segment_person(np.zeros((64, 64, 3), np.uint8))
    assert capfd.readouterr().err == ""


def test_a_widened_matte_takes_in_what_may_be_the_person() -> None:
    matte = np.zeros((100, 100), np.float32)
    matte[50, 50], matte[20, 20] = 1.0, 0.05
    wide = widen_matte(matte, gain=4.0, margin=0.02)
    assert wide.dtype == np.float32
    # Two pixels on every side, round.
    assert wide[50, 48:53].tolist() == [1.0] * 5 and wide[50, 47] == wide[50, 53] == wide[48, 48] == 0.0
    assert wide[20, 20] == wide[20, 22] == np.float32(0.2)


def test_what_surrounds_a_person_is_continued_over_them() -> None:
    # The left half of the wall is red, the right half blue, and before its middle stands somebody gray.
    wall = np.zeros((64, 64, 3), np.uint8)
    wall[:, :32, 0], wall[:, 32:, 2] = 200, 200
    hidden = np.zeros((64, 64), bool)
    hidden[20:60, 20:44] = True
    image = wall.copy()
    image[hidden] = 128
    scene = paint_behind(image, hidden)
    np.testing.assert_array_equal(scene[~hidden], wall[~hidden])
    assert np.abs(scene[30:50, 20:26].astype(int) - [200, 0, 0]).max() < 30
    assert np.abs(scene[30:50, 38:44].astype(int) - [0, 0, 200]).max() < 30


def test_who_fills_the_picture_stays_in_it() -> None:
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    np.testing.assert_array_equal(paint_behind(image, np.ones((32, 32), bool)), image)
