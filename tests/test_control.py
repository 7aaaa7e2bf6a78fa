"""Controls of motion: scales, views, blinks and frame rates."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from s3dnerf.control import (
    Controls,
    MotionFrame,
    choose_blinks,
    count_output_frames,
    read_controls,
    resample_motion,
)
from s3dnerf.errors import UserError
from s3dnerf.face.camera import HeadPose
from s3dnerf.face.regions import BROWS, JAW_AND_CHEEKS, LIPS, NOSE, REST
from s3dnerf.face.regions import EYES as EYE_REGION
from s3dnerf.render_options import RenderOptions

EYES = np.array([1.0, 0.9], np.float32)
FRONT = HeadPose(np.eye(3, dtype=np.float32)[None], np.full(1, 0.4, np.float32), np.zeros((1, 2), np.float32))


def make_frames(count: int) -> list[MotionFrame]:
    return [(torch.full((6, 4), float(number)), FRONT, EYES + 0.01 * number) for number in range(count)]


def apply(controls: Controls, count: int = 3) -> list[MotionFrame]:
    return list(controls.apply(make_frames(count), torch.full((6, 4), -1.0), torch.full((6, 4), 5.0), FRONT))


def test_scales_work_about_closed_lips_and_the_portrait() -> None:
    codes = apply(Controls(lip_scale=0.0, expression_scale=2.0))[2][0]
    assert (codes[[LIPS, JAW_AND_CHEEKS, NOSE, REST]] == -1.0).all()
    assert (codes[[BROWS, EYE_REGION]] == 5.0 + 2.0 * (2.0 - 5.0)).all()
    codes = apply(Controls(lip_scale=1.5))[2][0]
    assert (codes[LIPS] == -1.0 + 1.5 * 3.0).all() and (codes[BROWS] == 2.0).all()


def test_without_controls_nothing_changes() -> None:
    assert not Controls().has_effect
    for frame, given in zip(apply(Controls()), make_frames(3), strict=True):
        assert torch.equal(frame[0], given[0]) and frame[1] is given[1]
        np.testing.assert_array_equal(frame[2], given[2])


def test_overrides_change_in_time(tmp_path: Path) -> None:
    path = tmp_path / "overrides.json"
    path.write_text(json.dumps([{"seconds": 0, "lip_scale": 0}, {"seconds": 0.08, "lip_scale": 1, "eye_openness": 0}]))
    controls = read_controls(RenderOptions(overrides=path, lip_scale=3.0))
    frames = apply(controls)
    assert [float(frame[0][LIPS, 0]) for frame in frames] == pytest.approx([-1.0, -1.0 + 0.5 * 2.0, 2.0])
    np.testing.assert_array_equal(frames[2][2], 0.0)


def test_a_camera_turns_and_zooms_the_right_way(tmp_path: Path) -> None:
    path = tmp_path / "camera.json"
    for name, value, expected in (
        ("yaw", 20.0, [0.0, 20.0, 0.0]),
        ("pitch", 10.0, [-10.0, 0.0, 0.0]),
        ("roll", 15.0, [0.0, 0.0, -15.0]),
    ):
        path.write_text(json.dumps([{"seconds": 0, name: value}]))
        pose = apply(read_controls(RenderOptions(camera=path)), 1)[0][1]
        angles = Rotation.from_matrix(pose.rotation[0]).as_rotvec(degrees=True)
        np.testing.assert_allclose(angles, expected, atol=0.01)
    path.write_text(json.dumps([{"seconds": 0, "zoom": 1.1}]))
    pose = apply(read_controls(RenderOptions(camera=path)), 1)[0][1]
    assert pose.scale[0] == pytest.approx(0.44, rel=1e-3)


def test_the_orbit_goes_to_both_sides_and_comes_back() -> None:
    frames = apply(read_controls(RenderOptions(camera="orbit")), 151)
    yaw = [Rotation.from_matrix(frame[1].rotation[0]).as_rotvec(degrees=True)[1] for frame in frames]
    assert max(yaw) == pytest.approx(20.0, abs=0.5) and min(yaw) == pytest.approx(-20.0, abs=0.5)
    assert yaw[0] == pytest.approx(0.0, abs=0.01) and yaw[150] == pytest.approx(0.0, abs=0.01)


@pytest.mark.parametrize(("fps", "frames"), [(24, 24), (25, 25), (30, 30), (50, 50), (60, 60)])
def test_another_rate_keeps_the_time(fps: int, frames: int) -> None:
    resampled = list(resample_motion(iter(make_frames(25)), fps))
    assert len(resampled) == frames == count_output_frames(25, fps)
    codes = np.array([float(frame[0][0, 0]) for frame in resampled])
    expected = np.clip((np.arange(frames) + 0.5) * 25 / fps - 0.5, 0, 24)
    np.testing.assert_allclose(codes, expected, atol=1e-4)
    eyes = np.array([frame[2][0] for frame in resampled])
    np.testing.assert_allclose(eyes, 1.0 + 0.01 * expected, atol=1e-5)


@pytest.mark.parametrize("count", [1, 2, 3, 7, 28])
@pytest.mark.parametrize("fps", [24, 30, 50, 60])
def test_any_length_has_as_many_frames_as_are_counted(count: int, fps: int) -> None:
    assert len(list(resample_motion(iter(make_frames(count)), fps))) == count_output_frames(count, fps)
    assert abs(count_output_frames(count, fps) / fps - count / 25) <= 0.5 / fps + 1e-9


def test_a_turn_is_interpolated_on_the_sphere() -> None:
    turned = replace(FRONT, rotation=Rotation.from_rotvec([[0, 0.4, 0]]).as_matrix().astype(np.float32))
    frames = [(torch.zeros(6, 4), FRONT, EYES), (torch.zeros(6, 4), turned, EYES)]
    middle = list(resample_motion(iter(frames), 50))[1][1]
    np.testing.assert_allclose(Rotation.from_matrix(middle.rotation[0]).as_rotvec(), [0, 0.1, 0], atol=1e-5)


@pytest.mark.parametrize(("rate", "expected"), [(6, 6), ("20", 20), (40, 40)])
def test_blinks_come_at_their_rate(rate: object, expected: float) -> None:
    closed = np.array([eyes[0] for eyes in islice(choose_blinks(EYES, rate, 0), 20 * 60 * 25)]) < 0.5
    count = np.count_nonzero(np.diff(closed.astype(int)) == 1) / 20
    assert count == pytest.approx(expected, rel=0.15)


@pytest.mark.parametrize("blink", ["off", 0, "0"])
def test_without_blinks_eyes_stay(blink: object) -> None:
    np.testing.assert_array_equal(list(islice(choose_blinks(EYES, blink, 0), 500)), [EYES] * 500)


def test_blinks_of_a_file_come_at_their_times(tmp_path: Path) -> None:
    path = tmp_path / "blinks.json"
    path.write_text("[2, 0.4, 2.1]")
    eyes = np.array([eyes[0] for eyes in islice(choose_blinks(EYES, path, 0), 100)])
    starts = np.flatnonzero((eyes[1:] < 1.0) & (eyes[:-1] == 1.0)) + 1
    np.testing.assert_array_equal(starts, [10, 50])


@pytest.mark.parametrize("content", ["{}", "[true]", '["a"]', "[-1]", "no"])
def test_a_file_without_times_is_refused(content: str, tmp_path: Path) -> None:
    path = tmp_path / "blinks.json"
    path.write_text(content)
    with pytest.raises(UserError, match="blinks.json"):
        choose_blinks(EYES, path, 0)
