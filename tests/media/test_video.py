"""Video: number, timing and color of frames, audio in sync, and atomic output."""

from __future__ import annotations

import os
import resource
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import soundfile
from PIL import Image

import s3dnerf
from s3dnerf.constants import FPS, SAMPLE_RATE
from s3dnerf.errors import UserError
from s3dnerf.media.audio import read_speech
from s3dnerf.media.video import (
    VIDEO_FORMATS,
    Region,
    ThreadedVideoWriter,
    VideoWriter,
    choose_video_format,
    probe_video,
    read_frames,
    stream_frames,
)

SPEECH = Path(s3dnerf.__file__).parent / "assets" / "speech.wav"

MakeFilm = Callable[..., None]
Numbers = tuple[Callable[[int], np.ndarray], Callable[[np.ndarray], int]]
SIZE = (96, 64)


def view_pixels(plane: av.video.plane.VideoPlane) -> np.ndarray:
    """Return the pixels of a plane without its padding."""
    return np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)[:, : plane.width]


def write_numbers(path: Path, count: int, numbers: Numbers, **settings: object) -> None:
    with VideoWriter(path, SIZE, **settings) as writer:
        for number in range(count):
            writer.write(numbers[0](number))


@pytest.mark.parametrize("rate", [10, 15, 24000 / 1001, 25, 30000 / 1001, 30, 50, 60])
def test_any_frame_rate_becomes_25_in_sync(
    tmp_path: Path, make_film: MakeFilm, number_pictures: Numbers, rate: float
) -> None:
    draw, read = number_pictures
    count = round(2.2 * rate)
    make_film(tmp_path / "a.mp4", [draw(k) for k in range(count)], np.arange(count) / rate)
    shown = np.array([read(picture) for picture in stream_frames(tmp_path / "a.mp4")])
    assert abs(len(shown) - count / rate * 25) < 1.01
    error = shown / rate - np.arange(len(shown)) / 25
    assert np.abs(error[:-1]).max() <= 0.5 / rate + 1e-4
    if rate == 25:
        np.testing.assert_array_equal(shown, np.arange(count))


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".webm", ".ts", ".avi", ".mov"])
def test_containers(tmp_path: Path, number_pictures: Numbers, suffix: str) -> None:
    draw, read = number_pictures
    codec = {".webm": "libvpx", ".avi": "mpeg4"}.get(suffix, "libx264")
    with av.open(str(tmp_path / f"a{suffix}"), "w") as container:
        video = container.add_stream(codec, rate=25)
        video.width, video.height, video.pix_fmt, video.bit_rate = *SIZE, "yuv420p", 2_000_000
        for number in range(40):
            container.mux(video.encode(av.VideoFrame.from_ndarray(draw(number), "rgb24")))
        container.mux(video.encode(None))
    shown = [read(picture) for picture in stream_frames(tmp_path / f"a{suffix}")]
    assert shown == list(range(40))
    info = probe_video(tmp_path / f"a{suffix}")
    assert (info.width, info.height, info.fps, info.has_audio) == (*SIZE, 25.0, False)
    assert info.duration == pytest.approx(1.6, abs=0.05)


def test_variable_rate_follows_presentation_time(tmp_path: Path, make_film: MakeFilm, number_pictures: Numbers) -> None:
    draw, read = number_pictures
    times = np.concatenate([np.arange(30) / 60, 0.5 + np.arange(10) / 10, [1.9, 1.93, 2.5, 2.54]])
    make_film(tmp_path / "a.mp4", [draw(k) for k in range(len(times))], times)
    shown = np.array([read(picture) for picture in stream_frames(tmp_path / "a.mp4")])
    wanted = np.arange(len(shown)) / 25
    distance = np.abs(times[None] - wanted[:, None])
    chosen = distance[np.arange(len(shown)), shown]
    np.testing.assert_allclose(chosen, distance.min(axis=1), atol=1e-4)
    assert abs(len(shown) - 2.58 * 25) <= 2


@pytest.mark.parametrize("fps", [10.0, 30.0])
def test_other_rates_can_be_asked_for(tmp_path: Path, number_pictures: Numbers, fps: float) -> None:
    write_numbers(tmp_path / "a.mp4", 50, number_pictures)
    shown = [number_pictures[1](picture) for picture in stream_frames(tmp_path / "a.mp4", fps)]
    assert len(shown) == 2 * fps
    assert np.abs(np.array(shown) / 25 - np.arange(len(shown)) / fps).max() <= 0.0201


@pytest.mark.parametrize("gop", [12, 1, None])
def test_read_frames_is_exact(tmp_path: Path, number_pictures: Numbers, gop: int | None) -> None:
    write_numbers(tmp_path / "a.mp4", 150, number_pictures, gop=gop)
    path, read = tmp_path / "a.mp4", number_pictures[1]
    assert [read(picture) for picture in read_frames(path, np.arange(150))] == list(range(150))
    for index in range(150):
        assert read(read_frames(path, [index])[0]) == index
    scattered = [149, 0, 24, 24, 11, 12, 13, 100, 60]
    pictures = read_frames(path, scattered)
    assert pictures.shape == (9, 64, 96, 3)
    assert [read(picture) for picture in pictures] == scattered
    streamed = list(stream_frames(path))
    np.testing.assert_array_equal(pictures[4], streamed[11])


def test_read_frames_reports_missing_frames(tmp_path: Path, number_pictures: Numbers) -> None:
    write_numbers(tmp_path / "a.mp4", 20, number_pictures)
    with pytest.raises(UserError, match=r"a\.mp4: has no frame 20"):
        read_frames(tmp_path / "a.mp4", [3, 20])
    with pytest.raises(ValueError, match="0 or above"):
        read_frames(tmp_path / "a.mp4", [-1])


@pytest.mark.parametrize("rotation", [0, 90, 180, -90])
def test_rotation_is_applied(tmp_path: Path, make_film: MakeFilm, rotation: int) -> None:
    upright = np.zeros((96, 64, 3), np.uint8)
    upright[:32, :32] = 255  # a white corner, top left
    upright[64:, :32] = 128
    stored = np.ascontiguousarray(np.rot90(upright, -rotation // 90))
    make_film(tmp_path / "a.mp4", [stored] * 5, np.arange(5) / 25, rotation=rotation)
    info = probe_video(tmp_path / "a.mp4")
    assert (info.width, info.height) == (64, 96)
    shown = next(stream_frames(tmp_path / "a.mp4"))
    assert np.abs(shown.astype(int) - upright).mean() < 3


def test_oblong_pixels_are_made_square(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        video = container.add_stream("libx264", rate=25)
        video.width, video.height, video.pix_fmt = 64, 64, "yuv420p"
        video.codec_context.sample_aspect_ratio = 2
        for _ in range(3):
            container.mux(video.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), "rgb24")))
        container.mux(video.encode(None))
    assert next(stream_frames(tmp_path / "a.mp4")).shape == (64, 128, 3)


def test_colors_survive_a_round_trip(tmp_path: Path) -> None:
    corners = np.array([[0, 0, 0], [255, 255, 255], [255, 0, 0], [0, 255, 0], [0, 0, 255], [200, 150, 120]])
    picture = np.repeat(np.repeat(corners[None].astype(np.uint8), 16, axis=1), 32, axis=0)
    grey = np.broadcast_to(np.arange(0, 256, 16, dtype=np.uint8)[None, :, None], (32, 16, 3))
    picture = np.concatenate([picture, np.repeat(grey, 6, axis=1)], axis=0)
    with VideoWriter(tmp_path / "a.mp4", (96, 64), crf=4) as writer:
        for _ in range(3):
            writer.write(picture)
    shown = read_frames(tmp_path / "a.mp4", [1])[0].astype(int)
    middle = shown[16, 8::16]
    assert np.abs(middle - corners).max() <= 4
    levels = shown[48, 2::6].mean(axis=1) - np.arange(0, 256, 16)
    assert abs(levels.mean()) < 0.5  # neither darker nor lighter on the whole
    # OpenCV, with which others may compare our videos, knows nothing of color marks.
    _, other = cv2.VideoCapture(str(tmp_path / "a.mp4")).read()
    assert np.abs(other[16, 8::16, ::-1].astype(int) - corners).max() <= 4


def test_files_are_widely_playable(tmp_path: Path, number_pictures: Numbers) -> None:
    path = tmp_path / "a.mp4"
    write_numbers(path, 30, number_pictures, audio=np.zeros(SAMPLE_RATE, np.float32), gop=12)
    content = path.read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")
    with av.open(str(path)) as container:
        video, sound = container.streams.video[0], container.streams.audio[0]
        assert (video.codec.name, video.pix_fmt, video.average_rate, video.frames) == (
            "h264",
            "yuv420p",
            25,
            30,
        )
        assert (sound.codec.name, sound.rate, sound.layout.name) == ("aac", 48000, "mono")
        assert (video.codec_context.colorspace, video.codec_context.color_range) == (6, 1)
        keys = [packet.is_keyframe for packet in container.demux(video) if packet.size]
    assert np.flatnonzero(keys).tolist() == [0, 12, 24]


@pytest.mark.parametrize("seconds", [0.01, 1.0, 2.0, 3.7])
@pytest.mark.parametrize("kind", ["array", "mono", "stereo"])
def test_audio_is_as_long_as_the_video(tmp_path: Path, number_pictures: Numbers, kind: str, seconds: float) -> None:
    sound = 0.1 * np.ones(round(seconds * 22050), np.float32)
    audio: Path | np.ndarray = tmp_path / "a.wav"
    if kind == "array":
        audio = 0.1 * np.ones(round(seconds * SAMPLE_RATE), np.float32)
    else:
        soundfile.write(audio, sound if kind == "mono" else np.stack([sound, -sound], axis=1), 22050)
    path = tmp_path / "a.mp4"
    write_numbers(path, 50, number_pictures, audio=audio)
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        assert stream.layout.nb_channels == (2 if kind == "stereo" else 1)
        assert abs(float(stream.duration * stream.time_base) - 2.0) < 0.04
    assert probe_video(path).duration == pytest.approx(2.0)
    assert abs(len(read_speech(path)) - 2 * SAMPLE_RATE) < 640


def test_audio_is_close_to_its_source(tmp_path: Path, number_pictures: Numbers) -> None:
    speech = read_speech(SPEECH)[: 2 * SAMPLE_RATE]
    write_numbers(tmp_path / "a.mp4", 50, number_pictures, audio=speech)
    noise = read_speech(tmp_path / "a.mp4")[: len(speech)] - speech
    # The encoder's usual coder comes to 19 dB.
    assert 10.0 * np.log10(np.square(speech).mean() / np.square(noise).mean()) > 30.0


def find_flash_and_beep(path: Path) -> tuple[float, float]:
    """Mean time in seconds at which bright pictures begin, and time of the loudest sample."""
    bright = np.flatnonzero([picture.mean() > 120 for picture in stream_frames(path)])
    return bright.mean() / 25, np.argmax(np.abs(read_speech(path))) / SAMPLE_RATE


@pytest.mark.parametrize(
    ("suffix", "rate", "picture_start", "sound_start"),
    [
        (".mp4", 25, 0.0, 0.0),
        (".mp4", 30, 0.0, 0.0),
        (".mkv", 60, 0.0, 0.0),
        (".mp4", 25, 0.0, 0.4),
        (".mkv", 25, 0.4, 0.0),
        (".ts", 25, 0.3, 0.0),
    ],
)
def test_flash_and_beep_stay_in_sync(
    tmp_path: Path, make_film: MakeFilm, suffix: str, rate: int, picture_start: float, sound_start: float
) -> None:
    path, first, last = tmp_path / f"a{suffix}", round(1.5 * rate), round(1.6 * rate)
    times = picture_start + np.arange(3 * rate) / rate
    moment = (times[first] + times[last]) / 2
    pictures = [np.full((32, 32, 3), 220 if first <= k <= last else 20, np.uint8) for k in range(3 * rate)]
    sound = np.zeros((1, 3 * 48000), np.float32)
    middle = round((moment - sound_start) * 48000)
    sound[0, middle - 24 : middle + 24] = 0.9 * np.sin(np.arange(48) * 2 * np.pi / 24)
    make_film(path, pictures, times, sound, 48000, sound_start)
    flash, beep = find_flash_and_beep(path)
    assert flash == pytest.approx(moment - picture_start, abs=0.021)
    assert abs(flash - beep) < 0.021
    copy = tmp_path / "copy.mp4"
    with VideoWriter(copy, (32, 32), audio=path) as writer:
        for picture in stream_frames(path):
            writer.write(picture)
    copied_flash, copied_beep = find_flash_and_beep(copy)
    assert copied_flash == flash
    assert abs(copied_beep - beep) < 0.002


@pytest.mark.parametrize(("width", "height"), [(33, 47), (32, 47), (33, 48)])
def test_odd_sizes_are_padded_to_even(tmp_path: Path, width: int, height: int) -> None:
    with VideoWriter(tmp_path / "a.mp4", (width, height)) as writer:
        for _ in range(3):
            writer.write(np.full((height, width, 3), 180, np.uint8))
    shown = read_frames(tmp_path / "a.mp4", [0])[0]
    assert shown.shape == (height + height % 2, width + width % 2, 3)
    assert np.abs(shown.astype(int) - 180).max() <= 2


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, number_pictures: Numbers, error: type[BaseException]
) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(b"old")
    with pytest.raises(error), VideoWriter(path, SIZE, audio=np.zeros(99, np.float32)) as writer:
        writer.write(number_pictures[0](1))
        raise error
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_writer_refuses_invalid_outputs_and_frames(tmp_path: Path, number_pictures: Numbers) -> None:
    (tmp_path / "in").mkdir()
    text = tmp_path / "in" / "text.wav"
    text.write_text("Good morning.")
    path = tmp_path / "a.mp4"
    with pytest.raises(UserError, match=r"text\.wav: is text"), VideoWriter(path, SIZE, audio=text):
        pass
    with pytest.raises(UserError, match=r"a\.mp4: would hold no picture"), VideoWriter(path, SIZE):
        pass
    with pytest.raises(ValueError, match="expected uint8"), VideoWriter(path, SIZE) as writer:
        writer.write(np.zeros((64, 64, 3), np.uint8))
    (tmp_path / "in.mp4").mkdir()
    with pytest.raises(UserError, match="is a folder"), VideoWriter(tmp_path / "in.mp4", SIZE):
        pass
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["in", "in.mp4"]


def test_a_full_disk_is_reported(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, hard))
    try:
        with (
            pytest.raises(UserError, match=r"a\.mp4: cannot be written .*Free some space"),
            VideoWriter(tmp_path / "a.mp4", (256, 256)) as writer,
        ):
            for _ in range(60):
                writer.write(generator.integers(0, 256, (256, 256, 3), dtype=np.uint8))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())


def test_files_that_are_not_videos_are_reported(tmp_path: Path, number_pictures: Numbers) -> None:
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "picture.jpg")
    (tmp_path / "text.mp4").write_text("Good morning.\n" * 50)
    soundfile.write(tmp_path / "sound.wav", np.zeros(16000), SAMPLE_RATE)
    (tmp_path / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(20000))
    write_numbers(tmp_path / "a.mp4", 100, number_pictures)
    content = (tmp_path / "a.mp4").read_bytes()
    (tmp_path / "headless.mp4").write_bytes(content[content.index(b"mdat") - 4 :])
    cases = {
        "picture.jpg": "is a picture, not a video that can be read. Use a video",
        "text.mp4": "is text, not a video that can be read. Use a video",
        "sound.wav": "has no picture, only sound. Use a video",
        "noise.mp4": "is not a video that can be read, or it is cut short. Use a video",
        "headless.mp4": "is not a video that can be read, or it is cut short. Use a video",
        "none.mp4": "does not exist. Check the name of the video file.",
    }
    for name, message in cases.items():
        for use in (probe_video, lambda path: list(stream_frames(path)), lambda path: read_frames(path, [0])):
            with pytest.raises(UserError) as caught:
                use(tmp_path / name)
            assert str(caught.value).startswith(f"{tmp_path / name}: {message}")


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_truncated_file_is_refused(
    tmp_path: Path, make_film: MakeFilm, number_pictures: Numbers, suffix: str
) -> None:
    path = tmp_path / f"a{suffix}"
    if suffix == ".mp4":
        write_numbers(path, 200, number_pictures)
    else:
        make_film(path, [number_pictures[0](k) for k in range(200)], np.arange(200) / 25)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match=r"ends after \d\.\d of its 8\.0 seconds: it is cut short"):
        list(stream_frames(path))


def test_reading_and_writing_need_little_memory(
    tmp_path: Path, number_pictures: Numbers, resident_mebibytes: Callable[[], float]
) -> None:
    soundfile.write(tmp_path / "a.wav", np.random.default_rng(0).uniform(-0.1, 0.1, 22050 * 10), 22050)
    path, draw = tmp_path / "a.mp4", number_pictures[0]
    with VideoWriter(path, SIZE, audio=tmp_path / "a.wav", preset="ultrafast") as writer:
        for number in range(1500):
            writer.write(draw(number))
            if number == 300:
                before = resident_mebibytes()
        # 1200 frames are 21 MiB as pixels; their sound is 9 MiB.
        assert resident_mebibytes() - before < 6
    frames = stream_frames(path)
    for _ in range(300):
        next(frames)
    before = resident_mebibytes()
    assert sum(1 for _ in frames) == 1200
    assert resident_mebibytes() - before < 6


def test_a_real_clip_keeps_frames_and_audio_in_sync(shared_data: Path, tmp_path: Path) -> None:
    source = sorted((shared_data / "clips").glob("grid_s1_*.mp4"))[0]
    info = probe_video(source)
    with VideoWriter(tmp_path / "a.mp4", (info.width, info.height), audio=source, gop=12) as writer:
        for picture in stream_frames(source):
            writer.write(picture)
    assert writer.frames == info.frames
    speech, original = read_speech(tmp_path / "a.mp4"), read_speech(source)
    length = info.frames * 640
    assert abs(len(speech) - length) < 640
    assert np.corrcoef(speech[:length], original[:length])[0, 1] > 0.99
    middle = info.frames // 2
    pictures = [read_frames(path, [middle])[0].astype(int) for path in (source, tmp_path / "a.mp4")]
    assert np.abs(pictures[0] - pictures[1]).mean() < 3


CONTAINERS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska", ".webm": "webm"}


def make_click() -> np.ndarray:
    """Two seconds of silence with a click at one second, when the picture turns white."""
    speech = np.zeros(2 * SAMPLE_RATE, np.float32)
    speech[SAMPLE_RATE : SAMPLE_RATE + 400] = 0.8 * np.sin(0.5 * np.arange(400))
    return speech


def write_flash(path: Path) -> None:
    with VideoWriter(path, (64, 64), audio=make_click(), preset="ultrafast") as writer:
        for index in range(50):
            writer.write(np.full((64, 64, 3), 255 if index >= FPS else 0, np.uint8))


@pytest.mark.parametrize("suffix", VIDEO_FORMATS)
def test_the_suffix_selects_the_container_and_audio_stays_in_sync(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"flash{suffix}"
    write_flash(path)
    with av.open(str(path)) as container:
        assert CONTAINERS[suffix] in container.format.name
        codecs = {stream.codec_context.name for stream in container.streams}
    assert codecs == ({"libvpx-vp9", "opus"} if suffix == ".webm" else {"h264", "aac"}) or codecs == {"vp9", "opus"}
    pictures = list(stream_frames(path))
    assert [index for index, picture in enumerate(pictures) if picture.mean() > 128] == list(range(FPS, 50))
    assert probe_video(path).duration == pytest.approx(2.0, abs=0.05)
    onset = np.flatnonzero(np.abs(read_speech(path)) > 0.3)[0]
    assert onset == pytest.approx(SAMPLE_RATE, abs=16)


@pytest.mark.parametrize("name", ["a.gif", "a.png", "a.avi", "a", "a.mp4.bak"])
def test_other_suffixes_are_refused_with_those_that_can_be_written(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"\.mp4, \.m4v, \.mov, \.mkv, \.webm"):
        VideoWriter(tmp_path / name, SIZE)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["pipe", "pipe.mkv", "pipe.webm"])
def test_a_pipe_gets_a_video_while_it_is_written(tmp_path: Path, name: str) -> None:
    pipe, copy = tmp_path / name, tmp_path / "copy.bin"
    os.mkfifo(pipe)
    with ThreadPoolExecutor(1) as thread:
        done = thread.submit(lambda: copy.write_bytes(pipe.read_bytes()))
        write_flash(pipe)
        done.result(timeout=20)
    assert len(list(stream_frames(copy))) == 50
    assert np.flatnonzero(np.abs(read_speech(copy)) > 0.3)[0] == pytest.approx(SAMPLE_RATE, abs=16)
    assert stat.S_ISFIFO(pipe.stat().st_mode)


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
@pytest.mark.parametrize(
    "region",
    [
        (slice(41, 95), slice(33, 120)),
        (slice(0, 30), slice(0, 31)),
        (slice(100, 140), slice(150, 200)),
        (slice(0, 140), slice(0, 200)),
        (slice(70, 70), slice(20, 40)),
    ],
    ids=str,
)
def test_only_the_part_that_changes_is_converted_again(tmp_path: Path, suffix: str, region: Region) -> None:
    rng = np.random.default_rng(0)
    form = choose_video_format(f"video{suffix}", alpha=suffix == ".webm")
    channels = 4 if suffix == ".webm" else 3
    first = rng.integers(0, 256, (140, 200, channels), np.uint8)
    whole = VideoWriter(tmp_path / f"whole{suffix}", (200, 140), video_format=form)
    parts = VideoWriter(tmp_path / f"parts{suffix}", (200, 140), video_format=form)
    parts.limit_changes(region)
    for _ in range(3):
        frame = first.copy()
        frame[region] = rng.integers(0, 256, frame[region].shape, np.uint8)
        for expected, found in zip(whole.convert(frame).planes, parts.convert(frame).planes, strict=True):
            assert np.array_equal(view_pixels(expected), view_pixels(found))


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
def test_frames_that_are_used_again_do_not_change_the_file(tmp_path: Path, suffix: str) -> None:
    rng = np.random.default_rng(0)
    first, region = rng.integers(0, 256, (140, 200, 3), np.uint8), (slice(41, 95), slice(33, 120))
    frames = [first]
    for _ in range(30):
        frames.append(first.copy())
        frames[-1][region] = rng.integers(0, 256, frames[-1][region].shape, np.uint8)
    decoded = []
    for name in ("whole", "parts"):
        writer = VideoWriter(tmp_path / f"{name}{suffix}", (200, 140), preset="veryfast")
        if name == "parts":
            writer.limit_changes(region)
        with ThreadedVideoWriter(writer) as threaded:
            for frame in frames:
                threaded.write(frame)
        decoded.append(np.stack(list(stream_frames(writer.path))))
    assert np.array_equal(*decoded) and len(decoded[0]) == 31


def test_what_is_said_not_to_change_is_kept_from_the_first_frame(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "video.mp4", (96, 64)) as writer:
        writer.limit_changes((slice(20, 30), slice(30, 50)))
        for level in (60, 200):
            writer.write(np.full((64, 96, 3), level, np.uint8))
    last = list(stream_frames(tmp_path / "video.mp4"))[-1]
    assert abs(last[25, 40].astype(int) - 200).max() < 4 and abs(last[2, 2].astype(int) - 60).max() < 4


@pytest.mark.parametrize(
    ("side", "effort"),
    [
        (512, (b"subme=2 ", b"analyse=0x3:0x113 ", b"weightp=1 ")),
        (528, (b"subme=1 ", b"analyse=0x3:0 ", b"weightp=0 ")),
    ],
)
def test_large_frames_are_encoded_with_less_effort(tmp_path: Path, side: int, effort: tuple[bytes, ...]) -> None:
    with VideoWriter(tmp_path / "video.mp4", (side, side), preset="veryfast") as writer:
        writer.write(np.zeros((side, side, 3), np.uint8))
    # x264 writes its settings into the stream.
    written = (tmp_path / "video.mp4").read_bytes()
    assert all(setting in written for setting in effort)
