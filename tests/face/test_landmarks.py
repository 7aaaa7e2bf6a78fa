"""The face tracker on an image of an astronaut: moved, scaled and hidden."""

from __future__ import annotations

import sys
import time

import cv2
import numpy as np
import pytest
from skimage.data import astronaut, chelsea, coffee

from s3dnerf.errors import UserError
from s3dnerf.face.crop import CropBox
from s3dnerf.face.landmarks import (
    FaceTracker,
    build_pyramid,
    crop_from_pyramid,
    detect_faces,
    from_pixels,
    load_mediapipe,
    to_pixels,
)

# Outer eye corners and nose tip of the astronaut, located by hand.
CORNERS = {33: (195, 101), 263: (255, 103), 1: (222, 131)}


@pytest.fixture(scope="module")
def face() -> np.ndarray:
    return detect_faces(astronaut())[0]


def test_pixels_by_hand() -> None:
    # In an image of 200 x 100 (width x height), the center of the first pixel is half a pixel from the edge.
    points = np.array([[-1, -1, 0], [0, 0, 0.5], [1, 1, -1]], np.float32)
    pixels = to_pixels(points, (100, 200))
    assert pixels == pytest.approx(np.array([[-0.5, -0.5, 0], [99.5, 49.5, 50], [199.5, 99.5, -100]]))
    assert from_pixels(pixels, (100, 200)) == pytest.approx(points, abs=1e-6)


def test_astronaut_is_found(face: np.ndarray) -> None:
    assert face.shape == (478, 3) and face.dtype == np.float32
    pixels = to_pixels(face, (512, 512))
    for number, place in CORNERS.items():
        assert pixels[number, :2] == pytest.approx(place, abs=4)
    assert face[1, 2] > face[[33, 263, 234, 454], 2].max(), "the nose is nearest to the viewer"


def test_tracker_tracks_a_moving_face(face: np.ndarray) -> None:
    frames = [np.roll(astronaut(), (step, 2 * step), axis=(0, 1))[:400] for step in range(8)]
    with FaceTracker() as tracker:
        found = [to_pixels(one, (400, 512)) for one in tracker.track(frames)]
    still = to_pixels(face, (512, 512))
    for step, pixels in enumerate(found):
        assert np.abs(pixels[:, :2] - still[:, :2] - [2 * step, step]).mean() < 2.5


def test_tracker_yields_none_without_a_face() -> None:
    grey = np.full((512, 512, 3), 128, np.uint8)
    with FaceTracker() as tracker:
        found = list(tracker.track([grey, astronaut(), astronaut(), grey, astronaut()]))
    assert [one is not None for one in found] == [False, True, True, False, True]


def test_first_frame_is_settled() -> None:
    still = [astronaut()] * 8
    with FaceTracker() as tracker:
        found = np.stack([to_pixels(one, (512, 512))[:, :2] for one in tracker.track(still)])
        tracker.reset()
        again = to_pixels(next(tracker.track(still[:1])), (512, 512))[:, :2]
    # The face is 160 pixels high; the first pass of the mesh differs from the eighth by 1.0 pixels.
    assert np.linalg.norm(found[0] - found[-1], axis=1).mean() < 0.5
    assert np.linalg.norm(again - found[-1], axis=1).mean() < 0.5


def test_reset_lets_the_tracker_find_a_face_elsewhere(face: np.ndarray) -> None:
    moved = np.roll(astronaut(), (150, 190), axis=(0, 1))
    with FaceTracker() as tracker:
        next(tracker.track([astronaut()]))
        tracker.reset()
        found = to_pixels(next(tracker.track([moved])), (512, 512))
    assert np.abs(found - to_pixels(face, (512, 512)) - [190, 150, 0])[:, :2].mean() < 2.0


def test_still_image_gives_the_same_landmarks_as_a_video(face: np.ndarray) -> None:
    with FaceTracker() as tracker:
        tracked = to_pixels(next(tracker.track([astronaut()])), (512, 512))
    assert np.linalg.norm((tracked - to_pixels(face, (512, 512)))[:, :2], axis=1).mean() < 0.8


@pytest.mark.parametrize("size", [(1000, 1400), (1400, 900)])
@pytest.mark.parametrize("scale", [0.5, 0.25])
def test_small_faces_in_large_images(face: np.ndarray, size: tuple[int, int], scale: float) -> None:
    side = int(512 * scale)
    picture = cv2.resize(coffee(), size[::-1])
    picture[300 : 300 + side, 500 : 500 + side] = cv2.resize(astronaut(), (side, side), interpolation=cv2.INTER_AREA)
    (found,) = detect_faces(picture)
    pixels = (to_pixels(found, size)[:, :2] - [500, 300] + 0.5) / scale - 0.5
    # Within 2 % of the face's height (160 pixels in the original).
    assert np.abs(pixels - to_pixels(face, (512, 512))[:, :2]).mean() < 3.2


def test_face_that_fills_the_image() -> None:
    assert len(detect_faces(astronaut()[60:190, 160:290])) == 1


def test_faces_come_largest_first() -> None:
    person = astronaut()[:256, 96:352]
    picture = np.full((400, 640, 3), 90, np.uint8)
    picture[20:276, 340:596] = person
    picture[60:220, 60:220] = cv2.resize(person, (160, 160), interpolation=cv2.INTER_AREA)
    found = detect_faces(picture)
    assert len(found) == 2
    assert found[0][1, 0] > 0 > found[1][1, 0], "the larger one is on the right"
    assert len(detect_faces(picture, max_faces=1)) == 1


@pytest.mark.parametrize("picture", [coffee(), chelsea(), np.zeros((64, 64, 3), np.uint8)])
def test_images_without_a_face_give_an_empty_list(picture: np.ndarray) -> None:
    assert detect_faces(picture) == []


def test_tracker_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    with FaceTracker() as tracker:
        list(tracker.track([astronaut()]))
    assert capfd.readouterr() == ("", "")


def test_missing_mediapipe_raises_with_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mediapipe", None)
    with pytest.raises(UserError, match="pip install"):
        load_mediapipe()


def test_crop_does_not_depend_on_the_pyramid_level() -> None:
    rng = np.random.default_rng(0)
    image = cv2.GaussianBlur(rng.integers(0, 256, (3200, 4000, 3), dtype=np.uint8), (0, 0), 12)
    image = cv2.normalize(image, None, 0, 255, cv2.NORM_MINMAX)
    window = CropBox(300.0, 200.0, 384 * 8.0)
    levels = build_pyramid(image)
    assert [level.shape[:2] for level in levels] == [(3200, 4000), (1600, 2000), (800, 1000), (400, 500)]
    direct, reduced = (crop_from_pyramid(pyramid, window, 384).astype(int) for pyramid in ([image], levels))
    assert np.abs(direct - reduced).mean() < 0.5 and np.abs(direct - reduced).max() <= 6


def test_window_is_black_beyond_the_image() -> None:
    image = np.full((100, 100, 3), 200, np.uint8)
    cut = crop_from_pyramid(build_pyramid(image), CropBox(-100.0, -100.0, 300.0), 96)
    assert cut[:30].max() == 0 and cut[-30:].max() == 0 and cut[48, 48].min() > 195


def test_small_face_in_a_very_large_image_is_found_quickly() -> None:
    picture = np.full((5000, 8000, 3), 120, np.uint8)
    picture[3000:3200, 5000:5200] = cv2.resize(astronaut()[:256, 96:352], (200, 200), interpolation=cv2.INTER_AREA)
    start = time.process_time()
    (found,) = detect_faces(picture)
    # Blurring the whole image for every window took 48 seconds.
    assert time.process_time() - start < 20
    points = to_pixels(found, picture.shape[:2])
    assert (points[:, :2].min(0) > [5000, 3000]).all() and (points[:, :2].max(0) < [5200, 3200]).all()
