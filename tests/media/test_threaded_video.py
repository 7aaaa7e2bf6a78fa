"""Writing of video in threads: the same file, a bounded queue, and errors that reach the caller."""

from __future__ import annotations

import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import av
import numpy as np
import pytest

from s3dnerf.errors import UserError
from s3dnerf.media.video import ThreadedVideoWriter, VideoWriter, choose_video_format, open_video, stream_frames, writer

SIZE = (96, 64)


def draw(count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (SIZE[1], SIZE[0], 3), np.uint8) for _ in range(count)]


def open_threaded(path: Path, **settings: object) -> ThreadedVideoWriter:
    return ThreadedVideoWriter(VideoWriter(path, SIZE, preset="ultrafast"), **settings)


def list_threads() -> set[str]:
    return {thread.name for thread in threading.enumerate() if thread.name.startswith(("convert", "encode"))}


def test_the_file_is_that_of_one_thread(tmp_path: Path) -> None:
    frames = draw(30)
    with VideoWriter(tmp_path / "one.mp4", SIZE, preset="ultrafast") as plain:
        for frame in frames:
            plain.write(frame)
    with open_threaded(tmp_path / "two.mp4") as threaded:
        for frame in frames:
            threaded.write(frame)
    one, two = (list(stream_frames(tmp_path / name)) for name in ("one.mp4", "two.mp4"))
    assert len(one) == len(two) == 30
    np.testing.assert_array_equal(one, two)
    assert not list_threads()


def test_the_queue_is_bounded_and_every_frame_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded, measured = [], []
    encode = VideoWriter.encode

    def encode_slowly(self: VideoWriter, image: av.VideoFrame) -> None:
        time.sleep(0.01)
        encode(self, image)
        encoded.append(image.pts)

    @contextmanager
    def measure():
        yield
        measured.append(True)

    monkeypatch.setattr(VideoWriter, "encode", encode_slowly)
    with open_threaded(tmp_path / "a.mp4", waiting=3, measure=measure) as threaded:
        for number, frame in enumerate(draw(20)):
            threaded.write(frame)
            assert number + 1 - len(encoded) <= 3
    assert encoded == list(range(20)) and len(measured) == 20


def fail_at(monkeypatch: pytest.MonkeyPatch, method: str, number: int) -> None:
    """Let the writer fail at a frame, as on a full disk."""
    function, calls = getattr(VideoWriter, method), []

    def fail(self: VideoWriter, given: object) -> object:
        calls.append(True)
        if len(calls) > number:
            raise OSError(28, "No space left on device")
        return function(self, given)

    monkeypatch.setattr(VideoWriter, method, fail)


@pytest.mark.parametrize("method", ["convert", "encode"])
@pytest.mark.parametrize("number", [2, 19])
def test_an_error_in_a_thread_ends_writing_and_keeps_the_older_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, number: int
) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(b"older")
    fail_at(monkeypatch, method, number)
    with pytest.raises(UserError, match=r"a\.mp4: cannot be written.*space"), open_threaded(path) as threaded:
        for frame in draw(20):
            threaded.write(frame)
            time.sleep(0.002)
    assert path.read_bytes() == b"older" and list(tmp_path.iterdir()) == [path]
    assert not list_threads()


def test_an_error_reaches_the_caller_long_before_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_at(monkeypatch, "encode", 0)
    written = 0
    with pytest.raises(UserError), open_threaded(tmp_path / "a.mp4") as threaded:
        for frame in draw(100):
            threaded.write(frame)
            written += 1
    assert written <= 9


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit])
def test_an_interruption_drops_what_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interruption: type[BaseException]
) -> None:
    path, encoded = tmp_path / "a.mp4", []
    path.write_bytes(b"older")
    encode = VideoWriter.encode

    def encode_slowly(self: VideoWriter, image: av.VideoFrame) -> None:
        time.sleep(0.05)
        encode(self, image)
        encoded.append(True)

    monkeypatch.setattr(VideoWriter, "encode", encode_slowly)
    with pytest.raises(interruption), open_threaded(path) as threaded:
        for frame in draw(8):
            threaded.write(frame)
        raise interruption
    assert len(encoded) < 8
    assert path.read_bytes() == b"older" and list(tmp_path.iterdir()) == [path]
    assert not list_threads()


@pytest.mark.parametrize("first", [KeyboardInterrupt, None])
def test_an_interruption_while_the_threads_end_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: type[BaseException] | None
) -> None:
    path, waits = tmp_path / "a.mp4", threading.Event()
    path.write_bytes(b"older")
    encode, shutdown = VideoWriter.encode, ThreadPoolExecutor.shutdown

    def encode_slowly(self: VideoWriter, image: av.VideoFrame) -> None:
        encode(self, image)
        if first is not None:
            waits.wait(10)

    def interrupt_once(self: ThreadPoolExecutor, **settings: bool) -> None:
        if not waits.is_set():
            # Ctrl-C while the main thread waits for the encoder.
            waits.set()
            signal.raise_signal(signal.SIGINT)
        shutdown(self, **settings)

    monkeypatch.setattr(VideoWriter, "encode", encode_slowly)
    monkeypatch.setattr(ThreadPoolExecutor, "shutdown", interrupt_once)
    with pytest.raises(KeyboardInterrupt), open_threaded(path) as threaded:
        for frame in draw(4):
            threaded.write(frame)
        if first is not None:
            raise first
    assert path.read_bytes() == b"older" and list(tmp_path.iterdir()) == [path]
    assert not list_threads()


def test_a_frame_of_another_size_and_a_video_without_frames_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected uint8"), open_threaded(tmp_path / "a.mp4") as threaded:
        threaded.write(np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(UserError, match="would hold no picture"), open_threaded(tmp_path / "a.mp4"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_gpu_encodes_only_what_it_can_and_only_where_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    mp4, webm = choose_video_format("a.mp4"), choose_video_format("a.webm")
    assert writer.choose_encoder(mp4, SIZE, hardware=False) == "libx264"
    assert writer.choose_encoder(webm, SIZE, hardware=True) == "libvpx-vp9"
    hevc = choose_video_format("a.mp4", "hevc")
    assert writer.choose_encoder(hevc, SIZE, hardware=False) == "libx265"
    # Any encoder that opens stands for that of a GPU.
    monkeypatch.setattr(writer, "NVENC", {"libx264": "mpeg4"})
    monkeypatch.setattr(writer, "_NVENC_OPTIONS", {})
    assert writer.choose_encoder(mp4, SIZE, hardware=True) == "mpeg4"
    monkeypatch.setattr(writer, "NVENC", {"libx264": "no_such_encoder"})
    assert writer.choose_encoder(mp4, SIZE, hardware=True) == "libx264"


@pytest.mark.skipif("h264_nvenc" not in av.codecs_available, reason="this PyAV has no NVENC")
def test_without_an_encoder_on_the_gpu_the_processor_encodes(tmp_path: Path) -> None:
    with open_video(tmp_path / "a.mp4", SIZE, hardware=True) as plain:
        for frame in draw(3):
            plain.write(frame)
    # Frames of this size are too small for every NVENC.
    assert plain.encoder == "libx264"
    assert len(list(stream_frames(tmp_path / "a.mp4"))) == 3
