"""The canonical face is recovered from faces that were generated from it."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from s3dnerf.face.camera import HeadPose, load_canonical_face, project
from s3dnerf.face.canonical import find_mirror_pairs, fit_canonical_face, select_neutral_frames, symmetrize_face
from s3dnerf.face.mirror import point_mirrors


def test_mirror_pairs() -> None:
    face = load_canonical_face()
    pairs = find_mirror_pairs(face)
    assert np.array_equal(point_mirrors(), pairs)
    assert (pairs[[33, 133, 61, 234, 468, 10, 152, 1]] == [263, 362, 291, 454, 473, 10, 152, 1]).all()
    assert np.array_equal(pairs[pairs], np.arange(478))
    assert face[pairs] * [-1, 1, 1] == pytest.approx(face, abs=1e-5)


def test_mirror_pairs_of_an_uneven_turned_face() -> None:
    face = load_canonical_face().astype(np.float64)
    expected = find_mirror_pairs(face)
    uneven = face + np.random.default_rng(0).normal(0, 0.002, face.shape)
    turned = uneven @ Rotation.from_euler("yxz", [4, 3, -3], degrees=True).as_matrix().T
    assert np.array_equal(find_mirror_pairs(turned), expected)
    symmetric = symmetrize_face(turned)
    assert symmetric[expected] * [-1, 1, 1] == pytest.approx(symmetric, abs=1e-9)


def test_fit_recovers_the_face() -> None:
    random = np.random.default_rng(1)
    face = load_canonical_face()
    people = []
    for _ in range(3):
        turns = Rotation.from_rotvec(random.normal(0, 0.15, (40, 3))).as_matrix().astype(np.float32)
        scale = random.uniform(0.4, 0.9, 40).astype(np.float32)
        track = project(face, HeadPose(turns, scale, random.normal(0, 0.2, (40, 2)).astype(np.float32)))
        people.append(track + random.normal(0, 0.002, track.shape))
    assert fit_canonical_face(people) == pytest.approx(face, abs=0.01)


def test_neutral_frames_are_frontal_with_closed_mouth() -> None:
    face = load_canonical_face().astype(np.float64)
    yaw = np.array([0, 30, 5, 0, 10, 40, 2, 8])
    mouth_open = np.array([0, 0, 0, 1, 0, 1, 1, 1])
    shapes = np.repeat(face[None], 8, axis=0)
    shapes[mouth_open == 1, 14, 1] -= 0.2
    shapes = shapes @ Rotation.from_euler("y", yaw[:, None], degrees=True).as_matrix().transpose(0, 2, 1)
    assert select_neutral_frames(shapes, face, 3).tolist() == [0, 2, 4]


def test_fit_without_identities_raises() -> None:
    with pytest.raises(ValueError, match="at least one person"):
        fit_canonical_face([])
