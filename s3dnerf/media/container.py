"""Opening of media files with FFmpeg (through PyAV), with its failures as UserErrors."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, overload

import av
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.stream import Disposition
from av.video.reformatter import Interpolation
from av.video.stream import VideoStream

from s3dnerf.errors import UserError
from s3dnerf.media.files import require_file
from s3dnerf.media.memory import Media, MediaBytes

# Formats of still images, which FFmpeg opens as videos (like every format named "..._pipe").
_STILL_FORMATS = {"image2", "ico"}
_CURES = {
    "speech": "Use a recording such as WAV, MP3, M4A, FLAC or OGG, or a video with sound.",
    "video": "Use a video such as MP4, MOV, MKV or WebM.",
}
_ACCURATE_ROUNDING, _FULL_CHROMA_OUT, _FULL_CHROMA_IN = 0x40000, 0x2000, 0x4000
SWSCALE_FLAGS = int(Interpolation.BICUBIC) | _ACCURATE_ROUNDING | _FULL_CHROMA_OUT | _FULL_CHROMA_IN
"""Flags of color conversion. By default swscale rounds down (one level too dark) and repeats chroma instead of
interpolating it. The numbers are those of libswscale, since not every PyAV release names them."""

log = logging.getLogger(__name__)


@contextmanager
def open_media(media: Media | BinaryIO, kind: str) -> Iterator[InputContainer]:
    """Open an audio or video file for reading inside the block.

    Args:
        media: a path, a file in memory, or an open file that can seek, which stays open.
        kind: what is expected, "speech" or "video".

    Raises:
        UserError: the file is missing, neither audio nor video, or broken, even if FFmpeg fails later in the block.
    """
    path = name_media(media)
    source: str | BinaryIO
    if isinstance(media, MediaBytes):
        media = media.open()
    if isinstance(media, (str, Path)):
        path = require_file(media, kind)
        with path.open("rb") as file:
            head = file.read(4096)
        # FFmpeg cannot mistake an absolute path for a URL such as "http:" or "concat:".
        source = str(path.absolute())
    else:
        head, source = media.read(4096), media
        media.seek(0)
    if not head:
        raise UserError(path, "is an empty file", _CURES[kind])
    if is_text(head):
        raise UserError(path, f"is text, not {_describe(kind)}", _CURES[kind])
    try:
        container = av.open(source, mode="r", metadata_errors="replace")
    except av.error.InvalidDataError as error:
        raise UserError(path, f"is not {_describe(kind)}, or it is cut short", _CURES[kind]) from error
    except av.error.FFmpegError as error:
        raise UserError(path, f"cannot be opened ({error.strerror})", _CURES[kind]) from error
    with container:
        if _is_still(container):
            raise UserError(path, f"is a picture, not {_describe(kind)}", _CURES[kind])
        try:
            yield container
        except av.error.FFmpegError as error:
            hint = "Convert it once with ffmpeg, or use another file."
            raise UserError(path, f"cannot be decoded ({error.strerror})", hint) from error


def name_media(media: Media | BinaryIO) -> Path:
    """Return the path or the name of a file, for messages."""
    return Path(media if isinstance(media, (str, Path)) else str(getattr(media, "name", "media")))


def is_text(head: bytes) -> bool:
    """Tell whether the first bytes of a file are plain text.

    FFmpeg would render text as a video, or follow a playlist to other files and wait for it to grow.
    """
    if any(byte < 0x20 and byte not in b"\t\n\r\f\x1b" for byte in head):
        return False
    # The last character may be incomplete.
    return any(_is_utf8(head[: len(head) - cut]) for cut in range(4))


def find_video_stream(container: InputContainer) -> VideoStream | None:
    """Return the first video stream that is not a cover image, or None."""
    for stream in container.streams.video:
        if not stream.disposition & (Disposition.attached_pic | Disposition.timed_thumbnails):
            return stream
    return None


def find_audio_stream(container: InputContainer, path: Media) -> AudioStream:
    """Return the audio stream marked as default, or FFmpeg's choice. Raises UserError if there is none."""
    tracks = container.streams.audio
    if not tracks:
        raise UserError(path, "has no sound", "Use a recording, or a video with a sound track.")
    marked = [track for track in tracks if track.disposition & Disposition.default]
    chosen = marked[0] if marked else container.streams.best("audio")
    if not isinstance(chosen, AudioStream):
        raise UserError(path, "has no sound that can be read", "Use a recording, or a video with a sound track.")
    if len(tracks) > 1:
        log.info("%s has %d sound tracks; number %d is used", path, len(tracks), tracks.index(chosen) + 1)
    return chosen


def find_start_time(path: Media, kind: str) -> float | None:
    """Return the presentation time of the first video frame in seconds of the file's clock, or None without video.

    Times of both audio and video are relative to it, so that they stay in sync wherever the clock starts.
    """
    with open_media(path, kind) as container:
        stream = find_video_stream(container)
        if stream is None:
            return None
        for frame in decode_tolerantly(container, stream):
            return 0.0 if frame.time is None else float(frame.time)
    return None


@overload
def decode_tolerantly(container: InputContainer, stream: VideoStream) -> Iterator[av.VideoFrame]: ...


@overload
def decode_tolerantly(container: InputContainer, stream: AudioStream) -> Iterator[av.AudioFrame]: ...


def decode_tolerantly(
    container: InputContainer, stream: VideoStream | AudioStream
) -> Iterator[av.VideoFrame] | Iterator[av.AudioFrame]:
    """Decode one stream, skipping a few damaged packets, such as trailing tags of an MP3 or a lost network packet.

    Raises:
        av.error.InvalidDataError: more than three packets, and more than one in ten, are damaged.
    """
    damaged = 0
    for number, packet in enumerate(container.demux(stream)):
        try:
            frames: list[Any] = packet.decode()
        except av.error.InvalidDataError:
            damaged += 1
            if damaged > max(3, number // 10):
                raise
        else:
            yield from frames


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _is_still(container: InputContainer) -> bool:
    names = container.format.name.split(",")
    return any(name in _STILL_FORMATS or name.endswith("_pipe") for name in names)


def _describe(kind: str) -> str:
    return "sound that can be read" if kind == "speech" else "a video that can be read"
