"""Landmarks of real faces are consistent; those of other shapes are not."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from skimage.data import astronaut

from s3dnerf.face.consistency import MAX_INCONSISTENCY, LandmarkInconsistency, measure_inconsistency
from s3dnerf.face.crop import CropBox, crop_landmarks
from s3dnerf.face.face_mesh import FaceMesh
from s3dnerf.face.landmarks import to_pixels
from s3dnerf.face.search import detect_faces


@pytest.fixture(scope="module")
def portrait() -> tuple[np.ndarray, np.ndarray]:
    """A square image of a face and its landmarks ``[1, 478, 3]``, normalized to it."""
    picture = np.ascontiguousarray(astronaut()[:256, 96:352])
    pixels = to_pixels(detect_faces(picture)[0], (256, 256))[None]
    return picture, crop_landmarks(pixels, CropBox(0.0, 0.0, 256.0))


def test_real_face_is_consistent_at_any_rotation(portrait: tuple[np.ndarray, np.ndarray]) -> None:
    mesh, (picture, landmarks) = FaceMesh(), portrait
    assert not measure_inconsistency(mesh, picture, landmarks).is_implausible
    quarter = np.ascontiguousarray(np.rot90(picture))
    turned = np.stack([landmarks[..., 1], -landmarks[..., 0], landmarks[..., 2]], axis=-1)
    assert not measure_inconsistency(mesh, quarter, turned).is_implausible


def test_landmarks_that_do_not_fit_are_inconsistent(portrait: tuple[np.ndarray, np.ndarray]) -> None:
    mesh, (picture, landmarks) = FaceMesh(), portrait
    blank = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, picture.shape, dtype=np.uint8), (0, 0), 6)
    assert measure_inconsistency(mesh, blank, landmarks).is_implausible
    stretched = landmarks * np.float32([1.0, 1.8, 1.0])
    assert measure_inconsistency(mesh, picture, stretched).shape > MAX_INCONSISTENCY[0]


def test_one_large_value_is_sufficient() -> None:
    assert not LandmarkInconsistency(*MAX_INCONSISTENCY).is_implausible
    for number in range(3):
        doubts = [0.0, 0.0, 0.0]
        doubts[number] = 0.06
        assert LandmarkInconsistency(*doubts).is_implausible
