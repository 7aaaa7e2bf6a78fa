"""Motion states: head, eyes and mouth continue from one utterance to the next."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from s3dnerf.errors import UserError
from s3dnerf.face.camera import HeadPose
from s3dnerf.face.motion import iterate_blinks, iterate_idle_motion, rotate_head
from s3dnerf.face.motion_state import (
    HEAD_BLEND_FRAMES,
    MOUTH_BLEND_FRAMES,
    MotionState,
    blend_eye_openness,
    blend_head_motion,
    blend_mouth_motion,
    read_state,
    relative_head_pose,
    write_state,
)

STATE = MotionState(
    pose="idle",
    seed=3,
    pose_frames=40,
    blink="auto",
    blink_frames=40,
    turn=(0.1, -0.2, 0.05),
    shift=(0.1, -0.05),
    zoom=0.08,
    eyes=(0.4, 0.5),
    mouth=((1.0, 2.0, 3.0), (-1.0, 0.5, 0.0)),
)


@pytest.fixture
def portrait() -> HeadPose:
    rotation = Rotation.from_euler("xyz", [[5.0, -20.0, 3.0]], degrees=True).as_matrix().astype(np.float32)
    return HeadPose(rotation, np.float32([0.7]), np.float32([[0.1, -0.05]]))


def measure_track(portrait: HeadPose, poses: list[HeadPose]) -> np.ndarray:
    """Turn, shift and zoom ``[T, 6]``."""
    return np.array([np.hstack(relative_head_pose(portrait, pose)) for pose in poses])


def test_json_round_trip_is_exact(tmp_path: Path) -> None:
    assert MotionState.from_dict(json.loads(json.dumps(STATE.to_dict()))) == STATE
    write_state(tmp_path / "new" / "state.json", STATE)
    assert read_state(tmp_path / "new" / "state.json") == STATE


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"turn": [0.0, 1.0]}, "turn must hold 3 finite numbers"),
        ({"turn": [0.0, 1.0, float("nan")]}, "turn must hold 3 finite"),
        ({"zoom": "1"}, "zoom must hold 1 finite"),
        ({"pose_frames": -1}, "pose_frames must be a whole number"),
        ({"blink_frames": 1.5}, "blink_frames must be a whole number"),
        ({"seed": True}, "seed must be a whole number"),
        ({"pose": None}, "pose must be text"),
        ({"mouth": []}, "mouth must hold rows"),
        ({"mouth": [[1.0], [1.0, 2.0]]}, "same length"),
        ({"more": 1}, "expected the fields"),
    ],
)
def test_invalid_states_raise_one_line(tmp_path: Path, change: dict[str, object], reason: str) -> None:
    path = tmp_path / "state.json"
    path.write_text(json.dumps({**STATE.to_dict(), **change}))
    with pytest.raises(UserError, match=reason) as caught:
        read_state(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


@pytest.mark.parametrize("text", ["", "[1]", "no json", "[" * 20000])
def test_other_files_raise(tmp_path: Path, text: str) -> None:
    path = tmp_path / "state.json"
    path.write_text(text)
    with pytest.raises(UserError, match="is no motion state"):
        read_state(path)
    with pytest.raises(UserError, match="cannot be read"):
        read_state(tmp_path / "missing.json")


def test_idle_motion_continues_unchanged(portrait: HeadPose) -> None:
    whole = list(islice(iterate_idle_motion(portrait, 3), 120))
    turn, shift, zoom = relative_head_pose(portrait, whole[49])
    state = replace(STATE, turn=tuple(turn), shift=tuple(shift), zoom=zoom)
    rest = list(islice(blend_head_motion(iterate_idle_motion(portrait, 3, start=49), portrait, state), 70))
    for expected, pose in zip(whole[50:], rest, strict=True):
        np.testing.assert_array_equal(pose.rotation, expected.rotation)
        np.testing.assert_array_equal(pose.center, expected.center)
        np.testing.assert_array_equal(pose.scale, expected.scale)


@pytest.mark.parametrize("turn", [(0.0, 0.0), (20.0, -5.0)])
def test_another_motion_is_blended_from_the_last_pose(portrait: HeadPose, turn: tuple[float, float]) -> None:
    course = list(islice(iterate_idle_motion(rotate_head(portrait, *turn), 8), 80))
    eased = list(islice(blend_head_motion(iter(course), portrait, STATE), 79))
    track = measure_track(portrait, eased)
    ended = np.hstack([STATE.turn, STATE.shift, STATE.zoom])
    steps = np.abs(np.diff(np.vstack([ended, track]), axis=0))
    largest = np.abs(measure_track(portrait, course)[0] - ended).max()
    # The first step is small, and none is larger than the largest of a smooth step.
    assert steps[0].max() < 0.2 * largest / HEAD_BLEND_FRAMES + 0.002
    assert steps.max() < 2.0 * largest / HEAD_BLEND_FRAMES + 0.01
    for expected, pose in zip(course[HEAD_BLEND_FRAMES:], eased[HEAD_BLEND_FRAMES - 1 :], strict=True):
        np.testing.assert_array_equal(pose.rotation, expected.rotation)
        np.testing.assert_array_equal(pose.center, expected.center)


def test_blinks_continue_and_half_closed_eyes_open_gradually() -> None:
    openness = np.array([0.9, 0.8])
    whole = np.array(list(islice(iterate_blinks(openness, 5), 400)))
    lowest = int(whole[:, 0].argmin())
    state = replace(STATE, eyes=tuple((whole[lowest] / openness).tolist()))
    rest = list(islice(blend_eye_openness(islice(iterate_blinks(openness, 5), lowest, None), openness, state), 50))
    np.testing.assert_array_equal(rest, whole[lowest + 1 : lowest + 51])
    other = np.array(list(islice(blend_eye_openness(iter([openness] * 30), openness, state), 29)))
    steps = np.diff(np.vstack([whole[lowest], other]), axis=0)
    assert np.abs(steps).max() <= np.abs(np.diff(whole, axis=0)).max()
    np.testing.assert_allclose(other[8:], np.broadcast_to(openness, (21, 2)), rtol=1e-6)


def test_mouth_is_blended_from_its_last_code() -> None:
    codes = torch.zeros(10, 2, 3)
    eased = blend_mouth_motion(codes, STATE)
    last = torch.tensor(STATE.mouth)
    shares = [float(code[0, 0] / last[0, 0]) for code in eased]
    assert 0.8 < shares[0] < 1.0 and shares == sorted(shares, reverse=True)
    assert torch.equal(eased[MOUTH_BLEND_FRAMES:], codes[MOUTH_BLEND_FRAMES:]) and not codes.any()
    assert len(blend_mouth_motion(codes[:2], STATE)) == 2
    with pytest.raises(UserError, match="2 x 3 numbers, the model has 2 x 5"):
        blend_mouth_motion(torch.zeros(4, 2, 5), STATE)
