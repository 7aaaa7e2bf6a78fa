"""Several images of one person: what the first one hides comes from the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from skimage.data import astronaut

import s3dnerf
from s3dnerf import cli
from s3dnerf.errors import UserError
from s3dnerf.face.camera import HeadPose
from s3dnerf.face.portrait import MAX_TURN_DEGREES, find_face
from s3dnerf.face.regions import measure_eye_openness, measure_lip_opening
from s3dnerf.face.video import track_head
from s3dnerf.media.audio import read_speech, write_wav
from s3dnerf.media.image import MAX_IMAGES, write_image
from s3dnerf.media.video import probe_video, stream_frames
from s3dnerf.metrics.image import measure_psnr
from s3dnerf.pipeline import TalkingHeadPipeline
from s3dnerf.reenactment import choose_far_frames, choose_source_frame
from s3dnerf.source_image import match_skin, measure_skin, open_eyes

SPEECH = Path(s3dnerf.__file__).parent / "assets" / "speech.wav"
SECOND = (read_speech(SPEECH)[:16000], 16000)
TURNING, BLINKING = "lrs3_0gks6ceq4eQ_00006.mp4", "hdtf_RDRadio8_0.mp4"
"""Clips of training people: one who turns her head by 34 degrees, one whose eyes are closed in frame 76."""


@pytest.fixture(scope="module")
def shipped(one_thread: None) -> TalkingHeadPipeline:
    return TalkingHeadPipeline.from_pretrained(device="cpu")


def render(pipeline: TalkingHeadPipeline, image: object, frames: int, **options: object) -> np.ndarray:
    """Return the first frames of a second of speech."""
    return np.stack(list(islice(pipeline(image, SECOND, **options), frames)))


def mean_psnr(shown: Sequence[np.ndarray], wanted: Sequence[np.ndarray]) -> float:
    return float(np.mean([measure_psnr(a, b) for a, b in zip(shown, wanted, strict=True)]))


def test_a_list_of_one_image_is_that_image(shipped: TalkingHeadPipeline) -> None:
    one, listed = (render(shipped, image, 4, pose="idle") for image in (astronaut(), [astronaut()]))
    assert np.array_equal(one, listed)


def test_the_same_image_twice_changes_next_to_nothing(shipped: TalkingHeadPipeline) -> None:
    once, twice = (render(shipped, image, 6, turn=(20.0, 0.0)) for image in (astronaut(), [astronaut()] * 2))
    assert mean_psnr(once, twice) > 40.0


def test_another_image_shows_the_side_that_the_first_one_hides(shared_data: Path, shipped: TalkingHeadPipeline) -> None:
    clip = shared_data / "clips" / TURNING
    real = list(islice(stream_frames(clip), 50))
    one, two = (list(shipped.reenact(clip, clip.with_suffix(".wav"), max_frames=50, images=n)) for n in (1, 2))
    turned = slice(20, 28)  # the second image is frame 29
    assert mean_psnr(two[turned], real[turned]) > mean_psnr(one[turned], real[turned]) + 1.5
    assert mean_psnr(two, real) > mean_psnr(one, real) + 1.0


def test_closed_eyes_open_if_another_image_shows_them_open(shared_data: Path, shipped: TalkingHeadPipeline) -> None:
    frames = list(islice(stream_frames(shared_data / "clips" / BLINKING), 93))
    closed, open_ = frames[76], frames[92]
    options = {"pose": "static", "blink": "off", "size": 256}
    shown = [render(shipped, images, 2, **options)[1] for images in (closed, [closed, open_])]
    alone, both = (find_face(image, 256).eyes.mean() for image in shown)
    assert alone > 0.6 and both > 0.6
    # With the second image, the eyes are its own and not generated ones.
    assert np.abs(np.subtract(*(image[70:130].astype(float) for image in shown))).mean() > 0.5


def test_eyes_at_rest_are_those_of_the_image_that_shows_them_open(shipped: TalkingHeadPipeline) -> None:
    face, model = find_face(astronaut(), 256), shipped.model
    first, *others = (replace(face, eyes=np.array(eyes)) for eyes in ((0.1, 0.9), (0.8, 0.2), (1.6, 0.3)))
    assert open_eyes(model, first, others).tolist() == [1.0, 0.9]
    assert open_eyes(model, face, []).tolist() == face.eyes.tolist()
    assert open_eyes(model, face, []).dtype == np.float32


def test_closed_eyes_are_open_at_rest_and_winks_stay(shipped: TalkingHeadPipeline) -> None:
    face, model = find_face(astronaut(), 256), shipped.model
    sleeping, winking, drowsy = (replace(face, eyes=np.array(eyes)) for eyes in ((0.2, 0.5), (0.1, 0.9), (0.55, 0.5)))
    assert open_eyes(model, sleeping, []).tolist() == [1.0, 1.0]
    assert open_eyes(model, winking, []).tolist() == [0.1, 0.9]
    assert open_eyes(model, drowsy, []).tolist() == [0.55, 0.5]


def test_the_light_of_another_image_is_brought_to_that_of_the_first() -> None:
    face = find_face(astronaut(), 256)
    darker = find_face((astronaut() * np.array([0.6, 0.7, 0.8])).astype(np.uint8), 256)
    assert np.abs(measure_skin(match_skin(darker, face)) - measure_skin(face)).max() < 0.01
    assert np.abs(measure_skin(darker) - measure_skin(face)).max() > 0.1


def test_detail_of_large_photographs_comes_from_both(shipped: TalkingHeadPipeline) -> None:
    once, twice = (render(shipped, image, 2, size=384) for image in (astronaut(), [astronaut()] * 2))
    assert twice.shape[1:3] == (384, 384) and mean_psnr(once, twice) > 38.0


def test_far_frames_are_turned_from_all_before_but_not_away() -> None:
    yaw = np.radians([0.0, 10.0, 30.0, -20.0, MAX_TURN_DEGREES + 5.0])
    rotation = np.zeros((5, 3, 3))
    rotation[:, 0, 0] = rotation[:, 2, 2] = np.cos(yaw)
    rotation[:, 0, 2], rotation[:, 2, 0], rotation[:, 1, 1] = np.sin(yaw), -np.sin(yaw), 1.0
    poses = HeadPose(rotation, np.ones(5), np.zeros((5, 2)))
    assert choose_far_frames(poses, 1) == [0]
    assert choose_far_frames(poses, 3) == [0, 2, 3]
    assert len(choose_far_frames(poses[:2], 5)) == 2


@pytest.mark.parametrize("count", [0, MAX_IMAGES + 1])
def test_no_image_and_too_many_are_refused(shipped: TalkingHeadPipeline, count: int) -> None:
    with pytest.raises(UserError, match=f"image.*{count} images.*1 to {MAX_IMAGES}"):
        shipped([astronaut()] * count, SECOND)


def test_frames_of_diffusion_take_one_image(shipped: TalkingHeadPipeline) -> None:
    with pytest.raises(UserError, match="renderer.*one image"):
        shipped([astronaut()] * 2, SECOND, method="fd2talk", renderer="diffusion")


def test_an_image_without_a_face_is_named(shipped: TalkingHeadPipeline, tmp_path: Path) -> None:
    write_image(tmp_path / "wall.png", np.full((256, 256, 3), 90, np.uint8))
    with pytest.raises(UserError, match=r"wall\.png.*shows no face"):
        shipped([astronaut(), tmp_path / "wall.png"], SECOND)


def test_command_line_and_batch_take_several_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_image(tmp_path / "a.png", astronaut())
    write_image(tmp_path / "b.png", astronaut()[:, ::-1])
    write_wav(tmp_path / "speech.wav", SECOND[0])
    assert cli.main(["render", "--image", "a.png", "b.png", "--audio", "speech.wav", "--out", "one.mp4"]) == 0
    rows = "image,audio,out\na.png; b.png,speech.wav,two.mp4\na.png;none.png,speech.wav,no.mp4\n"
    (tmp_path / "jobs.csv").write_text(rows)
    with pytest.raises(SystemExit):  # because of its second row
        cli.main(["batch", "jobs.csv", "--report", "report.csv"])
    assert probe_video(tmp_path / "one.mp4").frames == probe_video(tmp_path / "two.mp4").frames
    one, two = (next(iter(stream_frames(tmp_path / f"{name}.mp4"))) for name in ("one", "two"))
    assert np.array_equal(one, two)
    assert "none.png" in (tmp_path / "report.csv").read_text() and not (tmp_path / "no.mp4").exists()


def test_hard_source_images_are_found_in_a_clip(shared_data: Path) -> None:
    head = track_head(shared_data / "clips" / BLINKING, max_frames=93)
    assert choose_source_frame(head, "first") == 0
    openness = measure_eye_openness(head.landmarks).max(axis=1)
    closed = choose_source_frame(head, "closed_eyes")
    assert openness[closed] == openness.min() < 0.3
    opening = measure_lip_opening(head.cropped_landmarks, head.pose)
    assert opening[choose_source_frame(head, "open_mouth")] == opening.max()
    assert opening[choose_source_frame(head, "closed_mouth")] == opening.min()
    turned = choose_source_frame(head, "turned")
    assert head.pose.rotation[turned, 2, 2] == head.pose.rotation[:, 2, 2].min()
    # Frames in which no face was found are not taken.
    valid = np.arange(93) != closed
    assert choose_source_frame(replace(head, valid=valid), "closed_eyes") != closed
