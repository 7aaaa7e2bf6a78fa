"""Motion from speech for a portrait: poses, lids and brows in step, limits, brow codes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

import s3dnerf
from s3dnerf.face.camera import HeadPose
from s3dnerf.face.coefficients import MotionCoefficients
from s3dnerf.face.motion_limits import MAX_ROTATION_DEGREES
from s3dnerf.face.regions import BROWS
from s3dnerf.media.audio import count_frames, measure_level, stream_clean_speech
from s3dnerf.models.s3dnerf.s3dnerf import S3DNeRF
from s3dnerf.pipeline import SHIPPED_WEIGHTS
from s3dnerf.speech_motion import (
    BROW_POINTS,
    displace_face,
    drive_portrait,
    encode_expression,
    iterate_brow_codes,
    iterate_eyes,
    iterate_head_poses,
    replace_brows,
    stream_motion,
)

SPEECH = Path(s3dnerf.__file__).parent / "assets" / "speech.wav"


def make_motion(frames: int, **channels: np.ndarray) -> MotionCoefficients:
    values = {
        "expression": np.zeros((frames, 24), np.float32),
        "pose": np.zeros((frames, 6), np.float32),
        "eyes": np.ones((frames, 2), np.float32),
        "gaze": np.zeros((frames, 2), np.float32),
    }
    return MotionCoefficients(**{**values, **{name: value.astype(np.float32) for name, value in channels.items()}})


def make_pose(yaw: float = 0.0) -> HeadPose:
    rotation = Rotation.from_euler("y", yaw, degrees=True).as_matrix()[None].astype(np.float32)
    return HeadPose(rotation, np.array([0.5], np.float32), np.zeros((1, 2), np.float32))


@pytest.fixture(scope="module")
def model() -> S3DNeRF:
    return S3DNeRF.load(SHIPPED_WEIGHTS)


def make_identity(model: S3DNeRF) -> SimpleNamespace:
    landmarks = model.canonical_landmarks[None].clone()
    motion = model.motion_encoder(model.source_expression(landmarks - model.canonical_landmarks))
    return SimpleNamespace(landmarks=landmarks, source_motion=0.5 * motion)


def test_poses_are_relative_to_the_first_and_small_motion_is_unchanged() -> None:
    pose = np.zeros((5, 6))
    pose[:, 1] = np.radians([0.0, 1.0, 2.0, 3.0, 4.0])
    blocks = [make_motion(3, pose=pose[:3]), make_motion(2, pose=pose[3:])]
    source = make_pose()
    poses = list(iterate_head_poses(blocks, make_pose(10.0), source))
    assert len(poses) == 5 and all(len(one) == 1 for one in poses)
    turns = [Rotation.from_matrix(one.rotation[0]).as_euler("yxz", degrees=True)[0] for one in poses]
    np.testing.assert_allclose(turns, [10, 11, 12, 13, 14], atol=1e-3)


def test_poses_stay_within_what_the_portrait_shows() -> None:
    pose = np.zeros((1, 6))
    pose[:, 1] = np.radians(80.0)
    (held,) = iterate_head_poses([make_motion(1, pose=pose)], make_pose(), make_pose())
    assert Rotation.from_matrix(held.rotation[0]).magnitude() < np.radians(MAX_ROTATION_DEGREES)


def test_lids_move_about_those_of_the_portrait_and_never_cross() -> None:
    eyes = np.array([[1.0, 1.0], [0.5, 0.0], [-0.2, 1.2]])
    openness = list(iterate_eyes([make_motion(3, eyes=eyes)], np.array([0.8, 0.6], np.float32)))
    np.testing.assert_allclose(openness, [[0.8, 0.6], [0.4, 0.0], [0.0, 0.72]], atol=1e-6)


def test_resting_brows_have_the_code_of_the_portrait(model: S3DNeRF) -> None:
    identity = make_identity(model)
    (code,) = iterate_brow_codes([make_motion(1)], model, identity)
    torch.testing.assert_close(code, identity.source_motion[0, BROWS], atol=1e-5, rtol=0)


def test_raised_brows_change_the_code_as_raised_landmarks_do(model: S3DNeRF) -> None:
    from s3dnerf.face.expression_basis import load_shipped_basis

    identity = make_identity(model)
    lift = load_shipped_basis().components[:, BROW_POINTS, 1].mean(axis=1)
    expression = (0.05 * lift / np.square(lift).sum())[None]
    frames = np.repeat(expression, 60, axis=0)
    frames[0] = 0.0
    *_, code = iterate_brow_codes(
        [make_motion(30, expression=part) for part in (frames[:30], frames[30:])], model, identity
    )
    rest = identity.landmarks - model.canonical_landmarks
    raised = model.source_expression(rest)
    raised[:, BROW_POINTS, 1] += 0.05
    moved, still = (model.motion_encoder(x)[0, BROWS] for x in (raised, model.source_expression(rest)))
    change, expected = code - identity.source_motion[0, BROWS], moved - still
    assert torch.nn.functional.cosine_similarity(change, expected, dim=0) > 0.8


def test_brows_begin_as_they_are_in_the_portrait(model: S3DNeRF) -> None:
    identity = make_identity(model)
    expression = np.full((60, 24), 0.3)
    codes = list(iterate_brow_codes([make_motion(60, expression=expression)], model, identity))
    torch.testing.assert_close(codes[0], identity.source_motion[0, BROWS], atol=1e-5, rtol=0)
    assert (codes[50] - codes[0]).abs().max() > 1e-2 and torch.equal(codes[50], codes[59])


def test_only_the_code_of_the_brows_is_replaced() -> None:
    motion, brows = torch.zeros(2, 6, 4), torch.ones(2, 4)
    replaced = torch.stack(list(replace_brows(motion, brows)))
    assert torch.equal(replaced[:, BROWS], brows) and replaced.sum() == 8 and motion.sum() == 0


def test_head_lids_and_brows_are_in_step(model: S3DNeRF) -> None:
    pose = np.zeros((4, 6))
    pose[:, 0] = np.radians([0.0, 1.0, 2.0, 3.0])
    eyes = np.repeat(np.array([[1.0], [0.9], [0.8], [0.7]]), 2, axis=1)
    blocks = (make_motion(2, pose=pose[i : i + 2], eyes=eyes[i : i + 2]) for i in (0, 2))
    face = SimpleNamespace(pose=make_pose(), eyes=np.ones(2, np.float32))
    driven = drive_portrait(blocks, model, make_identity(model), face, make_pose())
    together = list(zip(driven.poses, driven.eyes, driven.brows, strict=True))
    assert len(together) == 4
    for number, (head, lids, _) in enumerate(together):
        assert Rotation.from_matrix(head.rotation[0]).magnitude() == pytest.approx(np.radians(number), abs=1e-4)
        assert lids[0] == pytest.approx(1.0 - 0.1 * number)


def test_motion_is_as_long_as_the_video_of_the_recording() -> None:
    class Counter:
        """Returns one frame for each 640 samples, late."""

        samples = given = 0

        def feed(self, sound: np.ndarray) -> MotionCoefficients:
            self.samples += len(sound)
            count = max(0, self.samples // 640 - 50 - self.given)
            self.given += count
            return make_motion(count)

        def finish(self) -> MotionCoefficients:
            return make_motion(-(-self.samples // 640) - self.given)

    level = measure_level(stream_clean_speech(SPEECH))
    blocks = list(stream_motion(Counter(), SPEECH, level))
    assert sum(map(len, blocks)) == count_frames(level.samples) and all(len(block) for block in blocks)
    for frames in (20, 300):
        assert sum(map(len, stream_motion(Counter(), SPEECH, level, frames))) == frames


def test_the_expression_gives_the_codes_of_a_tracked_face(model: S3DNeRF) -> None:
    expression = np.random.default_rng(0).normal(0, 0.05, (3, 24))
    motion = make_motion(3, expression=expression)
    codes = encode_expression([motion[:2], motion[2:]], model, torch.device("cpu"))
    moved = torch.from_numpy(displace_face(motion))
    torch.testing.assert_close(codes, model.motion_encoder(moved).float())
    assert codes.shape[:2] == (3, 6) and not torch.equal(codes[0], codes[1])
