"""Files of head motion: a round trip, and files that hold something else."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from scipy.spatial.transform import Rotation

from s3dnerf.errors import UserError
from s3dnerf.face.camera import HeadPose
from s3dnerf.face.head_motion import choose_head_motion
from s3dnerf.face.motion_file import read_motion, write_motion


def make_motion(frames: int = 20) -> HeadPose:
    turns = Rotation.from_rotvec(np.linspace([0, 0, 0], [0.1, 0.2, 0.0], frames)).as_matrix().astype(np.float32)
    return HeadPose(turns, np.full(frames, 0.4, np.float32), np.zeros((frames, 2), np.float32))


def test_motion_is_read_as_it_was_written(tmp_path: Path) -> None:
    motion = make_motion()
    write_motion(tmp_path / "motion.safetensors", motion)
    for name, part in vars(read_motion(tmp_path / "motion.safetensors")).items():
        np.testing.assert_array_equal(part, getattr(motion, name))


def test_a_head_moves_as_the_file_says(tmp_path: Path) -> None:
    motion = make_motion()
    write_motion(tmp_path / "motion.safetensors", motion)
    poses = list(islice(choose_head_motion(motion[:1], tmp_path / "motion.safetensors", 0)(), 20))
    np.testing.assert_allclose(HeadPose.concatenate(poses).rotation, motion.rotation, atol=1e-5)


@pytest.mark.parametrize(
    "change",
    [
        {"scale": np.ones(3, np.float32)},
        {"rotation": 2.0 * make_motion().rotation},
        {"rotation": make_motion().rotation * np.array([1.0, 1.0, -1.0], np.float32)},
        {"scale": np.zeros(20, np.float32)},
        {"center": np.full((20, 2), np.nan, np.float32)},
    ],
)
def test_other_arrays_are_refused(change: dict[str, np.ndarray], tmp_path: Path) -> None:
    path = tmp_path / "motion.safetensors"
    save_file({**vars(make_motion()), **change}, path)
    with pytest.raises(UserError, match="motion.safetensors"):
        read_motion(path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.safetensors").write_text("no motion")
    save_file({"scale": np.ones(3, np.float32)}, tmp_path / "part.safetensors")
    for name in ("text.safetensors", "part.safetensors", "none.safetensors"):
        with pytest.raises(UserError, match="holds no head motion"):
            read_motion(tmp_path / name)
