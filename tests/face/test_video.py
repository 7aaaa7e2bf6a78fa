"""Head tracking of videos: gaps, crops and head poses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from s3dnerf.errors import UserError
from s3dnerf.face.camera import fit_head_pose
from s3dnerf.face.crop import apply_crop, choose_crop, crop_pose
from s3dnerf.face.landmarks import to_pixels
from s3dnerf.face.tracker import FaceTracker
from s3dnerf.face.video import interpolate_landmarks, locate_head, track_head
from s3dnerf.media.video import VideoWriter, stream_frames

VIDEO = "grid_uA_sbwe5n.mp4"


def test_short_gaps_are_filled_and_long_ones_are_not_valid() -> None:
    def face(value: float) -> np.ndarray:
        return np.full((478, 3), value, np.float32)

    found = [None, face(1), None, None, face(4), *[None] * 6, face(11), None]
    track = interpolate_landmarks(found)
    expected = [1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 11]
    assert track.landmarks[:, 0, 0] == pytest.approx(expected, abs=1e-5)
    valid = [False, True, True, True, True, *[False] * 6, True, False]
    assert track.valid.tolist() == valid
    assert interpolate_landmarks([None, None]) is None


@pytest.fixture(scope="module")
def video(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first 12 frames of a real clip within a larger frame."""
    path = tmp_path_factory.mktemp("video") / "short.mp4"
    with VideoWriter(path, (400, 320), crf=5) as writer:
        for frame, _ in zip(stream_frames(shared_data / "clips" / VIDEO), range(12), strict=False):
            writer.write(np.pad(frame, ((32, 32), (100, 44), (0, 0)), constant_values=100))
    return path


def test_a_head_is_tracked_in_one_crop(video: Path) -> None:
    track = track_head(video)
    assert len(track) == 12 and track.valid.all() and track.frame_size == (320, 400)
    assert track.crop == choose_crop(fit_head_pose(track.landmarks), (320, 400))
    # Registration moves the poses that are fitted to the landmarks only a little.
    fitted = crop_pose(fit_head_pose(track.landmarks), track.crop)
    np.testing.assert_allclose(track.pose.center, fitted.center, atol=0.03)
    np.testing.assert_allclose(track.pose.scale, fitted.scale, rtol=0.03)
    np.testing.assert_allclose(fit_head_pose(track.cropped_landmarks).center, fitted.center, atol=1e-3)
    crops = list(track.crop_frames(stream_frames(video), 64))
    assert len(crops) == 12
    np.testing.assert_array_equal(crops[3], apply_crop(list(stream_frames(video))[3], track.crop, 64))


def test_decoded_frames_give_the_same_head(video: Path) -> None:
    frames = list(stream_frames(video))
    head, known = locate_head(video), locate_head(video, frames)
    assert head.crop == known.crop
    np.testing.assert_array_equal(head.landmarks, known.landmarks)


def test_known_landmarks_are_used_and_frames_are_limited(video: Path) -> None:
    landmarks = np.stack(list(FaceTracker().track(stream_frames(video))))
    track = track_head(video, landmarks=landmarks, max_frames=5)
    np.testing.assert_array_equal(track.landmarks, to_pixels(landmarks[:5], (320, 400)))
    assert len(track.pose) == len(track) == 5 and track.valid.all()
    assert len(list(track.crop_frames(stream_frames(video), 64))) == 5


def test_small_heads_and_missing_faces_raise(video: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="too small"):
        locate_head(video, min_crop_side=400)
    with VideoWriter(tmp_path / "empty.mp4", (96, 96)) as writer:
        for level in range(4):
            writer.write(np.full((96, 96, 3), 100 + level, np.uint8))
    with pytest.raises(UserError, match="a face is seen in only 0 of 4 frames"):
        track_head(tmp_path / "empty.mp4")
