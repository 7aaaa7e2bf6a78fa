"""Face detection in still images: small, rolled, partly hidden and absent faces."""

from __future__ import annotations

import time

import cv2
import numpy as np
import pytest
from skimage.data import astronaut, chelsea, coffee

from s3dnerf.face import search
from s3dnerf.face.landmarks import to_pixels
from s3dnerf.face.search import detect_faces
from s3dnerf.face.tracker import FaceTracker

# Outer eye corners and nose tip of the astronaut, located by hand.
CORNERS = {33: (195, 101), 263: (255, 103), 1: (222, 131)}


@pytest.fixture(scope="module")
def face() -> np.ndarray:
    return detect_faces(astronaut())[0]


def test_astronaut_is_found(face: np.ndarray) -> None:
    assert face.shape == (478, 3) and face.dtype == np.float32
    pixels = to_pixels(face, (512, 512))
    for number, place in CORNERS.items():
        assert pixels[number, :2] == pytest.approx(place, abs=4)
    assert face[1, 2] > face[[33, 263, 234, 454], 2].max(), "the nose is nearest to the viewer"


def test_still_image_gives_the_same_landmarks_as_a_video(face: np.ndarray) -> None:
    tracked = to_pixels(next(FaceTracker().track([astronaut()])), (512, 512))
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


def test_each_face_is_fitted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    person = astronaut()[:256, 96:352]
    picture = np.full((400, 640, 3), 90, np.uint8)
    picture[20:276, 340:596] = person
    picture[60:220, 60:220] = cv2.resize(person, (160, 160), interpolation=cv2.INTER_AREA)
    fits = []
    fit = search.FaceFinder._fit
    monkeypatch.setattr(search.FaceFinder, "_fit", lambda *words: fits.append(words) or fit(*words))
    found = detect_faces(picture)
    assert len(found) == len(fits) == 2
    monkeypatch.setattr(search, "KNOWN_OVERLAP", 2.0)
    assert np.array_equal(detect_faces(picture), found) and len(fits) > 6


@pytest.mark.parametrize("picture", [coffee(), chelsea(), np.zeros((64, 64, 3), np.uint8)])
def test_images_without_a_face_give_an_empty_list(picture: np.ndarray) -> None:
    assert detect_faces(picture) == []


def test_small_face_in_a_very_large_image_is_found_quickly() -> None:
    picture = np.full((5000, 8000, 3), 120, np.uint8)
    picture[3000:3200, 5000:5200] = cv2.resize(astronaut()[:256, 96:352], (200, 200), interpolation=cv2.INTER_AREA)
    start = time.process_time()
    (found,) = detect_faces(picture)
    # Blurring the whole image for every window took 48 seconds.
    assert time.process_time() - start < 20
    points = to_pixels(found, picture.shape[:2])
    assert (points[:, :2].min(0) > [5000, 3000]).all() and (points[:, :2].max(0) < [5200, 3200]).all()


@pytest.mark.parametrize("degrees", [45, 135, 180])
def test_rolled_heads_are_found(face: np.ndarray, degrees: int) -> None:
    turn = cv2.getRotationMatrix2D((222, 120), degrees, 1.0)
    (found,) = detect_faces(cv2.warpAffine(astronaut(), turn, (512, 512), borderValue=(128, 128, 128)))
    expected = to_pixels(face, (512, 512))[:, :2] @ turn[:, :2].T + turn[:, 2]
    assert np.linalg.norm(to_pixels(found, (512, 512))[:, :2] - expected, axis=1).mean() < 4.0


HIDDEN = {
    "mouth": (slice(125, None), slice(None)),
    "left": (slice(None), slice(0, 128)),
    "right": (slice(None), slice(128, None)),
}

# A black left half is not among them: the mesh is off by more.
HIDDEN_PARTS = [("mouth", 110), ("left", 110), ("left", 240), ("right", 0), ("right", 240)]


@pytest.mark.slow
@pytest.mark.parametrize(("part", "color"), HIDDEN_PARTS)
def test_half_hidden_faces_are_found(face: np.ndarray, part: str, color: int) -> None:
    person = astronaut()[:256, 96:352].copy()
    person[HIDDEN[part]] = color
    (found,) = detect_faces(person)
    expected = to_pixels(face, (512, 512))[:, :2] - [96, 0]
    # The face is 160 pixels high.
    assert np.linalg.norm(to_pixels(found, (256, 256))[:, :2] - expected, axis=1).mean() < 8


@pytest.mark.slow
def test_tiny_face_in_a_photograph_of_24_megapixels(face: np.ndarray) -> None:
    picture = cv2.resize(coffee(), (6000, 4000))
    # A head of 40 pixels; the landmarks span 28.
    side = 128
    picture[2500 : 2500 + side, 4100 : 4100 + side] = cv2.resize(
        astronaut(), (side, side), interpolation=cv2.INTER_AREA
    )
    (found,) = detect_faces(picture)
    points = to_pixels(found, picture.shape[:2])[:, :2] - [4100, 2500]
    expected = to_pixels(face, (512, 512))[:, :2] * (side / 512)
    assert np.linalg.norm(points - expected, axis=1).mean() < 2.0
