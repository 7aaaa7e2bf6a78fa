"""The face descriptor of dlib: alignment, broken input, and real faces of the same and of other people."""

from __future__ import annotations

import builtins
from pathlib import Path

import numpy as np
import pytest
from skimage.data import astronaut

from s3dnerf.errors import UserError
from s3dnerf.media.video import read_frames
from s3dnerf.metrics.face_descriptor import (
    CHIP_POINTS,
    CHIP_SIZE,
    CHIP_TEMPLATE,
    FaceDescriptor,
    find_descriptor_file,
    has_face_descriptor,
    measure_identity_distance,
)
from s3dnerf.metrics.identity import align_face, measure_csim

ASTRONAUT = np.array([[246.0, 107.0], [231.0, 108.0], [198.0, 110.0], [213.0, 109.0], [222.0, 139.0]])
"""Corners of the eyes and base of the nose in the photo of scikit-image."""
needs_packages = pytest.mark.skipif(not has_face_descriptor(), reason="dlib-bin and face-recognition-models are extras")


@pytest.fixture(scope="module")
def descriptor() -> FaceDescriptor:
    return FaceDescriptor()


def spread(points: np.ndarray) -> np.ndarray:
    mesh = np.zeros((468, 2))
    mesh[list(CHIP_POINTS)] = points
    return mesh


@needs_packages
def test_the_descriptor_ignores_place_and_tilt_and_knows_no_face_without_landmarks(descriptor: FaceDescriptor) -> None:
    photo = astronaut()
    turned = np.ascontiguousarray(np.rot90(photo, k=-1))
    # A turn by 90 degrees takes (x, y) to (H - 1 - y, x).
    points = np.stack([photo.shape[0] - 1 - ASTRONAUT[:, 1], ASTRONAUT[:, 0]], axis=1)
    frames = np.stack([photo, photo, turned])
    landmarks = np.stack([spread(ASTRONAUT), np.full((468, 2), np.nan), spread(points)])
    vectors = descriptor.embed_frames(frames, landmarks)
    assert vectors.shape == (3, 128) and np.isnan(vectors[1]).all()
    assert measure_identity_distance(vectors[:1], vectors[2:])[0] < 0.1
    # A face that is squeezed into another place of the picture is another one.
    elsewhere = descriptor.embed_frames(photo[None], spread(ASTRONAUT + [120.0, 150.0])[None])
    assert measure_identity_distance(vectors[:1], elsewhere)[0] > 0.6
    with pytest.raises(ValueError, match="landmarks of 2"):
        descriptor.embed_frames(frames, landmarks[:2])


@needs_packages
def test_faces_of_other_sizes_are_refused(descriptor: FaceDescriptor) -> None:
    assert descriptor.embed(np.zeros((0, CHIP_SIZE, CHIP_SIZE, 3), np.uint8)).shape == (0, 128)
    for faces in (np.zeros((1, 112, 112, 3), np.uint8), np.zeros((1, CHIP_SIZE, CHIP_SIZE, 3), np.float32)):
        with pytest.raises(ValueError, match="150"):
            descriptor.embed(faces)


@needs_packages
def test_a_broken_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "broken.dat").write_bytes(b"no network")
    for name in ("broken.dat", "missing.dat"):
        with pytest.raises(UserError, match=name):
            FaceDescriptor(tmp_path / name)


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *rest: object) -> object:
        if name == "dlib":
            raise ImportError("No module named 'dlib'")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(UserError, match=r"s3dnerf\[identity\]"):
        FaceDescriptor()
    monkeypatch.setattr("s3dnerf.metrics.face_descriptor.find_spec", lambda name: None)
    assert not has_face_descriptor()
    with pytest.raises(UserError, match="face-recognition-models"):
        find_descriptor_file()


def test_the_template_is_upright_and_symmetric() -> None:
    face = align_face(np.full((400, 400, 3), 255, np.uint8), CHIP_TEMPLATE * 2, CHIP_TEMPLATE, CHIP_SIZE)
    assert face.shape == (CHIP_SIZE, CHIP_SIZE, 3) and (face == 255).all()
    outer, inner = CHIP_TEMPLATE[[0, 2], 0], CHIP_TEMPLATE[[1, 3], 0]
    assert outer.sum() / 2 == pytest.approx(CHIP_TEMPLATE[4, 0], abs=0.1) == pytest.approx(inner.sum() / 2, abs=0.1)


def test_distances_of_known_vectors() -> None:
    target = np.array([[0.0, 0.0], [1.0, 2.0], [np.nan, 1.0]])
    np.testing.assert_allclose(measure_identity_distance(target, target + [3.0, 4.0]), [5.0, 5.0, np.nan])
    with pytest.raises(ValueError, match="equal shapes"):
        measure_identity_distance(target, target[:2])


FACES = [
    ("hdtf_AmyKlobuchar_0", 0, [[165, 115], [139, 113], [86, 104], [109, 108], [119, 147]]),
    ("hdtf_AmyKlobuchar_0", 60, [[165, 98], [140, 98], [83, 96], [107, 96], [124, 129]]),
    ("hdtf_EricSwalwell_0", 0, [[150, 95], [128, 98], [77, 105], [98, 102], [113, 134]]),
]
"""Clip, frame, and the tracked corners of eyes and base of the nose."""


@needs_packages
@pytest.mark.slow
def test_real_people_are_told_apart(descriptor: FaceDescriptor, shared_data: Path) -> None:
    vectors = []
    for name, frame, points in FACES:
        picture = read_frames(shared_data / "clips" / f"{name}.mp4", [frame])
        vectors.append(descriptor.embed_frames(picture, spread(np.array(points, float))[None]))
    own, other = (measure_identity_distance(vectors[0], one)[0] for one in vectors[1:])
    assert own < 0.5 and other > 0.6
    assert measure_csim(*vectors[:2])[0] > measure_csim(vectors[0], vectors[2])[0]
