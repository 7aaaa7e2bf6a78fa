"""Optical flow of images with known motion."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from skimage.data import astronaut

from s3dnerf.media.optical_flow import measure_flow, sample

SIZE = 128


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    return cv2.resize(astronaut(), (SIZE, SIZE), interpolation=cv2.INTER_AREA)


def shift(picture: np.ndarray, right: int, down: int) -> np.ndarray:
    return np.roll(picture, (down, right), axis=(0, 1))


def test_flow_points_to_the_origin_of_the_motion(picture: np.ndarray) -> None:
    flow, confidence = measure_flow(shift(picture, 6, 4), picture)
    assert flow.shape == (SIZE // 2, SIZE // 2, 2) and confidence.shape == (SIZE // 2, SIZE // 2)
    assert flow.dtype == confidence.dtype == np.float32
    # Six pixels to the right in a picture of 128, which is two units wide: it came from 0.094 further left.
    error = np.abs(flow - [-6 * 2 / SIZE, -4 * 2 / SIZE]).sum(-1)
    assert (error * confidence).sum() / confidence.sum() < 0.25 * 2 / SIZE
    assert confidence[8:-8, 8:-8].mean() > 0.4


def test_a_still_image_has_no_flow(picture: np.ndarray) -> None:
    flow, confidence = measure_flow(picture, picture)
    assert np.abs(flow).max() < 1e-3 and confidence.max() > 0.8


def test_occluded_pixels_have_no_confidence(picture: np.ndarray) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    hidden = picture.copy()
    hidden[40:80, 40:80] = noise
    _, confidence = measure_flow(picture, hidden)
    assert confidence[23:37, 23:37].mean() < 0.1 * confidence.mean()


def test_pixels_that_leave_the_image_have_no_confidence(picture: np.ndarray) -> None:
    # The source was cut eight pixels further right: of the first eight columns it shows nothing.
    frame, source = picture[:120, :120], picture[:120, 8:]
    flow, confidence = measure_flow(np.ascontiguousarray(frame), np.ascontiguousarray(source))
    assert confidence[:, :3].mean() < 0.05
    assert np.median(flow[20:40, 20:40, 0]) == pytest.approx(-8 * 2 / 120, abs=0.3 * 2 / 120)


def test_flat_areas_have_no_confidence() -> None:
    gray = np.full((SIZE, SIZE, 3), 120, np.uint8)
    assert measure_flow(gray, gray)[1].max() == 0.0


def test_mirrored_images_have_the_mirrored_flow(picture: np.ndarray) -> None:
    frame = shift(picture, 3, 0)
    flow, confidence = measure_flow(frame, picture)
    mirrored, _ = measure_flow(frame[:, ::-1], picture[:, ::-1])
    error = np.abs(mirrored[:, ::-1] * [-1.0, 1.0] - flow).sum(-1)
    assert (error * confidence).sum() / confidence.sum() < 0.25 * 2 / SIZE


def test_sampling_by_hand() -> None:
    image = np.arange(12, dtype=np.float32).reshape(3, 4)
    places = np.array([[[1.0, 2.0], [0.5, 0.0], [9.0, 1.0]]], np.float32)
    assert sample(image, places) == pytest.approx(np.array([[9.0, 0.5, 7.0]]))
