"""Photographs that lie on their side or stand on their head."""

from __future__ import annotations

import logging

import cv2
import numpy as np
import pytest
from skimage.data import astronaut

from s3dnerf.face.portrait import count_quarter_turns, detect_upright, find_face
from s3dnerf.face.search import FaceFinder

UPRIGHT = np.ascontiguousarray(astronaut()[:300, 60:400])


@pytest.mark.slow
@pytest.mark.parametrize(("turns", "word"), [(1, "to the right"), (2, "upside down")])
def test_a_turned_photograph_is_turned_upright_with_a_note(
    turns: int, word: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        face = find_face(np.ascontiguousarray(np.rot90(UPRIGHT, turns)), 64)
    np.testing.assert_array_equal(face.picture, UPRIGHT)
    assert f"image: is turned {word}, so that the face is upright" in caplog.text


@pytest.mark.slow
def test_a_small_face_in_a_large_photograph_is_turned_upright() -> None:
    # A head of 66 pixels, which only tiles show large enough.
    picture = np.full((2000, 2600, 3), 120, np.uint8)
    picture[900:1060, 1700:1860] = cv2.resize(astronaut()[:350, 50:400], (160, 160), interpolation=cv2.INTER_AREA)
    face = find_face(np.ascontiguousarray(np.rot90(picture)), 64)
    assert face.picture.shape == picture.shape
    middle = np.array([face.crop.x, face.crop.y]) + face.crop.side / 2
    assert np.abs(middle - [1780, 960]).max() < 40


def test_a_large_picture_without_a_face_is_searched_once_at_its_own_resolution(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    searched = []
    monkeypatch.setattr(FaceFinder, "_detect_tiles", lambda self, level, scale: searched.append(scale) or [])
    _, faces = detect_upright(np.full((300, 1700, 3), 120, np.uint8), "image")
    assert faces == [] and searched == [2.0, 1.0, 2.0, 2.0, 2.0]


def test_quarter_turns_are_those_that_undo_the_roll_of_the_face() -> None:
    points = np.zeros((478, 3))
    for degrees, expected in ((0, 0), (40, 0), (-40, 0), (90, 1), (130, 1), (180, 2), (-90, 3), (-140, 2)):
        angle = np.radians(degrees)
        points[263, :2] = 100 * np.cos(angle), 100 * np.sin(angle)
        assert count_quarter_turns(points) == expected
