"""Regions, lip opening and eye openness."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from skimage.data import astronaut

from s3dnerf.face.camera import HeadPose, fit_head_pose, load_canonical_face, project
from s3dnerf.face.points import KEPT_POINTS
from s3dnerf.face.regions import (
    REGIONS,
    draw_region_map,
    measure_eye_openness,
    measure_lip_opening,
    point_regions,
)
from s3dnerf.face.search import detect_faces


def see(face: np.ndarray, angles: tuple[float, float, float], scale: float) -> tuple[np.ndarray, HeadPose]:
    """Landmarks ``[1, 478, 3]`` and pose of a face rotated by yaw, pitch, roll in degrees."""
    rotation = Rotation.from_euler("yxz", angles, degrees=True).as_matrix()[None].astype(np.float32)
    pose = HeadPose(rotation, np.array([scale], np.float32), np.array([[0.1, -0.05]], np.float32))
    return project(face, pose), pose


@pytest.mark.parametrize("angles", [(0, 0, 0), (30, 0, 0), (-20, 15, 10), (0, -25, 40)])
@pytest.mark.parametrize("scale", [0.2, 0.75, 96.0])
def test_lip_opening_depends_on_the_lips_alone(angles: tuple[float, float, float], scale: float) -> None:
    face = load_canonical_face().copy()
    closed = float(np.mean([face[a, 1] - face[b, 1] for a, b in ((13, 14), (82, 87), (312, 317))]))
    assert 0 <= closed < 0.05
    face[[14, 87, 317], 1] -= 0.1
    landmarks, pose = see(face, angles, scale)
    assert measure_lip_opening(landmarks, pose) == pytest.approx([closed + 0.1], abs=1e-4)
    assert measure_lip_opening(landmarks[:, KEPT_POINTS], pose) == pytest.approx([closed + 0.1], abs=1e-4)


@pytest.mark.parametrize("angles", [(0, 0, 0), (35, -10, 20)])
def test_eye_openness_of_each_side(angles: tuple[float, float, float]) -> None:
    face = load_canonical_face().copy()
    for upper, lower in ((159, 145), (158, 153), (160, 144)):
        face[upper] = face[lower]
    openness = measure_eye_openness(see(face, angles, 0.7)[0])
    assert openness.shape == (1, 2)
    assert openness[0, 0] == pytest.approx(0, abs=1e-4), "the viewer's left eye was closed"
    assert 0.8 < openness[0, 1] < 1.2
    assert measure_eye_openness(see(face, (0, 0, 0), 80.0)[0])[0, 1] == pytest.approx(openness[0, 1], rel=1e-3)


def test_astronaut_has_open_eyes_and_a_smile() -> None:
    face = detect_faces(astronaut())[0][None]
    assert ((measure_eye_openness(face) > 0.7) & (measure_eye_openness(face) < 1.4)).all()
    assert 0.02 < measure_lip_opening(face, fit_head_pose(face))[0] < 0.2


def test_regions_match_known_landmarks() -> None:
    face = load_canonical_face() * np.array([1, -1, 1], np.float32)
    labels = draw_region_map(face, 256)
    assert labels.shape == (256, 256) and labels.dtype == np.uint8
    assert np.array_equal(labels, draw_region_map(face[KEPT_POINTS], 256))

    def name_at(number: int) -> str:
        u, v = face[number, :2]
        return REGIONS[labels[int((v + 1) * 128), int((u + 1) * 128)]]

    places = {13: "lips", 468: "eyes", 473: "eyes", 105: "brows", 4: "nose", 200: "jaw_and_cheeks", 151: "rest"}
    assert {number: name_at(number) for number in places} == places
    assert labels[0, 0] == REGIONS.index("rest")
    shares = np.bincount(labels.ravel(), minlength=len(REGIONS)) / labels.size
    assert (shares > 0.001).all() and shares[REGIONS.index("jaw_and_cheeks")] > shares[REGIONS.index("lips")]
    assert labels == pytest.approx(labels[:, ::-1], abs=5) and np.mean(labels != labels[:, ::-1]) < 0.01


def test_every_point_has_a_region() -> None:
    regions = point_regions()
    assert regions.shape == (478,)
    assert set(regions) == set(range(len(REGIONS)))
    names = {number: REGIONS[regions[number]] for number in (0, 17, 78, 33, 470, 70, 1, 152, 205, 10)}
    expected = ("lips", "lips", "lips", "eyes", "eyes", "brows", "nose", "jaw_and_cheeks", "jaw_and_cheeks", "rest")
    assert tuple(names.values()) == expected
