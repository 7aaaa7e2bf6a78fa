from itertools import islice

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from s3dnerf.evaluation.scores import SpeechTiming, box_eye, compare_timing, measure_clip
from s3dnerf.evaluation.tracking import FaceTrack, FaceTrackRecorder
from s3dnerf.face.points import EYE_LEFT, EYE_RIGHT
from s3dnerf.media.video import VideoWriter, stream_frames
from s3dnerf.metrics import MOUTH_POINTS, measure_cpbd

FRAMES = 6


def track_all(frames: list[np.ndarray]) -> FaceTrack:
    ruler = FaceTrackRecorder()
    for frame in frames:
        ruler.add(frame)
    return ruler.finish()


@pytest.fixture(scope="module")
def target(astronaut_clips) -> list[np.ndarray]:
    return list(islice(stream_frames(astronaut_clips / "astronaut.mp4"), FRAMES))


@pytest.fixture(scope="module")
def track(target) -> FaceTrack:
    return track_all(target)


def test_equal_frames_have_no_distance(target, track):
    measured = measure_clip(target, target, track, sampled_at=[2, 4])
    scores = measured.scores
    assert (scores.psnr, scores.ssim, scores.f_lmd, scores.m_lmd) == (np.inf, 1.0, 0.0, 0.0)
    assert (scores.lip_correlation, scores.lip_gain, scores.found) == (pytest.approx(1.0), 1.0, 1.0)
    assert scores.mouth_detail == scores.lip_gain_plain == scores.eye_openness == 1.0
    assert scores.cpbd == pytest.approx(measure_cpbd(np.stack(target[1:])).mean())
    assert {scores.lpips, scores.csim, scores.lse_c, scores.fid} == {None}
    np.testing.assert_array_equal(measured.sampled, [target[2], target[4]])


def test_scores_that_need_the_audio_are_measured_with_its_timing(target, track):
    without = measure_clip(target, target, track).scores
    assert {without.silent_opening, without.lip_correlation_at_offset, without.sound_offset} == {None}
    timing = SpeechTiming(np.ones(FRAMES, bool), offset=0)
    scores = measure_clip(target, target, track, timing=timing).scores
    assert (scores.sound_offset, scores.lip_correlation_at_offset) == (0.0, scores.lip_correlation)
    low, high = np.percentile(track.lip_opening[1:], [5, 95])
    assert scores.silent_opening == pytest.approx((track.lip_opening[1:].mean() - low) / (high - low), rel=1e-5)


def test_lips_that_follow_late_sound_are_compared_at_its_offset():
    opening = np.tile([0.0, 0.0, 0.0, 1.0, 2.0, 1.0, 2.0, 1.0, 1.0, 2.0], 5)
    late = np.roll(opening, 4)
    is_pause = np.zeros(51, bool)
    # Frame 0 is the source image; frames 1 to 3 are the first three openings.
    is_pause[1:4] = True
    scores = compare_timing(opening, late, SpeechTiming(is_pause, offset=4))
    assert (scores["lip_correlation_at_offset"], scores["closure_f1_at_offset"]) == (pytest.approx(1.0), 1.0)
    # The late lips are 2, 1, 1 there, in a range from 0 to 2.
    assert scores["silent_opening"] == pytest.approx(np.mean(late[:3]) / 2)
    assert list(compare_timing(opening, late, SpeechTiming(is_pause))) == ["silent_opening"]


def test_a_blurred_mouth_lowers_only_its_detail(target, track):
    blurred = [gaussian_filter(frame, (1.5, 1.5, 0)) for frame in target]
    soft = measure_clip(target, blurred, track).scores
    mouth = track.plain[0, MOUTH_POINTS].mean(axis=0)
    rows, columns = (slice(round(place) - 30, round(place) + 30) for place in mouth[::-1])
    patched = [frame.copy() for frame in target]
    for frame, other in zip(patched, blurred, strict=True):
        frame[rows, columns] = other[rows, columns]
    local = measure_clip(target, patched, track).scores
    assert soft.mouth_detail < 0.75
    assert local.mouth_detail == pytest.approx(soft.mouth_detail, abs=0.1)
    assert soft.cpbd < 0.5 * local.cpbd


def test_eyes_are_scored_by_themselves(target, track):
    left, right = (track.plain[0, points] for points in (EYE_LEFT, EYE_RIGHT))
    darker = [frame.copy() for frame in target]
    for frame in darker:
        for eye in (left, right):
            low, high = eye.min(axis=0).astype(int), eye.max(axis=0).astype(int)
            box = frame[low[1] : high[1], low[0] : high[0]]
            box[:] = box // 2
    bottom = [frame.copy() for frame in target]
    for frame in bottom:
        frame[-40:] = 0
    eyes, elsewhere = (measure_clip(target, frames, track).scores for frames in (darker, bottom))
    assert eyes.eye_psnr < 25.0 < eyes.psnr
    assert elsewhere.eye_psnr == np.inf and np.isfinite(elsewhere.psnr)


def test_the_box_around_an_eye_by_hand():
    eye = np.array([[10.0, 20.0], [30.0, 28.0]])
    assert box_eye(eye, (100, 100)) == (slice(15, 33), slice(5, 35))
    assert box_eye(eye, (18, 20)) == (slice(15, 18), slice(5, 20))
    assert box_eye(eye - 60.0, (100, 100)) is None
    assert box_eye(eye * np.nan, (100, 100)) is None


def test_the_first_frame_is_not_scored(target, track):
    generated = [np.zeros_like(target[0]), *(frame // 2 for frame in target[1:])]
    with_portrait = [target[0], *generated[1:]]
    assert measure_clip(target, generated, track).scores.psnr == measure_clip(target, with_portrait, track).scores.psnr


def test_a_shifted_face_is_as_far_off_as_the_shift(target, track):
    shifted = [np.roll(frame, 6, axis=1) for frame in target]
    scores = measure_clip(target, shifted, track).scores
    assert scores.f_lmd == pytest.approx(6.0, abs=0.4)
    assert scores.m_lmd < 0.5
    assert scores.lip_gain == pytest.approx(1.0, abs=0.15)
    # Detail is measured where each mouth is.
    assert scores.mouth_detail == pytest.approx(1.0, abs=0.03)


def test_distances_do_not_depend_on_the_size_of_the_video(target):
    large = [np.kron(frame, np.ones((2, 2, 1), np.uint8)) for frame in target]
    shifted = [np.roll(frame, 12, axis=1) for frame in large]
    assert measure_clip(large, shifted, track_all(large)).scores.f_lmd == pytest.approx(6.0, abs=0.4)


def test_a_video_of_odd_sides_is_compared_in_its_own_size(target, tmp_path):
    odd = [frame[:255, :253] for frame in target]
    with VideoWriter(tmp_path / "odd.mp4", (253, 255)) as writer:
        for frame in odd:
            writer.write(frame)
    scores = measure_clip(odd, stream_frames(tmp_path / "odd.mp4"), track_all(odd)).scores
    assert scores.psnr > 35


def test_streams_of_unequal_length_are_refused(target, track):
    with pytest.raises(ValueError, match="generated video ends first, after 3 frames"):
        measure_clip(target, target[:3], track)
    with pytest.raises(ValueError, match="target video ends first, after 3 frames"):
        measure_clip(target[:3], target, track)
