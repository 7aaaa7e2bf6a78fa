"""Driving videos with cuts, without faces, shaky or short: made from a public-domain portrait."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from skimage.data import astronaut

from s3dnerf.errors import UserError
from s3dnerf.face.driving_video import ForwardReader, read_driving_motion
from s3dnerf.media.video import VideoWriter, stream_frames

SIDE = 256


def show(x: float, y: float, size: float = 1.0, mirror: bool = False) -> np.ndarray:
    """A frame of SIDE pixels with the center of the face at x, y; the face is about 60 * size pixels wide."""
    picture = astronaut()[:, ::-1] if mirror else astronaut()
    middle = (287 if mirror else 224, 115)
    matrix = np.array([[size, 0, x - size * middle[0]], [0, size, y - size * middle[1]]])
    fill = (200, 60, 30) if mirror else (20, 40, 90)
    return cv2.warpAffine(picture, matrix, (SIDE, SIDE), borderValue=fill)


def write(path: Path, frames: list[np.ndarray]) -> Path:
    with VideoWriter(path, (SIDE, SIDE), crf=12) as writer:
        for frame in frames:
            writer.write(frame)
    return path


def measure_steps(path: Path) -> tuple[object, np.ndarray]:
    """Motion of a video and its steps ``[T - 1, 3]``: degrees, head units, log scale."""
    driving = read_driving_motion(path)
    pose = driving.pose
    turns = np.swapaxes(pose.rotation[:-1], -1, -2).astype(float) @ pose.rotation[1:]
    steps = np.degrees(Rotation.from_matrix(turns).magnitude())
    shifts = np.linalg.norm(np.diff(pose.center, axis=0), axis=1) / pose.scale[0]
    return driving, np.stack([steps, shifts, np.abs(np.diff(np.log(pose.scale)))], axis=1)


def test_motion_continues_across_a_cut_to_another_position_and_size(tmp_path: Path) -> None:
    frames = [show(90 + index, 110) for index in range(12)]
    frames += [show(180 - index, 170, 0.8, mirror=True) for index in range(12)]
    driving, steps = measure_steps(write(tmp_path / "cut.mp4", frames))
    assert driving.cuts == (12,) and driving.missing_faces == 0
    assert driving.describe() == "motion goes on across 1 cut (at 0.5 s)"
    assert len(driving.pose) == 24
    assert (steps.max(axis=0) < [3.0, 0.12, 0.04]).all()
    # To the right, then further back to the left: the second head is smaller and moves by more head sizes.
    x = (driving.pose.center[:, 0] - driving.pose.center[0, 0]) / driving.pose.scale[0]
    assert x[11] > 0.1 and x[-1] < x[11] - 0.1


def test_fast_head_motion_and_flashes_are_not_cuts(tmp_path: Path) -> None:
    frames = [show(128 + 40 * np.sin(index / 2.0), 120) for index in range(14)]
    frames[7] = np.clip(frames[7].astype(int) + 70, 0, 255).astype(np.uint8)
    driving = read_driving_motion(write(tmp_path / "fast.mp4", frames))
    assert driving.cuts == () and driving.describe() == ""


def test_frames_without_a_face_are_bridged(tmp_path: Path) -> None:
    empty = np.full((SIDE, SIDE, 3), 90, np.uint8)
    frames = [empty] * 3 + [show(100, 120)] * 6 + [empty] * 5 + [show(150, 140)] * 6
    driving, steps = measure_steps(write(tmp_path / "gaps.mp4", frames))
    assert driving.missing_faces == 8 and "8 of 20 frames show no face" in driving.describe()
    assert (steps.max(axis=0) < [4.0, 0.3, 0.06]).all()
    assert (steps[:3] < 1e-6).all()


def test_video_with_few_faces_raises(tmp_path: Path) -> None:
    empty = np.full((SIDE, SIDE, 3), 90, np.uint8)
    path = write(tmp_path / "empty.mp4", [show(100, 120)] * 3 + [empty] * 5)
    with pytest.raises(UserError, match="a face is seen in only 3 of 8 frames"):
        read_driving_motion(path)


def test_one_frame_keeps_the_head_still(tmp_path: Path) -> None:
    driving = read_driving_motion(write(tmp_path / "one.mp4", [show(60, 190)]))
    assert len(driving.pose) == 1 and "only one frame" in driving.describe()


def test_reader_only_moves_forward(tmp_path: Path) -> None:
    path = write(tmp_path / "count.mp4", [show(100 + index, 120) for index in range(6)])
    whole = list(stream_frames(path))
    reader = ForwardReader(path)

    def read(start: int, stop: int) -> Iterator[np.ndarray]:
        return reader.read(start, stop)

    np.testing.assert_array_equal(np.stack(list(read(1, 3))), whole[1:3])
    np.testing.assert_array_equal(next(read(4, 6)), whole[4])
    np.testing.assert_array_equal(np.stack(list(read(5, 9))), whole[5:])
    with pytest.raises(ValueError, match="was passed"):
        next(reader.read(2, 4))
