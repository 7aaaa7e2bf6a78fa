"""The check of metrics on real clips: angles, tables, and agreement with MediaPipe's own landmarks."""

from __future__ import annotations

import importlib
from itertools import islice
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from s3dnerf.data.clip import load_clip
from s3dnerf.evaluation.tracking import FaceTrackRecorder
from s3dnerf.face.camera import fit_head_pose, load_canonical_face
from s3dnerf.face.landmarks import to_pixels
from s3dnerf.media.video import stream_frames
from s3dnerf.metrics import measure_theval

TOOLS = Path(__file__).resolve().parents[1] / "tools"


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(TOOLS)
        return importlib.import_module("check_metrics")


def test_angles_of_a_projected_face_are_found(tool: ModuleType) -> None:
    turns = Rotation.from_euler("xyz", [[0, 0, 0], [8, -15, 4], [-5, 20, -9]], degrees=True)
    # Four head units in front of a camera with a focal length of 256 pixels; y and z of a camera point down and away.
    heads = load_canonical_face() @ np.swapaxes(turns.as_matrix(), 1, 2) * [1, -1, -1] + [0.1, -0.2, 4.0]
    landmarks = np.concatenate([256 * heads[..., :2] / heads[..., 2:] + 128, np.full((1, 478, 2), np.nan)])
    found = tool.fit_angles(landmarks)
    np.testing.assert_allclose(np.degrees(found[:3]), np.degrees(turns.as_rotvec()), atol=0.1)
    assert np.isnan(found[3]).all()


def test_tables_state_means_and_correlation(tool: ModuleType) -> None:
    pairs = [{"head": (1.0 + clip, 2.0 + 2 * clip), "lips": (np.nan, 1.0)} for clip in range(4)]
    lines = tool.format_agreement(pairs).splitlines()
    assert lines[2] == "| head | 2.5 | 5 | 0.500 | 1.000 | 1.000 | 4 |"
    assert lines[3] == "| lips | - | - | - | - | - | 0 |"
    lines = tool.format_means("sound", {"own": [1.0, np.nan, 2.0], "none": [np.nan]}).splitlines()
    assert lines[2:] == ["| own | 1.500 | 1.000 | 2.000 | 2 |", "| none | - | - | - | 0 |"]


def test_clips_are_compared_with_those_of_other_people(tool: ModuleType, speaking_clips: Path) -> None:
    clips = [load_clip(speaking_clips / name) for name in ("ida_0", "jim_0", "kit_0")]
    sound, lips = (table.splitlines() for table in tool.compare_others(clips))
    # Cartoons open their mouths as loud as they speak.
    assert read_mean(sound[2]) < 0.7 * read_mean(sound[3])
    assert 0 < read_mean(lips[2]) < read_mean(lips[3])
    assert [line.split("|")[-2].strip() for line in (*sound[2:], *lips[2:])] == ["3", "6", "3", "3", "6"]


def read_mean(line: str) -> float:
    return float(line.split("|")[2])


@pytest.mark.slow
def test_a_real_clip_measures_the_same_by_both(tool: ModuleType, shared_data: Path) -> None:
    frames = list(islice(stream_frames(shared_data / "clips" / "hdtf_AmyKlobuchar_0.mp4"), 40))
    recorder = FaceTrackRecorder()
    for frame in frames:
        recorder.add(frame)
    track = recorder.finish()
    points = to_pixels(track.fine, track.size)
    rotation = Rotation.from_matrix(fit_head_pose(points).rotation).as_rotvec()
    pytest.importorskip("mediapipe", reason="mediapipe is not installed")
    seen = tool.track_by_mediapipe(frames)
    speech = np.random.default_rng(0).normal(0, 0.1, 40 * 640) * np.repeat(np.sin(np.arange(40)) ** 2, 640)
    is_speech = np.arange(40) < 30
    ours = measure_theval(points[..., :2], rotation, speech, is_speech)
    theirs = measure_theval(seen, tool.fit_angles(seen), speech, is_speech)
    assert ours["head_dynamics"] == pytest.approx(theirs["head_dynamics"], rel=0.1)
    assert ours["brow_dynamics"] == pytest.approx(theirs["brow_dynamics"], rel=0.2)
    assert ours["lip_dynamics"] == pytest.approx(theirs["lip_dynamics"], rel=0.3)
    assert ours["loudness_mismatch"] == pytest.approx(theirs["loudness_mismatch"], abs=0.05)
    assert np.isfinite(list(ours.values())).all() and np.isfinite(list(theirs.values())).all()
