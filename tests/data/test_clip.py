"""Prepared clips: round trip, and errors that name damaged files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from skimage.data import astronaut

from s3dnerf.data.clip import (
    LANDMARK_STEPS,
    Clip,
    decode_landmarks,
    encode_landmarks,
    fit_speech_length,
    list_clips,
    load_clip,
    read_valid,
    save_clip,
    update_sync,
)
from s3dnerf.errors import UserError
from s3dnerf.face.camera import HeadPose
from s3dnerf.face.crop import CropBox
from s3dnerf.face.matting import segment_person
from s3dnerf.face.points import KEPT_POINTS

FRAMES, SIZE = 30, 64


def make_clip(path: Path, split: str = "train") -> Clip:
    random = np.random.default_rng(0)
    walk = random.normal(0, 0.01, (FRAMES, len(KEPT_POINTS), 3)).cumsum(0)
    rotation = Rotation.from_rotvec(random.normal(0, 0.4, (FRAMES, 3))).as_matrix()
    scale = random.uniform(0.6, 0.8, FRAMES)
    center = random.uniform(-0.1, 0.1, (FRAMES, 2))
    return Clip(
        path=path,
        id=path.name,
        person="someone",
        split=split,
        sync="ok",
        frames=FRAMES,
        size=SIZE,
        crop=CropBox(10.25, 20.5, 200.75),
        landmarks=np.clip(random.uniform(-1, 1, (1, len(KEPT_POINTS), 3)) + walk, -3, 3).astype(np.float32),
        pose=HeadPose(*(part.astype(np.float32) for part in (rotation, scale, center))),
        eye_openness=random.uniform(0, 1.2, (FRAMES, 2)).astype(np.float32),
        lip_opening=random.uniform(0, 0.3, FRAMES).astype(np.float32),
        valid=random.random(FRAMES) < 0.9,
        has_speech=True,
        source="someone.mp4",
        frame_size=(480, 640),
        notes="ein Hinweis: größer",
    )


def make_pictures() -> list[np.ndarray]:
    """Frames whose gray level encodes their number."""
    return [np.full((SIZE, SIZE, 3), 20 + 7 * number, np.uint8) for number in range(FRAMES)]


@pytest.fixture
def saved(tmp_path: Path) -> Clip:
    clip = make_clip(tmp_path / "clips" / "someone_0")
    save_clip(clip, make_pictures(), np.sin(np.arange(FRAMES * 640) / 9).astype(np.float32) / 2)
    return clip


def test_clip_round_trip(saved: Clip) -> None:
    clip = load_clip(saved.path)
    for name in ("id", "person", "split", "sync", "frames", "size", "crop", "has_speech", "source", "notes"):
        assert getattr(clip, name) == getattr(saved, name), name
    assert clip.frame_size == (480, 640)
    assert clip.landmarks.dtype == np.float32
    assert clip.landmarks == pytest.approx(saved.landmarks, abs=0.5 / LANDMARK_STEPS + 1e-6)
    assert clip.pose.rotation == pytest.approx(saved.pose.rotation, abs=1e-6)
    assert np.array_equal(clip.pose.scale, saved.pose.scale)
    assert np.array_equal(clip.pose.center, saved.pose.center)
    assert clip.eye_openness == pytest.approx(saved.eye_openness, abs=1e-3)
    assert clip.lip_opening == pytest.approx(saved.lip_opening, abs=2e-4)
    assert np.array_equal(clip.valid, saved.valid) and clip.valid.dtype == bool


def test_frames_and_speech_round_trip(saved: Clip) -> None:
    clip = load_clip(saved.path)
    numbers = [29, 0, 13, 13, 12]
    pictures = clip.read_frames(numbers)
    assert pictures.shape == (5, SIZE, SIZE, 3) and pictures.dtype == np.uint8
    assert pictures.mean((1, 2, 3)) == pytest.approx([20 + 7 * number for number in numbers], abs=2)
    speech = clip.read_speech()
    assert speech.shape == (FRAMES * 640,) and speech.dtype == np.float32
    assert speech == pytest.approx(np.sin(np.arange(FRAMES * 640) / 9) / 2, abs=1 / 32768)


def test_silent_clip_has_no_speech(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "quiet")
    save_clip(clip, make_pictures(), None)
    again = load_clip(clip.path)
    assert not again.has_speech and not (clip.path / "speech.flac").exists()
    with pytest.raises(UserError, match="silent clip"):
        again.read_speech()


def test_landmark_code_is_exact_to_half_a_step() -> None:
    random = np.random.default_rng(1)
    landmarks = random.uniform(-7.9, 7.9, (9, 5, 3)).astype(np.float32)
    code = encode_landmarks(landmarks)
    assert code.shape == (2, 15, 9) and code.dtype == np.uint8
    assert np.abs(decode_landmarks(code) - landmarks).max() <= 0.5 / LANDMARK_STEPS + 1e-6
    far = decode_landmarks(encode_landmarks(np.full((2, 1, 3), 100, np.float32)))
    assert far == pytest.approx(np.full((2, 1, 3), 8), abs=1e-3)


def test_landmark_code_by_hand() -> None:
    # Steps 1, 0, 2: differences 1, -1, 2, zigzag 2, 1, 4.
    landmarks = np.array([1, 0, 2], np.float32)[:, None, None] / LANDMARK_STEPS * np.ones((1, 1, 3), np.float32)
    code = encode_landmarks(landmarks)
    assert code[0].tolist() == [[2, 1, 4]] * 3 and not code[1].any()


def test_speech_is_trimmed_or_padded_to_the_frames() -> None:
    assert fit_speech_length(np.ones(700, np.float32), 1).tolist() == [1] * 640
    padded = fit_speech_length(np.ones(700, np.float32), 2)
    assert padded.shape == (1280,) and padded.sum() == 700


def test_failed_save_leaves_no_files(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "short")
    with pytest.raises(ValueError, match="29 frames instead of 30"):
        save_clip(clip, make_pictures()[:-1], None)
    assert list(tmp_path.iterdir()) == []


def test_clips_are_listed_by_split(tmp_path: Path) -> None:
    for name, split in (("c", "train"), ("a", "val"), ("b", "train")):
        save_clip(make_clip(tmp_path / name, split), make_pictures(), None)
    (tmp_path / ".d.part").mkdir()
    (tmp_path / "notes.txt").write_text("not a clip")
    assert [path.name for path in list_clips(tmp_path)] == ["a", "b", "c"]
    assert [path.name for path in list_clips(tmp_path, "train")] == ["b", "c"]
    assert list_clips(tmp_path, "test") == []
    with pytest.raises(UserError, match="not a folder"):
        list_clips(tmp_path / "absent")


@pytest.mark.parametrize("name", ["video.mp4", "speech.flac", "track.npz", "matte.npz"])
def test_missing_files_are_named(saved: Clip, name: str) -> None:
    (saved.path / name).unlink()
    with pytest.raises(UserError, match=name):
        load_clip(saved.path)


def test_damage_is_named(saved: Clip, tmp_path: Path) -> None:
    info = json.loads((saved.path / "clip.json").read_text(encoding="utf-8"))
    (saved.path / "clip.json").write_text(json.dumps(info | {"frames": 31}), encoding="utf-8")
    with pytest.raises(UserError, match=r"landmarks have shape \(30"):
        load_clip(saved.path)
    (saved.path / "clip.json").write_text(json.dumps(info | {"format": 99}), encoding="utf-8")
    with pytest.raises(UserError, match="format 99"):
        load_clip(saved.path)
    (saved.path / "clip.json").write_text(json.dumps({"format": 3, "id": "someone_0"}), encoding="utf-8")
    with pytest.raises(UserError, match="clip.json lacks person, split, sync"):
        load_clip(saved.path)
    (saved.path / "clip.json").write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match="clip.json cannot be read"):
        load_clip(saved.path)
    with pytest.raises(UserError, match="not a prepared clip"):
        load_clip(tmp_path)


def test_truncated_track_is_named(saved: Clip) -> None:
    path = saved.path / "track.npz"
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(UserError, match="track.npz cannot be read"):
        load_clip(saved.path)


def test_truncated_video_is_named(saved: Clip) -> None:
    path = saved.path / "video.mp4"
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(UserError, match=r"video.mp4: is damaged.*prepare the clip again"):
        load_clip(saved.path).read_frames([0, 5])


def test_truncated_or_missing_matte_is_named(saved: Clip) -> None:
    path, whole = saved.path / "matte.npz", (saved.path / "matte.npz").read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="matte.npz cannot be read"):
        saved.read_mattes([0])
    np.savez_compressed(path, **{"0": np.zeros((SIZE // 2, SIZE // 2), np.uint8)})
    with pytest.raises(UserError, match="matte.npz cannot be read"):
        saved.read_mattes([1])


def test_every_frame_has_its_matte(tmp_path: Path) -> None:
    person = cv2.resize(astronaut()[:256, 96:352], (SIZE, SIZE), interpolation=cv2.INTER_AREA)
    pictures = make_pictures()
    pictures[3:] = [person] * (FRAMES - 3)
    clip = make_clip(tmp_path / "someone_0")
    save_clip(clip, pictures, None)
    mattes = load_clip(clip.path).read_mattes(range(FRAMES))
    assert mattes.dtype == np.uint8 and mattes.shape == (FRAMES, SIZE // 2, SIZE // 2)
    assert mattes[:3].mean() < 10 and mattes[3:].mean() > 80
    expected = cv2.resize(segment_person(person), (SIZE // 2, SIZE // 2), interpolation=cv2.INTER_AREA)
    np.testing.assert_allclose(mattes[10] / 255, expected, atol=0.5 / 255)
    np.testing.assert_array_equal(clip.read_mattes([10, 2]), mattes[[10, 2]])


def test_loaded_clip_can_be_saved_again_without_loss(saved: Clip, tmp_path: Path) -> None:
    """Quantization and compression lose nothing the second time."""
    clip = load_clip(saved.path)
    copy = replace(clip, path=tmp_path / "copy")
    save_clip(copy, clip.read_frames(range(FRAMES)), clip.read_speech())
    again = load_clip(copy.path)
    assert np.array_equal(again.landmarks, clip.landmarks)
    assert np.array_equal(again.read_speech(), clip.read_speech())
    assert np.array_equal(again.eye_openness, clip.eye_openness)


def test_sync_of_a_clip_on_disk_can_be_updated(saved: Clip) -> None:
    before = {path.name: path.read_bytes() for path in saved.path.iterdir()}
    update_sync(replace(saved, sync="corrected", offset=3, confidence=0.5))
    clip = load_clip(saved.path)
    assert (clip.sync, clip.offset, clip.confidence) == ("corrected", 3, 0.5) and clip.in_sync
    changed = {path.name for path in saved.path.iterdir() if path.read_bytes() != before[path.name]}
    assert changed == {"clip.json"}
    update_sync(replace(clip, sync="unclear"), np.full(100, 0.25, np.float32))
    clip = load_clip(saved.path)
    assert not clip.in_sync and clip.notes == saved.notes
    speech = clip.read_speech()
    assert speech.shape == (FRAMES * 640,) and (speech[:100] == 0.25).all() and not speech[100:].any()
    assert {path.name for path in saved.path.iterdir()} == set(before)


def test_clips_without_measured_offsets_are_read(saved: Clip) -> None:
    path = saved.path / "clip.json"
    info = json.loads(path.read_text(encoding="utf-8"))
    assert info["format"] == 3
    path.write_text(json.dumps({name: info[name] for name in info if name not in ("offset", "confidence")}))
    clip = load_clip(saved.path)
    assert (clip.sync, clip.offset, clip.confidence) == ("ok", 0, None) and clip.in_sync


def test_valid_frames_are_read_separately(saved: Clip) -> None:
    assert np.array_equal(read_valid(saved.path), saved.valid)
