import numpy as np
import pytest

from s3dnerf.evaluation.scores import compare_tracks
from s3dnerf.evaluation.tracking import FaceTrack, FaceTrackRecorder, evaluation_size, interpolate_gaps
from s3dnerf.media.video import stream_frames
from s3dnerf.metrics import count_blinks


def test_gaps_are_filled_from_their_neighbors():
    track = np.full((7, 2, 3), np.nan, np.float32)
    track[1], track[4] = 1.0, 4.0
    filled = interpolate_gaps(track)
    np.testing.assert_allclose(filled[:, 0, 0], [1, 1, 2, 3, 4, 4, 4])
    assert filled.dtype == np.float32
    with pytest.raises(ValueError, match="no frame"):
        interpolate_gaps(track[:1])


def test_whole_tracks_are_not_changed_by_filling():
    track = np.random.default_rng(0).normal(size=(5, 4, 3)).astype(np.float32)
    np.testing.assert_array_equal(interpolate_gaps(track), track)


def test_the_shorter_side_is_scored_at_256():
    assert evaluation_size(np.zeros((512, 512, 3))) == (256, 256)
    assert evaluation_size(np.zeros((360, 640, 3))) == (256, 455)


@pytest.fixture(scope="module")
def track(astronaut_clips) -> FaceTrack:
    ruler = FaceTrackRecorder()
    for frame in stream_frames(astronaut_clips / "astronaut.mp4"):
        ruler.add(frame)
    return ruler.finish()


def test_both_meshes_track_the_same_face(track):
    assert track.found.all()
    fine = (track.fine[:, :468, :2] + 1) * 128 - 0.5
    assert np.linalg.norm(fine - track.plain, axis=-1).mean() < 2.0


def test_lip_opening_follows_the_stretched_mouth(track):
    stretch = np.sin(np.arange(len(track)) * 0.9) ** 2
    assert np.corrcoef(track.lip_opening, stretch)[0, 1] > 0.95
    assert np.ptp(track.lip_opening) > 0.06


def test_a_wide_frame_is_measured_like_a_square_one(astronaut_clips, track):
    ruler = FaceTrackRecorder()
    for frame in stream_frames(astronaut_clips / "astronaut.mp4"):
        ruler.add(np.pad(frame, ((0, 0), (40, 100), (0, 0))))
    wide = ruler.finish()
    assert wide.size == (256, 396)
    assert np.linalg.norm(wide.plain - [40, 0] - track.plain, axis=-1).mean() < 1.5
    assert np.abs(wide.lip_opening - track.lip_opening).mean() < 0.02


def test_a_lost_face_lowers_the_found_score(track):
    lost = FaceTrack(track.fine.copy(), track.plain.copy(), track.size)
    lost.fine[5:9], lost.plain[5:9] = np.nan, np.nan
    scores = compare_tracks(track, lost)
    assert scores["found"] == pytest.approx(1 - 4 / (len(track) - 1))
    assert scores["f_lmd"] == 0.0
    assert np.isnan(lost.lip_opening[5:9]).all()


def test_a_face_never_seen_has_no_scores(track):
    nothing = FaceTrack(np.full_like(track.fine, np.nan), np.full_like(track.plain, np.nan), track.size)
    scores = compare_tracks(track, nothing)
    assert scores.pop("found") == 0.0
    assert np.isnan(list(scores.values())).all()


def test_blinks_of_a_real_person_are_counted(shared_data):
    # Seen in the frames: the lids come down around 24, 100, 172 and 230, the last two not all the way.
    ruler = FaceTrackRecorder()
    for frame in stream_frames(shared_data / "clips" / "hdtf_RDRadio42_0.mp4"):
        ruler.add(frame)
    openness = ruler.finish().eye_openness
    assert count_blinks(openness) == 4
    assert count_blinks(openness[110:160]) == 0
    assert count_blinks(openness[160:185]) == 1


def test_a_recorder_without_frames_raises():
    ruler = FaceTrackRecorder()
    with pytest.raises(ValueError, match="no frame"):
        ruler.finish()
