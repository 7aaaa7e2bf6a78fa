"""Frames of a clip as arrays: interpolation and mirroring."""

from __future__ import annotations

import numpy as np

from s3dnerf.data.dataset import TalkingFaceDataset
from s3dnerf.data.frames import interpolate_frames, mirror_frames
from s3dnerf.data.tracks import ClipTrack
from s3dnerf.face.camera import HeadPose, project
from s3dnerf.face.points import IRIS_LEFT, IRIS_RIGHT, KEPT_POINTS

SIZE = 64


def test_displacement_is_measured_from_the_mean_face(tracks: list[ClipTrack]) -> None:
    for track in tracks:
        view = interpolate_frames(track, track.frames.astype(float))
        np.testing.assert_allclose(view.displacement.mean(axis=0), 0.0, atol=1e-5)
        mean_faces = view.landmarks - view.displacement
        np.testing.assert_allclose(mean_faces, np.broadcast_to(track.mean_face, mean_faces.shape), atol=1e-6)


def test_flipping_a_view_twice_changes_nothing(plain: TalkingFaceDataset, tracks: list[ClipTrack]) -> None:
    view = plain.read_frame_arrays(tracks[0], np.array([3, 20]), plain.image_size, with_speech=True)
    twice = mirror_frames(mirror_frames(view))
    for name, value in vars(view).items():
        if value is not None:
            np.testing.assert_allclose(getattr(twice, name), value, atol=1e-6, err_msg=name)
    once = mirror_frames(view)
    np.testing.assert_array_equal(once.pixels, view.pixels[:, :, ::-1])
    np.testing.assert_array_equal(once.speech, view.speech)


def test_flipped_landmarks_project_onto_the_flipped_picture(plain: TalkingFaceDataset, tracks: list[ClipTrack]) -> None:
    view = plain.read_frame_arrays(tracks[0], np.array([3, 20]), plain.image_size, with_speech=False)
    flipped = mirror_frames(view)
    before, after = (project(one.landmarks, HeadPose(one.rotation, one.scale, one.center)) for one in (view, flipped))
    left, right = (np.searchsorted(KEPT_POINTS, iris[0]) for iris in (IRIS_LEFT, IRIS_RIGHT))
    np.testing.assert_allclose(after[:, left], before[:, right] * [-1, 1, 1], atol=1e-5)
    pixels = np.round((after[:, left, :2] + 1) * SIZE / 2 - 0.5).astype(int)
    for frame, (x, y) in enumerate(pixels):
        assert flipped.pixels[frame, y, x].mean() < 80


def test_times_between_frames_are_interpolated(tracks: list[ClipTrack]) -> None:
    track = tracks[0]
    view = interpolate_frames(track, np.array([4.25, 39.0]))
    expected = 0.75 * track.landmarks[4] + 0.25 * track.landmarks[5]
    np.testing.assert_allclose(view.landmarks[0], expected, atol=1e-6)
    np.testing.assert_array_equal(view.rotation[0], track.pose.rotation[4])
    np.testing.assert_array_equal(view.landmarks[1], track.landmarks[39])
