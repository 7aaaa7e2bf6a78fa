"""The face tracker on an image of an astronaut: moved, rolled and hidden, and as mediapipe tracks it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from skimage.data import astronaut

from s3dnerf.face.landmarks import to_pixels
from s3dnerf.face.tracker import FaceTracker

REFERENCES = Path(__file__).with_name("references.npz")
"""Made by tools/make_face_references.py."""


@pytest.fixture(scope="module")
def face() -> np.ndarray:
    return next(FaceTracker().track([astronaut()]))


def test_landmarks_match_mediapipe() -> None:
    person = astronaut()[:256, 96:352]
    found = list(FaceTracker().track([person] * 4))[-1]
    with np.load(REFERENCES) as stored:
        expected = stored["fine"]
    # In pixels of 256.
    assert np.linalg.norm((found - expected)[:, :2], axis=1).mean() * 128 < 0.3
    assert np.abs(found - expected)[:, 2].mean() * 128 < 0.3


def test_tracker_tracks_a_moving_face(face: np.ndarray) -> None:
    frames = [np.roll(astronaut(), (step, 2 * step), axis=(0, 1))[:400] for step in range(8)]
    found = [to_pixels(one, (400, 512)) for one in FaceTracker().track(frames)]
    still = to_pixels(face, (512, 512))
    for step, pixels in enumerate(found):
        assert np.abs(pixels[:, :2] - still[:, :2] - [2 * step, step]).mean() < 2.5


def test_tracker_yields_none_without_a_face() -> None:
    grey = np.full((512, 512, 3), 128, np.uint8)
    found = list(FaceTracker().track([grey, astronaut(), astronaut(), grey, astronaut()]))
    assert [one is not None for one in found] == [False, True, True, False, True]


def test_first_frame_is_settled() -> None:
    still = [astronaut()] * 8
    tracker = FaceTracker()
    found = np.stack([to_pixels(one, (512, 512))[:, :2] for one in tracker.track(still)])
    tracker.reset()
    again = to_pixels(next(tracker.track(still[:1])), (512, 512))[:, :2]
    # The face is 160 pixels high; the first pass of the mesh differs from the eighth by 1.0 pixels.
    assert np.linalg.norm(found[0] - found[-1], axis=1).mean() < 0.5
    assert np.linalg.norm(again - found[-1], axis=1).mean() < 0.5


def test_autocast_does_not_change_the_landmarks(face: np.ndarray) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        np.testing.assert_array_equal(next(FaceTracker().track([astronaut()])), face)


def test_reset_lets_the_tracker_find_a_face_elsewhere(face: np.ndarray) -> None:
    moved = np.roll(astronaut(), (150, 190), axis=(0, 1))
    tracker = FaceTracker()
    next(tracker.track([astronaut()]))
    tracker.reset()
    found = to_pixels(next(tracker.track([moved])), (512, 512))
    assert np.abs(found - to_pixels(face, (512, 512)) - [190, 150, 0])[:, :2].mean() < 2.0


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_rolled_heads_are_tracked(face: np.ndarray, turns: int) -> None:
    # np.rot90 turns counterclockwise: (u, v) becomes (v, -u).
    found = next(FaceTracker().track([np.ascontiguousarray(np.rot90(astronaut(), turns))]))
    expected = face[:, :2]
    for _ in range(turns):
        expected = np.stack([expected[:, 1], -expected[:, 0]], 1)
    assert np.linalg.norm(found[:, :2] - expected, axis=1).mean() * 256 < 1.5
