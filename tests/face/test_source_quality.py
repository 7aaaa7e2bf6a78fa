"""What in a source image limits the video, on a face whose measures are changed one by one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from skimage.data import astronaut

from s3dnerf.face.points import KEPT_POINTS, LIPS_INNER
from s3dnerf.face.portrait import Face, find_face, measure_turn
from s3dnerf.face.source_quality import describe_limits, measure_opening


@pytest.fixture(scope="module")
def face() -> Face:
    return find_face(astronaut(), 256)


def turn_head(face: Face, degrees: float) -> Face:
    rotation = Rotation.from_euler("y", degrees, degrees=True).as_matrix()[None].astype(np.float32)
    return replace(face, pose=replace(face.pose, rotation=rotation))


def open_mouth(face: Face, height: float) -> Face:
    """Return the face with the lower edge of the opening ``height`` head units below the upper one."""
    landmarks = face.landmarks.copy()
    lower, upper = (KEPT_POINTS.searchsorted(LIPS_INNER[part]) for part in (slice(1, 10), slice(19, 10, -1)))
    landmarks[lower] = landmarks[upper] - np.array([0.0, height, 0.0])
    return replace(face, landmarks=landmarks)


def test_an_ordinary_photograph_has_no_limits(face: Face) -> None:
    assert describe_limits([face]) == []


@pytest.mark.parametrize("degrees", [-40.0, 0.0, 12.0])
def test_the_turn_is_an_angle(face: Face, degrees: float) -> None:
    assert measure_turn(turn_head(face, degrees).pose) == pytest.approx(abs(degrees), abs=0.05)


def test_the_opening_is_in_head_units(face: Face) -> None:
    assert measure_opening(open_mouth(face, 0.07)) == pytest.approx(0.07)


def test_each_limit_is_named_and_cured_by_another_image(face: Face) -> None:
    limited = {
        "eyes are closed": replace(face, eyes=np.array([0.1, 0.2])),
        "turned by 30 degrees": turn_head(face, 30.0),
        "mouth is wide open": open_mouth(face, 0.2),
        "100 x 100 pixels": replace(face, crop=replace(face.crop, side=100.0)),
    }
    for words, worse in limited.items():
        (note,) = describe_limits([worse])
        assert words in note
        assert describe_limits([worse, face]) == describe_limits([face, worse]) == []


def test_one_open_eye_is_enough(face: Face) -> None:
    assert describe_limits([replace(face, eyes=np.array([0.1, 0.9]))]) == []
