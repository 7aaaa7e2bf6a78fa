"""Source image and speech to video with a tiny model: frames, audio, options, and every error in one line."""

from __future__ import annotations

import functools
import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import replace
from itertools import islice, pairwise
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from skimage.data import astronaut

import s3dnerf
from s3dnerf import cli, pipeline
from s3dnerf.errors import UserError
from s3dnerf.face.camera import HeadPose
from s3dnerf.face.crop import apply_crop
from s3dnerf.face.head_motion import choose_head_motion
from s3dnerf.face.motion_state import MotionState, read_state
from s3dnerf.face.portrait import check_face, find_face
from s3dnerf.media.audio import read_speech, write_wav
from s3dnerf.media.image import write_image
from s3dnerf.media.provenance import Provenance
from s3dnerf.media.video import VideoWriter, probe_video, read_frames, stream_frames
from s3dnerf.metrics.image import measure_psnr
from s3dnerf.models.fd2talk.frame_config import FrameAutoencoderConfig, FrameDenoiserConfig, FrameDiffusionConfig
from s3dnerf.models.fd2talk.frame_diffusion import FrameDiffusion
from s3dnerf.models.s3dnerf.s3dnerf import S3DNeRF
from s3dnerf.pipeline import TalkingHeadPipeline
from s3dnerf.render_options import RenderOptions, parse_color
from s3dnerf.rendering.threads import MOST_THREADS
from s3dnerf.talking_video import TalkingVideo
from s3dnerf.training.config import S3DNeRFConfig

SPEECH = Path(s3dnerf.__file__).parent / "assets" / "speech.wav"
SIDE = 64


def make_model(load_smoke: Callable[..., S3DNeRFConfig], shake: float) -> S3DNeRF:
    torch.manual_seed(0)
    model = S3DNeRF(load_smoke().model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(shake * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="module", autouse=True)
def remember_faces() -> Iterator[None]:
    """Detect the face of each image once, because detection dominates the time of these tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "find_face", functools.cache(pipeline.find_face))
        yield


@pytest.fixture(scope="module")
def still(load_smoke: Callable[..., S3DNeRFConfig]) -> TalkingHeadPipeline:
    """Return an untrained model that changes nothing: it shows the source, moved with the head pose."""
    return TalkingHeadPipeline(make_model(load_smoke, 0.0))


@pytest.fixture(scope="module")
def lively(load_smoke: Callable[..., S3DNeRFConfig]) -> TalkingHeadPipeline:
    """Return a model with random weights, in which every output depends on every input, and strongly on speech."""
    model = make_model(load_smoke, 0.05)
    with torch.no_grad():
        model.deformation_field.speech_attention.to_motion[-1].weight.mul_(20.0)
    return TalkingHeadPipeline(model)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, still: TalkingHeadPipeline) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    still.model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with portrait.png, second.wav (1.1 s of the shipped speech) and driver.mp4 (a moving head)."""
    folder = tmp_path_factory.mktemp("files")
    write_image(folder / "portrait.png", astronaut()[:300, 60:400])
    write_wav(folder / "second.wav", read_speech(SPEECH)[8000 : 8000 + 17600])
    with VideoWriter(folder / "driver.mp4", (256, 256), crf=10) as writer:
        for frame in range(10):
            writer.write(np.ascontiguousarray(astronaut()[:256, 110 - 2 * frame : 366 - 2 * frame]))
    return folder


@pytest.fixture(scope="module")
def say(files: Path) -> Callable[..., TalkingVideo]:
    """Returns a function that runs a pipeline on the second of speech."""

    def make(speaker: TalkingHeadPipeline, **options: object) -> TalkingVideo:
        given = {"image": files / "portrait.png", "audio": files / "second.wav", "pose": "idle", **options}
        return speaker(given.pop("image"), given.pop("audio"), **given)

    return make


def test_frames_last_as_long_as_the_speech(lively: TalkingHeadPipeline, say: Callable[..., TalkingVideo]) -> None:
    video = say(lively)
    frames = list(video)
    # 1.1 seconds at 25 frames per second are 27.5.
    assert len(video) == len(frames) == 28
    assert all(frame.shape == (SIDE, SIDE, 3) and frame.dtype == np.uint8 for frame in frames)
    assert video.size == (SIDE, SIDE)
    assert {"reading speech", "finding the face", "encoding identity", "rendering"} <= set(video.timer.seconds)


def test_frames_come_one_by_one_and_every_time_anew(
    lively: TalkingHeadPipeline, say: Callable[..., TalkingVideo], monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = []
    render_batch = TalkingHeadPipeline.render_batch

    def note(self: TalkingHeadPipeline, identity: object, chunk: list, *rest: object) -> np.ndarray:
        batches.append(len(chunk))
        return render_batch(self, identity, chunk, *rest)

    monkeypatch.setattr(TalkingHeadPipeline, "render_batch", note)
    video = say(lively)
    assert batches == []
    frames = iter(video)
    first = next(frames)
    # Each thread works on a batch, and one more batch waits.
    assert 4 <= sum(batches) <= 4 * (MOST_THREADS + 1) < 28
    rest = list(frames)
    assert sum(batches) == 28
    np.testing.assert_array_equal(next(iter(video)), first)
    assert np.abs(rest[-1].astype(int) - first).max() > 2


def test_a_writer_that_fails_stops_the_rendering(
    lively: TalkingHeadPipeline,
    say: Callable[..., TalkingVideo],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*given: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(VideoWriter, "encode", fail)
    with pytest.raises(OSError, match="no space left"):
        say(lively).save(tmp_path / "talking.mp4")
    assert list(tmp_path.iterdir()) == []


def test_the_same_seed_gives_the_same_frames(lively: TalkingHeadPipeline, say: Callable[..., TalkingVideo]) -> None:
    first, again, other = (np.stack(list(say(lively, seed=seed))) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first.astype(int) - other).max() > 5


def test_an_untrained_model_shows_the_cropped_portrait(
    still: TalkingHeadPipeline, say: Callable[..., TalkingVideo], files: Path
) -> None:
    frames = np.stack(list(say(still, pose="static", blink="off")))
    portrait = pipeline.find_face(files / "portrait.png", SIDE).image
    assert np.abs(frames.astype(int) - portrait).max() <= 1


def test_idle_motion_starts_at_rest_and_moves_the_head(
    still: TalkingHeadPipeline, say: Callable[..., TalkingVideo], files: Path
) -> None:
    frames = np.stack(list(say(still, pose="idle", blink="off"))).astype(int)
    portrait = pipeline.find_face(files / "portrait.png", SIDE).image
    assert np.abs(frames[0] - portrait).max() <= 1
    assert np.abs(frames[-1] - portrait).mean() > 0.5


def test_speech_moves_head_and_lids_from_where_they_are_in_the_portrait(
    still: TalkingHeadPipeline, lively: TalkingHeadPipeline, say: Callable[..., TalkingVideo]
) -> None:
    unmoved = list(say(still, pose="static", blink="off"))
    frames = list(say(still, pose="speech", seed=1))
    assert len(frames) == len(unmoved) and np.array_equal(frames[0], unmoved[0])
    assert np.abs(frames[-1].astype(int) - unmoved[-1]).mean() > 0.5
    assert all(np.array_equal(*pair) for pair in zip(frames, say(still, pose="speech", seed=1), strict=True))
    other = list(say(still, pose="speech", seed=2))
    assert not np.array_equal(frames[-1], other[-1])
    # Brows and lids move too, which only a model that deforms faces shows.
    held = [list(say(lively, pose="speech", seed=1, liveliness=x, blink="off")) for x in (0.0, 2.0)]
    assert not np.array_equal(held[0][-1], held[1][-1])


def test_motion_from_speech_is_the_default_but_not_of_sessions(
    lively: TalkingHeadPipeline, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert RenderOptions().pose == "speech"
    assert lively.stream(files / "portrait.png").options.pose == "idle"
    assert lively.stream(files / "portrait.png", RenderOptions(seed=1)).options.pose == "speech"


def test_without_liveliness_the_head_is_still(still: TalkingHeadPipeline, say: Callable[..., TalkingVideo]) -> None:
    frames = say(still, pose="speech", liveliness=0.0, blink="off")
    assert all(np.array_equal(*pair) for pair in zip(frames, say(still, pose="static", blink="off"), strict=True))
    with pytest.raises(UserError, match=r"^liveliness 2\.5"):
        say(still, pose="speech", liveliness=2.5)


def test_motion_from_speech_continues_the_utterance_before(
    still: TalkingHeadPipeline, say: Callable[..., TalkingVideo]
) -> None:
    first = say(still, pose="speech", seed=1)
    frames = list(first)
    following = list(say(still, pose="speech", seed=1, start=first.end_state))
    steps = [np.abs(a.astype(int) - b).mean() for a, b in pairwise(frames)]
    assert np.abs(frames[-1].astype(int) - following[0]).mean() <= 2.0 * max(steps)


def test_fd2talk_moves_the_face_by_its_own_expression(
    lively: TalkingHeadPipeline, say: Callable[..., TalkingVideo], files: Path
) -> None:
    options = {"pose": "static", "blink": "off"}
    ours, theirs = (list(say(lively, method=method, **options)) for method in ("s3dnerf", "fd2talk"))
    assert len(ours) == len(theirs) and not np.array_equal(ours[-1], theirs[-1])
    other = list(say(lively, method="fd2talk", seed=3, **options))
    assert not np.array_equal(theirs[-1], other[-1])
    with pytest.raises(UserError, match="^method gan"):
        say(lively, method="gan")
    reenacted = [
        list(lively.reenact(files / "driver.mp4", files / "second.wav", method=m)) for m in ("s3dnerf", "fd2talk")
    ]
    assert len(reenacted[0]) == len(reenacted[1]) == 10 and not np.array_equal(reenacted[0][-1], reenacted[1][-1])


@pytest.fixture(scope="module")
def small_frames() -> FrameDiffusion:
    torch.manual_seed(0)
    config = FrameDiffusionConfig(
        image_size=SIDE,
        autoencoder=FrameAutoencoderConfig(widths=(8, 8), channels=4),
        denoiser=FrameDenoiserConfig(widths=(8, 8, 8), heads=2, groups=4),
    )
    return FrameDiffusion(config).eval().requires_grad_(False)


def test_diffusion_renders_without_the_radiance_field(
    lively: TalkingHeadPipeline,
    say: Callable[..., TalkingVideo],
    small_frames: FrameDiffusion,
    files: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(vars(lively), "frame_diffusion", small_frames)
    monkeypatch.setattr(lively.model, "forward", lambda *inputs: pytest.fail("the radiance field is not needed"))
    monkeypatch.setattr(lively, "encode_identity", lambda *inputs: pytest.fail("nor is its identity"))
    options = {"method": "fd2talk", "renderer": "diffusion"}
    video = say(lively, pose="speech", **options)
    frames = list(video)
    assert len(frames) == len(video) and frames[0].shape == (SIDE, SIDE, 3)
    assert not np.array_equal(frames[0], frames[-1]) and video.end_state.pose == "speech"
    assert len(list(lively.reenact(files / "driver.mp4", files / "second.wav", **options))) == 10


def test_refinement_changes_the_frames_of_the_radiance_field(
    lively: TalkingHeadPipeline,
    say: Callable[..., TalkingVideo],
    small_frames: FrameDiffusion,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(vars(lively), "frame_diffusion", small_frames)
    plain, refined = (list(say(lively, pose="static", refine=refine)) for refine in ("off", "diffusion"))
    assert len(plain) == len(refined) and not np.array_equal(plain[-1], refined[-1])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"renderer": "diffusion"}, "fd2talk"),
        ({"renderer": "mesh"}, "renderer mesh"),
        ({"refine": "gan"}, "refine gan"),
        ({"renderer": "diffusion", "method": "fd2talk", "refine": "diffusion"}, "refine diffusion"),
        ({"renderer": "diffusion", "method": "fd2talk", "background": "green"}, "background"),
        ({"renderer": "diffusion", "method": "fd2talk"}, "256"),
    ],
)
def test_what_diffusion_cannot_do_is_told(
    lively: TalkingHeadPipeline, say: Callable[..., TalkingVideo], options: dict[str, str], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        say(lively, **options)


def test_a_turned_head_is_seen_from_another_side(say: Callable[..., TalkingVideo], tmp_path: Path) -> None:
    shipped = TalkingHeadPipeline.from_pretrained(device="cpu")

    def track(turn: tuple[float, float]) -> np.ndarray:
        frame = next(iter(say(shipped, pose="static", blink="off", turn=turn)))
        write_image(tmp_path / f"{turn}.png", frame)
        return find_face(tmp_path / f"{turn}.png", 256).pose.rotation[0]

    straight = track((0.0, 0.0))
    for right, up in ((20.0, 0.0), (-15.0, 10.0)):
        turned = Rotation.from_matrix(straight.T @ track((right, up))).as_rotvec(degrees=True)
        np.testing.assert_allclose(turned, [-up, right, 0.0], atol=4.0)


def test_speech_drives_the_frames(lively: TalkingHeadPipeline, say: Callable[..., TalkingVideo], files: Path) -> None:
    write_wav(files / "noise.wav", 0.1 * np.random.default_rng(0).standard_normal(17600).astype(np.float32))
    spoken, noisy = (
        np.stack(list(say(lively, pose="static", blink="off", audio=files / name)))
        for name in ("second.wav", "noise.wav")
    )
    assert np.abs(spoken.astype(int) - noisy).mean() > 0.2


def test_a_gpu_renders_what_the_processor_does(lively: TalkingHeadPipeline, say: Callable[..., TalkingVideo]) -> None:
    if not torch.cuda.is_available():
        pytest.skip("there is no GPU")
    frames = list(say(lively))
    others = list(say(TalkingHeadPipeline(deepcopy(lively.model), "cuda")))
    assert len(others) == len(frames)
    assert min(float(measure_psnr(one, other)[0]) for one, other in zip(frames, others, strict=True)) > 40.0


def test_loudness_of_the_recording_does_not_matter(
    lively: TalkingHeadPipeline, say: Callable[..., TalkingVideo], files: Path
) -> None:
    write_wav(files / "quiet.wav", 0.25 * read_speech(files / "second.wav"))
    loud, quiet = (
        np.stack(list(say(lively, pose="static", blink="off", audio=files / name)))
        for name in ("second.wav", "quiet.wav")
    )
    # The quiet file has two bits less in every sample.
    assert np.abs(loud.astype(int) - quiet).mean() < 0.3


def test_blinks_can_be_turned_off(lively: TalkingHeadPipeline, say: Callable[..., TalkingVideo]) -> None:
    auto, off = (list(islice(say(lively, pose="static", blink=blink, audio=SPEECH), 110)) for blink in ("auto", "off"))
    differs = [not np.array_equal(one, other) for one, other in zip(auto, off, strict=True)]
    # The first blink comes within four seconds and lasts eight frames; before it the eyes are as in the source.
    assert not any(differs[:17]) and 4 <= sum(differs) <= 24


def test_mp4_has_picture_and_sound_of_one_length(
    lively: TalkingHeadPipeline, say: Callable[..., TalkingVideo], tmp_path: Path
) -> None:
    path = say(lively).save(tmp_path / "talking.mp4")
    assert [file.name for file in tmp_path.iterdir()] == ["talking.mp4"]
    info = probe_video(path)
    assert (info.width, info.height, info.fps, info.frames, info.has_audio) == (SIDE, SIDE, 25.0, 28, True)
    with av.open(str(path)) as container:
        video, audio = container.streams.video[0], container.streams.audio[0]
        assert (video.codec_context.name, video.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert audio.codec_context.name == "aac"
        seconds = [float(stream.duration * stream.time_base) for stream in (video, audio)]
    assert abs(seconds[0] - 28 / 25) < 1e-6 and abs(seconds[0] - seconds[1]) <= 1 / 25


def test_sound_of_the_mp4_is_the_speech_in_step(
    still: TalkingHeadPipeline, say: Callable[..., TalkingVideo], files: Path, tmp_path: Path
) -> None:
    path = say(still, pose="static").save(tmp_path / "talking.mp4")
    written, spoken = read_speech(path)[:17600], read_speech(files / "second.wav")[: len(read_speech(path))]
    shifts = range(-400, 401, 20)
    scores = [
        np.corrcoef(np.roll(written, shift)[500:-500], spoken[500 : len(written) - 500])[0, 1] for shift in shifts
    ]
    assert shifts[int(np.argmax(scores))] == 0 and max(scores) > 0.95


def test_background_is_replaced_by_a_color(
    still: TalkingHeadPipeline, say: Callable[..., TalkingVideo], files: Path
) -> None:
    keep, green = (next(iter(say(still, pose="static", background=color))).astype(int) for color in ("keep", "#00ff00"))
    for row, column in ((0, 0), (0, SIDE - 1), (10, 2)):
        np.testing.assert_allclose(green[row, column], [0, 255, 0], atol=6)
    middle = slice(SIDE // 2 - 4, SIDE // 2 + 4)
    assert np.abs(green[middle, middle] - keep[middle, middle]).max() <= 2


def test_what_stands_behind_the_person_stands_still(
    lively: TalkingHeadPipeline, say: Callable[..., TalkingVideo], files: Path
) -> None:
    portrait = find_face(files / "portrait.png", SIDE).image.astype(int)
    for frame in list(say(lively))[::9]:
        for row, column in ((0, 0), (0, SIDE - 1), (10, 2)):
            assert np.abs(frame[row, column] - portrait[row, column]).max() <= 1


def test_colors_by_name_and_code() -> None:
    assert parse_color("keep") is None and parse_color("transparent") is None
    assert parse_color("green") == (0, 128, 0)
    assert parse_color("#ff8000") == (255, 128, 0)
    with pytest.raises(UserError, match="is not a color"):
        parse_color("greenish")


def test_another_size(still: TalkingHeadPipeline, say: Callable[..., TalkingVideo]) -> None:
    video = say(still, size=96, pose="static")
    frame = next(iter(video))
    assert video.size == (96, 96) and frame.shape == (96, 96, 3)
    small = cv2.resize(frame, (SIDE, SIDE), interpolation=cv2.INTER_AREA).astype(int)
    assert np.abs(small - next(iter(say(still, pose="static")))).mean() < 3


def test_larger_frames_show_the_detail_of_the_photograph(
    still: TalkingHeadPipeline, say: Callable[..., TalkingVideo], files: Path
) -> None:
    face = find_face(files / "portrait.png", SIDE)
    photo = apply_crop(face.picture, face.crop, 2 * SIDE).astype(int)
    shown, small = (next(iter(say(still, size=size, pose="static", blink="off"))) for size in (2 * SIDE, SIDE))
    enlarged = cv2.resize(small, (2 * SIDE, 2 * SIDE), interpolation=cv2.INTER_CUBIC)
    # Without motion, the model shows the source nearly as it is.
    assert np.abs(shown - photo).mean() < 0.4 * np.abs(enlarged - photo).mean()


def test_head_is_put_back_into_the_whole_picture(
    still: TalkingHeadPipeline, say: Callable[..., TalkingVideo], files: Path, tmp_path: Path
) -> None:
    photo = astronaut()
    write_image(tmp_path / "photo.png", photo)
    video = say(still, image=tmp_path / "photo.png", framing="picture", pose="static")
    frame = next(iter(video))
    assert video.size == (512, 512) and frame.shape == (512, 512, 3)
    box = pipeline.find_face(tmp_path / "photo.png", SIDE).crop
    outside = np.ones((512, 512), bool)
    outside[int(box.y) : int(box.y + box.side) + 1, int(box.x) : int(box.x + box.side) + 1] = False
    assert outside.mean() > 0.3
    np.testing.assert_array_equal(frame[outside], photo[outside])
    # Inside the crop, the source was downsampled to 64 pixels and upsampled again.
    assert 1 < np.abs(frame[~outside].astype(int) - photo[~outside]).mean() < 25


def test_head_motion_is_taken_from_a_video(
    still: TalkingHeadPipeline, say: Callable[..., TalkingVideo], files: Path
) -> None:
    found = pipeline.find_face(files / "portrait.png", SIDE)
    poses = list(islice(choose_head_motion(found.pose, files / "driver.mp4", seed=0)(), 28))
    # The driver moves 18 pixels to the right in 10 frames, and then back again.
    centers = np.array([pose.center[0, 0] for pose in poses])
    np.testing.assert_allclose(poses[0].rotation, found.pose.rotation, atol=1e-6)
    assert centers[0] == found.pose.center[0, 0]
    assert centers[9] - centers[0] > 0.05
    np.testing.assert_allclose(centers[10:19], centers[8::-1], atol=1e-6)
    frames = list(say(still, pose=files / "driver.mp4"))
    assert len(frames) == 28
    assert np.abs(frames[9].astype(int) - frames[0]).mean() > 2
    assert np.abs(frames[18].astype(int) - frames[0]).max() <= 1


def test_motion_that_a_portrait_cannot_show_is_held_and_reported(
    still: TalkingHeadPipeline, files: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    near = astronaut()[:256, 100:356]
    with VideoWriter(tmp_path / "zoom.mp4", (256, 256), crf=10) as writer:
        for size in np.exp(np.linspace(np.log(0.5), 0.0, 16)):
            matrix = np.array([[size, 0, 128 - 124 * size], [0, size, 128 - 115 * size]])
            writer.write(cv2.warpAffine(near, matrix, (256, 256), borderMode=cv2.BORDER_REPLICATE))
    found = pipeline.find_face(files / "portrait.png", SIDE)
    with caplog.at_level(logging.WARNING, logger="s3dnerf"):
        poses = list(islice(choose_head_motion(found.pose, tmp_path / "zoom.mp4", seed=0)(), 16))
    sizes = np.array([pose.scale[0] for pose in poses]) / found.pose.scale[0]
    assert sizes[0] == 1.0 and 1.04 < sizes[-1] < 1.3
    assert all((np.abs(pose.center) + 0.85 * pose.scale <= 1.15).all() for pose in poses)
    (note,) = [record.getMessage() for record in caplog.records if record.name.startswith("s3dnerf")]
    assert "zoom.mp4: head motion is held within what the portrait shows" in note and "size x" in note


@pytest.mark.parametrize("options", [{}, {"pose": "static", "seed": 5}, {"turn": (6.0, 0.0), "blink": "off"}])
def test_an_utterance_goes_on_from_the_one_before(
    lively: TalkingHeadPipeline, say: Callable[..., TalkingVideo], options: dict[str, object]
) -> None:
    before = say(lively)
    with pytest.raises(RuntimeError, match="iterate over all frames"):
        _ = before.end_state
    first = np.stack(list(before)).astype(int)
    state = before.end_state
    assert state == MotionState.from_dict(state.to_dict())
    assert (state.pose, state.pose_frames, state.blink_frames) == ("idle", 28, 28)
    video = say(lively, start=state, **options)
    second = np.stack(list(video)).astype(int)
    assert len(second) == 28 and video.end_state.pose_frames == (56 if not options or "turn" in options else 29)
    steps = np.abs(np.diff(first, axis=0)).mean(axis=(1, 2, 3))
    join = np.abs(second[0] - first[-1]).mean()
    assert join <= 1.1 * steps.max()
    jump = np.abs(np.stack([frame for frame in say(lively, **options)][:1]).astype(int)[0] - first[-1]).mean()
    assert join < jump


def test_end_states_are_written_and_read_by_the_command(checkpoint: Path, files: Path, tmp_path: Path) -> None:
    words = ["render", "--image", files / "portrait.png", "--audio", files / "second.wav", "--checkpoint", checkpoint]
    words = [*map(str, words), "--device", "cpu", "--pose", "idle", "--out"]
    state = tmp_path / "state.json"
    assert cli.main([*words, str(tmp_path / "a.mp4"), "--end", str(state)]) == 0
    kept = state.read_text()
    assert cli.main([*words, str(tmp_path / "b.mp4"), "--start", str(state), "--end", str(tmp_path / "b.json")]) == 0
    assert read_state(state).pose_frames == 28 and read_state(tmp_path / "b.json").pose_frames == 56
    # A file that is read is never overwritten.
    assert cli.main([*words, str(tmp_path / "c.mp4"), "--start", str(state), "--end", str(state)]) == 2
    assert state.read_text() == kept and not (tmp_path / "c.mp4").exists()


def test_reenacting_a_still_head_gives_its_first_frame(still: TalkingHeadPipeline, files: Path) -> None:
    frames = list(
        still.reenact(
            files / "driver.mp4", audio=files / "second.wav", freeze_pose=True, freeze_mouth=True, max_frames=6
        )
    )
    first = next(stream_frames(files / "driver.mp4"))
    assert len(frames) == 6 and frames[0].shape == first.shape
    for frame in frames:
        np.testing.assert_array_equal(frame, frames[0])
    assert np.abs(frames[0].astype(int) - first).mean() < 12


def test_reenacting_follows_the_head_to_the_last_frame(still: TalkingHeadPipeline, files: Path, tmp_path: Path) -> None:
    # The audio is shorter than the video: the rest is silence.
    write_wav(tmp_path / "short.wav", read_speech(SPEECH)[: 5 * 640])
    frames = list(still.reenact(files / "driver.mp4", audio=tmp_path / "short.wav"))
    real = list(stream_frames(files / "driver.mp4"))
    assert len(frames) == len(real) == 10
    face = slice(70, 180)
    moved = np.abs(frames[9].astype(int) - real[9])[face, face].mean()
    unmoved = np.abs(frames[0].astype(int) - real[9])[face, face].mean()
    assert moved < 0.7 * unmoved


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an image of two faces, the larger one on the right."""
    photo = astronaut()[:320, 40:400]
    small = cv2.resize(photo, None, fx=0.6, fy=0.6, interpolation=cv2.INTER_AREA)
    image = np.full((320, 600, 3), 90, np.uint8)
    image[60 : 60 + len(small), : small.shape[1]] = small
    image[:, 240:] = photo
    path = tmp_path_factory.mktemp("group") / "group.png"
    write_image(path, image)
    return path


def test_the_largest_of_several_faces_is_taken_with_a_note(group: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        largest = find_face(group, SIDE)
    assert [record.getMessage() for record in caplog.records] == [
        f"{group} shows 2 faces; the largest is taken (the option face chooses another)"
    ]
    assert largest.crop.x > 200
    caplog.clear()
    first, second = find_face(group, SIDE, 1), find_face(group, SIDE, 2)
    assert caplog.records == []
    assert first.crop == largest.crop
    assert second.crop.x < 100 and second.crop.side == pytest.approx(0.6 * first.crop.side, rel=0.1)
    with pytest.raises(UserError, match="there is no face 3"):
        find_face(group, SIDE, 3)


def test_faces_turned_away_and_tiny_faces_are_refused() -> None:
    def turn(degrees: float, scale: float = 100.0) -> HeadPose:
        rotation = Rotation.from_euler("y", degrees, degrees=True).as_matrix()[None]
        return HeadPose(rotation, np.array([scale]), np.zeros((1, 2)))

    check_face("a.png", turn(50))
    check_face("a.png", turn(-50, scale=24.5))
    for degrees in (60, -60, 120):
        with pytest.raises(UserError, match=f"a.png: the face is turned away by {abs(degrees)} degrees"):
            check_face("a.png", turn(degrees))
    with pytest.raises(UserError, match="only about 46 pixels wide"):
        check_face("a.png", turn(0, scale=23.0))


def make_portrait_file(kind: str, path: Path, shared_data: Path | None = None) -> None:
    if kind == "no face":
        write_image(path, np.random.default_rng(0).integers(0, 255, (200, 200, 3), dtype=np.uint8))
    elif kind == "tiny face":
        image = np.full((600, 600, 3), 120, np.uint8)
        image[250:320, 250:320] = cv2.resize(astronaut()[:256, 96:352], (70, 70), interpolation=cv2.INTER_AREA)
        write_image(path, image)
    elif kind == "side view":
        write_image(path, read_frames(shared_data / "clips" / "silent_st_nice_clip1.mp4", [48])[0])
    elif kind == "not an image":
        path.write_text("This is not a picture.")


def make_sound_file(kind: str, path: Path) -> None:
    if kind == "empty":
        write_wav(path, np.zeros(0, np.float32))
    elif kind == "silent":
        write_wav(path, np.zeros(16000, np.float32))
    elif kind == "too short":
        write_wav(path, 0.1 * np.ones(1600, np.float32))
    elif kind == "not sound":
        path.write_text("This is not a recording.")
    elif kind == "no bytes":
        path.write_bytes(b"")


def refuse(capfd: pytest.CaptureFixture[str], out: Path, *words: str | Path) -> str:
    """Run ``s3dnerf render`` with words that must be refused; returns the single line that it prints."""
    code = cli.main(["render", *map(str, words), "--out", str(out / "talking.mp4")])
    captured = capfd.readouterr()
    assert code == 2
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1, captured.err
    assert captured.err.startswith("s3dnerf: error: ")
    assert not out.exists() or list(out.iterdir()) == []
    return captured.err


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("no face", "shows no face"),
        ("tiny face", "pixels wide"),
        ("side view", "turned away by"),
        ("not an image", "is not a picture"),
        ("missing", "does not exist"),
    ],
)
def test_unusable_portraits_are_refused_in_one_line(
    kind: str,
    reason: str,
    request: pytest.FixtureRequest,
    checkpoint: Path,
    files: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    real = request.getfixturevalue("shared_data") if kind == "side view" else None
    make_portrait_file(kind, tmp_path / "face.png", real)
    words = ("--image", tmp_path / "face.png", "--audio", files / "second.wav", "--checkpoint", checkpoint)
    line = refuse(capfd, tmp_path / "out", *words)
    assert str(tmp_path / "face.png") in line and reason in line


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("empty", "no sound"),
        ("silent", "is silent"),
        ("too short", "is too short (0.100 s"),
        ("not sound", "sound"),
        ("no bytes", "empty"),
        ("missing", "does not exist"),
    ],
)
def test_unusable_speech_is_refused_in_one_line(
    kind: str, reason: str, checkpoint: Path, files: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    make_sound_file(kind, tmp_path / "speech.wav")
    words = ("--image", files / "portrait.png", "--audio", tmp_path / "speech.wav", "--checkpoint", checkpoint)
    line = refuse(capfd, tmp_path / "out", *words)
    assert str(tmp_path / "speech.wav") in line and reason in line


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("--pose", "nodding"), "--pose nodding: is no video file"),
        (("--background", "greenish"), "--background greenish: is not a color"),
        (("--face", "2"), "there is no face 2"),
        (("--turn", "-41", "0"), "--turn -41 0: turns the head further"),
        (("--turn", "0", "nan"), "--turn 0 nan: turns the head further"),
        (("--size", "0"), "--size 0"),
        (("--checkpoint", "no/such/folder"), "no/such/folder: holds no model"),
        (("--checkpoint", "someone/model"), "someone/model: holds no model"),
    ],
)
def test_unusable_options_are_refused_in_one_line(
    words: tuple[str, str],
    reason: str,
    checkpoint: Path,
    files: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    given = ("--image", files / "portrait.png", "--audio", files / "second.wav", "--checkpoint", checkpoint)
    assert reason in refuse(capfd, tmp_path / "out", *given, *words)


def test_a_driver_without_a_face_is_refused(
    checkpoint: Path, files: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with VideoWriter(tmp_path / "empty.mp4", (64, 64)) as writer:
        for _ in range(3):
            writer.write(np.full((64, 64, 3), 80, np.uint8))
    given = ("--image", files / "portrait.png", "--audio", files / "second.wav", "--checkpoint", checkpoint)
    line = refuse(capfd, tmp_path / "out", *given, "--pose", tmp_path / "empty.mp4")
    assert "empty.mp4: a face is seen in only 0 of 3 frames" in line


def test_a_finished_file_survives_a_failing_run(
    checkpoint: Path, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "talking.mp4"
    out.write_bytes(b"an older video")

    def fail(*given: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(TalkingHeadPipeline, "render_batch", fail)
    words = ["--image", files / "portrait.png", "--audio", files / "second.wav", "--checkpoint", checkpoint]
    assert cli.main(["render", *map(str, words), "--out", str(out)]) == 130
    assert out.read_bytes() == b"an older video"
    assert [path.name for path in tmp_path.iterdir()] == ["talking.mp4"]


def test_rendering_by_the_command_line_tells_where_the_time_went(
    checkpoint: Path, files: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["--image", files / "portrait.png", "--audio", files / "second.wav", "--checkpoint", checkpoint]
    out = tmp_path / "new" / "talking.mp4"
    assert cli.main(["render", *map(str, words), "--out", str(out)]) == 0
    captured = capfd.readouterr()
    (line,) = captured.out.splitlines()
    assert line.startswith(f"{out}: 28 frames, ")
    assert re.search(r"; peak memory \d{3,5} MB$", line)
    for phase in (
        "loading",
        "reading speech",
        "finding the face",
        "encoding identity",
        "rendering",
        "writing",
        "in all",
    ):
        assert phase in line
    assert "28/28" in captured.err
    assert probe_video(out).frames == 28


@pytest.mark.parametrize("damage", ["no weights", "cut weights", "other sizes", "missing weights", "unknown setting"])
def test_broken_models_are_refused(still: TalkingHeadPipeline, tmp_path: Path, damage: str) -> None:
    from safetensors.torch import load_file, save_file

    still.model.save_pretrained(tmp_path)
    weights, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    if damage == "no weights":
        weights.unlink()
    elif damage == "cut weights":
        weights.write_bytes(weights.read_bytes()[:5000])
    elif damage == "other sizes":
        config.write_text(
            config.read_text().replace('"ray_size": 16', '"ray_size": 16, "samples": 2').replace("[8", "[4")
        )
        config.write_text(config.read_text().replace('"hidden": 16', '"hidden": 24'))
    elif damage == "missing weights":
        tensors = load_file(weights)
        save_file({name: value for name, value in tensors.items() if "motion_encoder" not in name}, weights)
    else:
        config.write_text(config.read_text().replace('"ray_size"', '"ray_sise"'))
    with pytest.raises(UserError) as raised:
        TalkingHeadPipeline.from_pretrained(tmp_path)
    assert len(str(raised.value).splitlines()) == 1


def test_a_training_checkpoint_is_loaded_by_its_folder(still: TalkingHeadPipeline, tmp_path: Path) -> None:
    still.model.save_pretrained(tmp_path / "step_0000001" / "model")
    loaded = TalkingHeadPipeline.from_pretrained(tmp_path / "step_0000001", device="cpu")
    assert loaded.model.config == still.model.config and not loaded.model.training


MEASURE_MEMORY = """
import resource, sys
import numpy as np
import torch
from s3dnerf.config import load_config
from s3dnerf.models.s3dnerf.s3dnerf import S3DNeRF
from s3dnerf.pipeline import TalkingHeadPipeline
from s3dnerf.training.config import S3DNeRFConfig

torch.set_num_threads(1)
folder = sys.argv[1]
config = load_config(S3DNeRFConfig, "smoke.yaml", ["--model.ray_size", "8", "--adversarial.start", "1"])
pipeline = TalkingHeadPipeline(S3DNeRF(config.model), batch=16)
for name in ("short", "long"):
    pipeline(f"{folder}/portrait.png", f"{folder}/{name}.wav", pose="idle").save(f"{folder}/{name}.mp4")
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_memory_does_not_grow_with_the_length_of_the_speech(files: Path, tmp_path: Path) -> None:
    pytest.importorskip("resource", reason="peak memory is measured on POSIX systems only")
    speech = read_speech(SPEECH)
    for name, seconds in (("short", 10), ("long", 100)):
        write_wav(tmp_path / f"{name}.wav", np.resize(speech, 16000 * seconds))
    write_image(tmp_path / "portrait.png", astronaut()[:300, 60:400])
    command = [sys.executable, "-c", MEASURE_MEMORY, str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    short, long = map(int, done.stdout.split())
    assert probe_video(tmp_path / "long.mp4").frames == 2500
    assert long < 1.1 * short


def test_settings_of_inference_replace_those_of_the_weights(checkpoint: Path) -> None:
    stored = TalkingHeadPipeline.from_pretrained(checkpoint, "cpu").model.render_config
    changed = TalkingHeadPipeline.from_pretrained(checkpoint, "cpu", settings={"motion_scale": 1.3}).model.render_config
    assert changed == replace(stored, motion_scale=1.3)
    with pytest.raises(UserError, match="motion_scale"):
        TalkingHeadPipeline.from_pretrained(checkpoint, "cpu", settings={"motion_scale": -1.0})
    with pytest.raises(UserError, match="lip_scale"):
        TalkingHeadPipeline.from_pretrained(checkpoint, "cpu", settings={"lip_scale": 1.0})


def test_the_command_line_passes_settings_of_inference(monkeypatch: pytest.MonkeyPatch, files: Path) -> None:
    passed = []
    monkeypatch.setattr("s3dnerf.render_file.render", lambda **options: passed.append(options["settings"]))
    words = ["render", "--image", str(files / "face.png"), "--audio", str(files / "speech.wav")]
    assert cli.main([*words, "--motion-scale", "1.3", "--source-detail-scale", "0.5"]) == 0
    assert cli.main(words) == 0
    assert passed == [{"motion_scale": 1.3, "source_detail_scale": 0.5}, {}]


def test_videos_name_their_weights_and_seed(
    checkpoint: Path, still: TalkingHeadPipeline, say: Callable[..., TalkingVideo], tmp_path: Path
) -> None:
    assert say(still, seed=5).provenance == Provenance("unnamed", 5)
    named = TalkingHeadPipeline.from_pretrained(checkpoint, "cpu")
    assert named.weights == checkpoint.name
    path = say(named, seed=6).save(tmp_path / "a.mp4")
    with av.open(str(path)) as container:
        assert container.metadata["comment"].endswith(f"weights: {checkpoint.name}; seed: 6")
    assert [pipeline.name_weights(given) for given in (None, "user/model")] == ["base", "user/model"]
    (tmp_path / "run" / "model").mkdir(parents=True)
    assert pipeline.name_weights(tmp_path / "run" / "model") == "run"


def test_key_and_certificate_come_together(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["render", "--image", str(files / "portrait.png"), "--audio", str(files / "second.wav")]
    assert cli.main([*words, "--sign-key", "key.pem"]) == 2
    assert "--sign-cert: is missing" in capsys.readouterr().err
    assert cli.main([*words, "--watermark", " "]) == 2
