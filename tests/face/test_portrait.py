"""Photographs that lie on their side or stand on their head."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from skimage.data import astronaut

from s3dnerf.face.portrait import count_quarter_turns, find_face

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


def test_quarter_turns_are_those_that_undo_the_roll_of_the_face() -> None:
    points = np.zeros((478, 3))
    for degrees, expected in ((0, 0), (40, 0), (-40, 0), (90, 1), (130, 1), (180, 2), (-90, 3), (-140, 2)):
        angle = np.radians(degrees)
        points[263, :2] = 100 * np.cos(angle), 100 * np.sin(angle)
        assert count_quarter_turns(points) == expected
