"""Person mattes of a photograph of an astronaut in front of a flag and a shuttle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from skimage.data import astronaut

from s3dnerf.face.matting import dilate_matte, inpaint_background, segment_person


@pytest.fixture(scope="module")
def matte() -> np.ndarray:
    return segment_person(astronaut()[:256, 96:352])


def test_matte_is_in_the_unit_interval(matte: np.ndarray) -> None:
    assert matte.shape == (256, 256) and matte.dtype == np.float32
    assert matte.min() >= 0.0 and matte.max() <= 1.0


def test_face_hair_and_shoulders_are_foreground(matte: np.ndarray) -> None:
    for row, column in ((100, 128), (145, 120), (40, 120), (240, 128), (250, 60)):
        assert matte[row, column] > 0.95


def test_flag_and_shuttle_are_background(matte: np.ndarray) -> None:
    for row, column in ((5, 5), (60, 20), (30, 240), (120, 230), (150, 10)):
        assert matte[row, column] < 0.05


def test_outline_is_narrow(matte: np.ndarray) -> None:
    assert 0.4 < matte.mean() < 0.6
    assert ((matte > 0.1) & (matte < 0.9)).mean() < 0.08


def test_outline_does_not_depend_on_the_image_size(matte: np.ndarray) -> None:
    large = segment_person(astronaut()[:256, 96:352].repeat(2, axis=0).repeat(2, axis=1))
    assert large.shape == (512, 512)
    small = large.reshape(256, 2, 256, 2).mean(axis=(1, 3))
    assert np.abs(small - matte).mean() < 0.01


def test_image_without_a_person_is_background() -> None:
    assert segment_person(np.zeros((64, 64, 3), np.uint8)).max() < 0.01


def test_autocast_does_not_change_the_matte(matte: np.ndarray) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        np.testing.assert_array_equal(segment_person(astronaut()[:256, 96:352]), matte)


def test_matting_is_deterministic(matte: np.ndarray) -> None:
    np.testing.assert_array_equal(segment_person(astronaut()[:256, 96:352]), matte)


def test_matte_matches_mediapipe(matte: np.ndarray) -> None:
    with np.load(Path(__file__).with_name("references.npz")) as stored:
        expected = stored["matte"] / 255.0
    small = matte.reshape(64, 4, 64, 4).mean(axis=(1, 3))
    assert np.abs(small - expected).mean() < 0.01


def test_dilation_extends_and_amplifies_the_matte() -> None:
    matte = np.zeros((100, 100), np.float32)
    matte[50, 50], matte[20, 20] = 1.0, 0.05
    wide = dilate_matte(matte, gain=4.0, margin=0.02)
    assert wide.dtype == np.float32
    # Two pixels on every side, round.
    assert wide[50, 48:53].tolist() == [1.0] * 5 and wide[50, 47] == wide[50, 53] == wide[48, 48] == 0.0
    assert wide[20, 20] == wide[20, 22] == np.float32(0.2)


def test_inpainting_continues_the_background() -> None:
    # The left half of the background is red, the right half blue, and the person in the middle gray.
    wall = np.zeros((64, 64, 3), np.uint8)
    wall[:, :32, 0], wall[:, 32:, 2] = 200, 200
    hidden = np.zeros((64, 64), bool)
    hidden[20:60, 20:44] = True
    image = wall.copy()
    image[hidden] = 128
    scene = inpaint_background(image, hidden)
    np.testing.assert_array_equal(scene[~hidden], wall[~hidden])
    assert np.abs(scene[30:50, 20:26].astype(int) - [200, 0, 0]).max() < 30
    assert np.abs(scene[30:50, 38:44].astype(int) - [0, 0, 200]).max() < 30


def test_inpainting_without_background_returns_the_image() -> None:
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    np.testing.assert_array_equal(inpaint_background(image, np.ones((32, 32), bool)), image)
