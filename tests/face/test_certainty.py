"""Real faces leave no doubt; what has another shape does."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from skimage.data import astronaut

from s3dnerf.face.certainty import LARGEST, FaceDoubts, measure_doubts
from s3dnerf.face.crop import CropBox, crop_landmarks
from s3dnerf.face.face_mesh import FaceMesh
from s3dnerf.face.landmarks import detect_faces, to_pixels


@pytest.fixture(scope="module")
def portrait() -> tuple[np.ndarray, np.ndarray]:
    """A square picture of a face, and its landmarks [1, 478, 3], normalized to it."""
    picture = np.ascontiguousarray(astronaut()[:256, 96:352])
    pixels = to_pixels(detect_faces(picture)[0], (256, 256))[None]
    return picture, crop_landmarks(pixels, CropBox(0.0, 0.0, 256.0))


def test_a_face_leaves_no_doubt_however_it_is_turned(portrait: tuple[np.ndarray, np.ndarray]) -> None:
    mesh, (picture, landmarks) = FaceMesh(), portrait
    assert not measure_doubts(mesh, picture, landmarks).is_unsure
    quarter = np.ascontiguousarray(np.rot90(picture))
    turned = np.stack([landmarks[..., 1], -landmarks[..., 0], landmarks[..., 2]], axis=-1)
    assert not measure_doubts(mesh, quarter, turned).is_unsure


def test_landmarks_on_something_else_are_doubted(portrait: tuple[np.ndarray, np.ndarray]) -> None:
    mesh, (picture, landmarks) = FaceMesh(), portrait
    blank = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, picture.shape, dtype=np.uint8), (0, 0), 6)
    assert measure_doubts(mesh, blank, landmarks).is_unsure
    stretched = landmarks * np.float32([1.0, 1.8, 1.0])
    assert measure_doubts(mesh, picture, stretched).shape > LARGEST[0]


def test_one_large_doubt_is_enough() -> None:
    assert not FaceDoubts(*LARGEST).is_unsure
    for number in range(3):
        doubts = [0.0, 0.0, 0.0]
        doubts[number] = 0.06
        assert FaceDoubts(*doubts).is_unsure
