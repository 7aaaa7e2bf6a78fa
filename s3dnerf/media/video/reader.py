"""Reading of video: streaming at a fixed frame rate, and exact random access."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

import av
import numpy as np
from av.container import InputContainer
from av.video.reformatter import VideoReformatter

from s3dnerf.constants import FPS
from s3dnerf.errors import UserError
from s3dnerf.media.color import convert_to_srgb, needs_conversion
from s3dnerf.media.container import SWSCALE_FLAGS, decode_tolerantly, find_video_stream, name_media, open_media

_DECODE_AHEAD = 24
"""Frames up to which decoding is cheaper than seeking."""


@dataclass(frozen=True)
class VideoInfo:
    """Properties of a video, as stated in its file."""

    width: int
    """Width in pixels as displayed: rotated, with square pixels."""
    height: int
    """Height in pixels as displayed."""
    fps: float
    """Average frames per second."""
    frames: int | None
    """Number of frames; None if the file does not state it."""
    has_audio: bool
    duration: float
    """Seconds; 0 if the file does not state it."""


@dataclass(frozen=True)
class TimedFrame:
    """A decoded frame and its presentation interval in seconds after the first frame."""

    frame: av.VideoFrame
    begin: float
    end: float


def probe_video(path: str | Path) -> VideoInfo:
    """Read the properties of a video, decoding only its first frame. Raises UserError if it is not a video."""
    with open_media(path, "video") as container:
        stream = _require_stream(container, path)
        first = _first_frame(container, stream, path)
        height, width = _displayed_size(first, stream)
        duration = _stated_duration(stream) or (container.duration or 0) / av.time_base
        fps = float(stream.average_rate or stream.guessed_rate or FPS)
        return VideoInfo(width, height, fps, stream.frames or None, bool(container.streams.audio), duration)


def stream_frames(path: str | Path, fps: float = FPS) -> Iterator[np.ndarray]:
    """Stream a video as upright RGB frames ``uint8 [H, W, 3]`` at a fixed frame rate. HDR is tone-mapped to sRGB.

    Frame k is the one whose presentation time is nearest to k / fps after the first frame, so that frames stay in sync
    with ``stream_speech``. There are round(duration * fps) frames, at least one. One decoded frame is held at a time.

    Args:
        path: a video file of any frame rate.
        fps: frames per second of the stream.

    Raises:
        UserError: the file is missing, not a video, damaged, or shorter than it states.
    """
    with open_media(path, "video") as container:
        stream = _require_stream(container, path)
        stream.thread_type = "AUTO"
        size, reformatter = None, VideoReformatter()
        for frame in _pick_nearest(_time_frames(container, stream, path), fps):
            size = size or _displayed_size(frame, stream)
            yield _to_rgb(frame, size, reformatter)


def read_frames(video: str | Path | BinaryIO, indices: Sequence[int] | np.ndarray) -> np.ndarray:
    """Read frames by number from a file that ``VideoWriter`` wrote.

    Seeks to the key frame before each frame and decodes forward, which is fast for a short ``gop``.

    Args:
        video: a video file: its path, or an open file that can seek.
        indices: frame numbers, in any order.

    Returns:
        RGB ``uint8 [n, H, W, 3]``, in the given order.

    Raises:
        ValueError: there is no number, or a negative one.
        UserError: the file has no such frame.
    """
    indices = np.asarray(indices, dtype=np.int64)
    if indices.size == 0 or indices.min() < 0:
        raise ValueError("indices must be one or more numbers of 0 or above")
    wanted, path = np.unique(indices), name_media(video)
    with open_media(video, "video") as container:
        _require_stream(container, path)
        frames = dict(zip(wanted.tolist(), _read_sorted(container, wanted.tolist(), path), strict=True))
    return np.stack([frames[index] for index in indices.tolist()])


def _require_stream(container: InputContainer, path: str | Path) -> av.VideoStream:
    stream = find_video_stream(container)
    if stream is None:
        raise UserError(path, "has no picture, only sound", "Use a video that shows a person.")
    return stream


def _first_frame(container: InputContainer, stream: av.VideoStream, path: str | Path) -> av.VideoFrame:
    frame = next(decode_tolerantly(container, stream), None)
    if frame is None:
        raise UserError(path, "holds no picture that can be decoded", "Use another video.")
    return frame


def _time_frames(container: InputContainer, stream: av.VideoStream, path: str | Path) -> Iterator[TimedFrame]:
    """Decode a whole stream with times relative to its first frame."""
    start, end = None, 0.0
    for frame in decode_tolerantly(container, stream):
        if start is None:
            start = frame.time or 0.0
        begin = end if frame.time is None else frame.time - start
        end = begin + _frame_duration(frame, stream)
        yield TimedFrame(frame, begin, end)
    if start is None:
        raise UserError(path, "holds no picture that can be decoded", "Use another video.")
    _check_complete(stream, end, path)


def _pick_nearest(frames: Iterable[TimedFrame], fps: float) -> Iterator[av.VideoFrame]:
    """Yield the frame that begins nearest to k / fps, for k = 0, 1, ... to the end of the last frame."""
    picked, last = 0, None
    for timed in frames:
        while last is not None and picked / fps < (last.begin + timed.begin) / 2:
            yield last.frame
            picked += 1
        last = timed
    while last is not None and picked < max(1, round(last.end * fps)):
        yield last.frame
        picked += 1


def _frame_duration(frame: av.VideoFrame, stream: av.VideoStream) -> float:
    if frame.duration and frame.time_base:
        return float(frame.duration * frame.time_base)
    return float(1 / (stream.average_rate or stream.guessed_rate or FPS))


def _check_complete(stream: av.VideoStream, end: float, path: str | Path) -> None:
    """Raise UserError if frames end after ``end`` seconds, well before the stated length."""
    stated = _stated_duration(stream)
    if end < stated - max(0.5, 0.02 * stated):
        reason = f"ends after {end:.1f} of its {stated:.1f} seconds: it is cut short or damaged"
        raise UserError(path, reason, "Copy or download it again, or convert it once with ffmpeg.")


def _stated_duration(stream: av.VideoStream) -> float:
    """Return the stated length of a stream in seconds, or 0."""
    if stream.duration is not None:
        return float(stream.duration * _time_base(stream))
    # Matroska and WebM state it in a tag, "00:01:02.500000000".
    parts = stream.metadata.get("DURATION", "").split(":")
    if len(parts) != 3:
        return 0.0
    return 3600.0 * float(parts[0]) + 60.0 * float(parts[1]) + float(parts[2])


def _time_base(stream: av.VideoStream) -> Fraction:
    assert stream.time_base is not None, "FFmpeg gives every stream that it reads a time base"
    return stream.time_base


def _number(frame: av.VideoFrame, stream: av.VideoStream, start: Fraction, rate: Fraction) -> int:
    """Return the number of a frame from its presentation time, which all frames have that ``VideoWriter`` wrote."""
    assert frame.pts is not None, "the frame has no presentation time"
    return round((frame.pts * _time_base(stream) - start) * rate)


def _displayed_size(frame: av.VideoFrame, stream: av.VideoStream) -> tuple[int, int]:
    """Return (height, width) of a frame as displayed, with square pixels and rotation applied."""
    width = max(1, round(frame.width * (stream.sample_aspect_ratio or 1)))
    return (width, frame.height) if _count_quarter_turns(frame) % 2 else (frame.height, width)


def _count_quarter_turns(frame: av.VideoFrame) -> int:
    """Return the number of counterclockwise rotations by 90 degrees that make the frame upright."""
    return round(frame.rotation / 90) % 4


def _to_rgb(frame: av.VideoFrame, size: tuple[int, int], reformatter: VideoReformatter) -> np.ndarray:
    """Convert to upright sRGB ``uint8 [H, W, 3]``.

    Args:
        frame: a decoded frame.
        size: (height, width) as displayed.
        reformatter: the same for all frames of a video, because making its tables takes as long as using them.
    """
    quarter_turns = _count_quarter_turns(frame)
    height, width = reversed(size) if quarter_turns % 2 else size
    primaries, transfer = int(frame.color_primaries), int(frame.color_trc)
    is_converted = needs_conversion(primaries, transfer)
    pixels = reformatter.reformat(
        frame, width, height, "rgb48le" if is_converted else "rgb24", interpolation=SWSCALE_FLAGS
    ).to_ndarray()
    if is_converted:
        pixels = convert_to_srgb(pixels, primaries, transfer)
    return np.ascontiguousarray(np.rot90(pixels, quarter_turns))


def _read_sorted(container: InputContainer, wanted: list[int], path: str | Path) -> Iterator[np.ndarray]:
    """Yield the frames numbered ``wanted`` (ascending, unique)."""
    stream = _require_stream(container, path)
    start = (stream.start_time or 0) * _time_base(stream)
    rate = stream.average_rate or Fraction(FPS)
    decoder: Iterator[av.VideoFrame] = iter(())
    position, frame = -1, None  # number of `frame`, the last one decoded
    reformatter = VideoReformatter()
    for index in wanted:
        if frame is None or index - position > _DECODE_AHEAD:
            decoder, position, frame = _seek(container, stream, index, start, rate)
        while frame is not None and position < index:
            frame = next(decoder, None)
            position = -1 if frame is None else _number(frame, stream, start, rate)
        if frame is None or position != index:
            raise UserError(path, f"has no frame {index}", "Prepare the clip again.")
        yield _to_rgb(frame, _displayed_size(frame, stream), reformatter)


def _seek(
    container: InputContainer, stream: av.VideoStream, index: int, start: Fraction, rate: Fraction
) -> tuple[Iterator[av.VideoFrame], int, av.VideoFrame | None]:
    """Start decoding at a key frame at or before ``index``. Returns the decoder, its first frame number and frame."""
    back = 0
    while True:
        target = max(0, index - back)
        container.seek(int((start + target / rate) / _time_base(stream)), stream=stream)
        decoder = container.decode(stream)
        frame = next(decoder, None)
        position = -1 if frame is None else _number(frame, stream, start, rate)
        # Seeking uses decoding time, which is ahead of presentation time if there are B-frames.
        if target == 0 or (frame is not None and position <= index):
            return decoder, position, frame
        back = 2 * back + 4
