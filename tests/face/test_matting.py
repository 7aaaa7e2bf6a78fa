"""Person and background told apart, on a photograph of an astronaut before a flag and a shuttle."""

from __future__ import annotations

import numpy as np
import pytest
from skimage.data import astronaut

from s3dnerf.face.matting import segment_person


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
