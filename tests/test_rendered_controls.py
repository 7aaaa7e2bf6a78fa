"""What the controls do to frames of the shipped model."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from skimage.data import astronaut

import s3dnerf
from s3dnerf.encoded_portrait import EncodedPortrait
from s3dnerf.errors import UserError
from s3dnerf.face.landmarks import to_pixels
from s3dnerf.face.points import KEPT_POINTS
from s3dnerf.face.search import detect_faces
from s3dnerf.geometry import measure_normals, render_depth
from s3dnerf.media.audio import read_speech
from s3dnerf.media.image import write_image
from s3dnerf.media.video import probe_video
from s3dnerf.mesh import make_mesh, save_mesh
from s3dnerf.pipeline import TalkingHeadPipeline
from s3dnerf.render_options import RenderOptions
from s3dnerf.structures import Camera

STILL = RenderOptions(pose="static", blink="off")
SPEECH = (read_speech(Path(s3dnerf.__file__).parent / "assets" / "speech.wav")[:16000], 16000)
NOSE_TIP, NOSE_BRIDGE = 1, 168
LIPS = 13, 14
"""The middle of the inner lips, upper and lower."""


@pytest.fixture(scope="module")
def pipeline(one_thread: None) -> TalkingHeadPipeline:
    return TalkingHeadPipeline.from_pretrained(device="cpu")


@pytest.fixture(scope="module")
def portrait(pipeline: TalkingHeadPipeline) -> EncodedPortrait:
    return pipeline.encode_portrait(astronaut(), STILL)


@pytest.fixture(scope="module")
def say(pipeline: TalkingHeadPipeline, portrait: EncodedPortrait) -> Callable[..., list[np.ndarray]]:
    """Return a function that renders frames of the second of speech, with the face found once."""

    def render(frames: int, every: int = 1, **options: object) -> list[np.ndarray]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("s3dnerf.pipeline.find_face", lambda *given, **named: portrait.face)
            return list(islice(pipeline(astronaut(), SPEECH, STILL, **options), 0, frames, every))

    return render


def find_points(frame: np.ndarray) -> np.ndarray:
    """Return the landmarks in pixels."""
    return to_pixels(detect_faces(frame)[0], frame.shape[:2])[:, :2]


def measure_gap(frame: np.ndarray) -> float:
    """Return the height of the opening between the lips in pixels."""
    upper, lower = find_points(frame)[list(LIPS), 1]
    return float(lower - upper)


def test_a_camera_moves_the_nose_the_right_way_by_the_right_amount(
    say: Callable[..., list[np.ndarray]], portrait: EncodedPortrait, tmp_path: Path
) -> None:
    path = tmp_path / "camera.json"
    path.write_text(json.dumps([{"seconds": 0, "yaw": 20}]))
    straight, turned = (find_points(say(1, camera=camera)[0]) for camera in (None, path))
    # How far the tip of the nose is in front of the bridge: what a turn moves to the side.
    moved = [points[NOSE_TIP, 0] - points[NOSE_BRIDGE, 0] for points in (straight, turned)]
    landmarks = portrait.face.landmarks
    index = [list(KEPT_POINTS).index(point) for point in (NOSE_TIP, NOSE_BRIDGE)]
    forward = float(landmarks[index[0], 2] - landmarks[index[1], 2])
    expected = np.sin(np.radians(20.0)) * forward * float(portrait.face.pose.scale[0]) * 128
    assert moved[1] - moved[0] == pytest.approx(expected, rel=0.4)
    assert expected > 3.0


def test_the_mouth_stays_closed_or_opens_wider(say: Callable[..., list[np.ndarray]]) -> None:
    closed, usual, wide = ([measure_gap(frame) for frame in say(21, 20, lip_scale=scale)] for scale in (0.0, 1.0, 2.0))
    assert max(closed) - min(closed) < 1.0
    assert max(usual) - min(usual) > 3.0
    assert max(wide) > max(usual) + 1.0


def test_backgrounds_are_replaced(say: Callable[..., list[np.ndarray]], tmp_path: Path) -> None:
    write_image(tmp_path / "blue.png", np.full((40, 60, 3), (0, 0, 200), np.uint8))
    kept, blurred, blue, clear = (
        say(1, background=background)[0] for background in ("keep", "blur", tmp_path / "blue.png", "transparent")
    )
    assert not clear[[0, 0], [0, -1], 3].any() and clear[128, 128, 3] == 255
    np.testing.assert_allclose(blue[0, 0], (0, 0, 200), atol=2)
    face = np.s_[110:150, 100:150]
    assert np.abs(blue[face].astype(int) - kept[face]).mean() < 3.0
    corner = np.s_[:40, :40]
    assert (
        np.abs(np.diff(blurred[corner].astype(int), axis=0)).mean()
        < 0.5 * np.abs(np.diff(kept[corner].astype(int), axis=0)).mean()
    )


def test_the_image_stands_beside_the_video(say: Callable[..., list[np.ndarray]], portrait: EncodedPortrait) -> None:
    frame = say(1, side_by_side=True)[0]
    assert frame.shape == (256, 512, 3)
    np.testing.assert_array_equal(frame[:, :256], portrait.face.image)
    np.testing.assert_array_equal(frame[:, 256:], say(1)[0])


@pytest.mark.parametrize(("fps", "frames"), [(24, 24), (60, 60)])
def test_a_file_of_another_rate_lasts_as_long(
    fps: int,
    frames: int,
    pipeline: TalkingHeadPipeline,
    portrait: EncodedPortrait,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("s3dnerf.pipeline.find_face", lambda *given, **named: portrait.face)
    monkeypatch.setattr(
        pipeline, "render_batch", lambda identity, chunk, *rest: torch.zeros(len(chunk), 256, 256, 3, dtype=torch.uint8)
    )
    pipeline(astronaut(), SPEECH, STILL, fps=fps).save(tmp_path / "video.mp4")
    info = probe_video(tmp_path / "video.mp4")
    assert info.fps == pytest.approx(fps) and info.frames == frames
    assert info.duration == pytest.approx(1.0, abs=0.05)


def test_the_nose_is_nearer_than_the_cheeks(pipeline: TalkingHeadPipeline, portrait: EncodedPortrait) -> None:
    identity = portrait.identity
    with torch.inference_mode(), pipeline.autocast():
        depth, alpha = render_depth(pipeline.model, identity, identity.source_motion, identity.eyes, identity.camera)
    points = (find_points(portrait.face.image) / 2).astype(int)
    nose, left, right = (float(depth[0, 0, points[index, 1], points[index, 0]]) for index in (NOSE_TIP, 234, 454))
    assert nose > left + 0.2 and nose > right + 0.2
    assert float(alpha[0, 0, points[NOSE_TIP, 1], points[NOSE_TIP, 0]]) > 0.9
    assert float(alpha[0, 0, 0, 0]) < 0.1


def test_a_slope_has_its_normal() -> None:
    camera = Camera(torch.eye(3)[None], torch.tensor([0.5]), torch.zeros(1, 2))
    # Two units of the image are four head units, 64 pixels: depth rises by half a unit for each to the right.
    depth = (0.5 * 4.0 / 64 * torch.arange(64.0)).expand(1, 1, 64, 64)
    normal = measure_normals(depth, camera)[0, :, 32, 32]
    expected = torch.tensor([-0.5, 0.0, 1.0]) / np.sqrt(1.25)
    torch.testing.assert_close(normal, expected.float(), atol=1e-5, rtol=0)


def test_a_mesh_is_a_head(pipeline: TalkingHeadPipeline, portrait: EncodedPortrait, tmp_path: Path) -> None:
    trimesh = pytest.importorskip("trimesh")
    mesh = make_mesh(pipeline.model, portrait, 48)
    size = np.ptp(mesh.vertices, axis=0)
    assert (size > [0.9, 1.3, 0.4]).all() and (size < [2.1, 2.8, 1.6]).all()
    # The frontmost point is about the nose, and the surface faces the viewer there.
    front = mesh.vertices[:, 2].argmax()
    assert np.abs(mesh.vertices[front, :2]).max() < 0.4
    assert mesh.vertex_normals[front, 2] > 0.5
    for name in ("head.ply", "head.glb"):
        save_mesh(mesh, tmp_path / name)
        loaded = trimesh.load(tmp_path / name, force="mesh")
        assert len(loaded.faces) == len(mesh.faces)
        assert np.ptp(np.asarray(loaded.visual.vertex_colors)[:, :3]) > 100
    with pytest.raises(UserError, match="no format of meshes"):
        save_mesh(mesh, tmp_path / "head.doc")
