"""Opening media files with FFmpeg (through PyAV), its failures turned into messages for the user."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import av
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.stream import Disposition
from av.video.stream import VideoStream

from s3dnerf.errors import UserError
from s3dnerf.media.files import require_file

# Single pictures, which FFmpeg would also open as if they were films (with every format named "..._pipe").
_STILL_FORMATS = {"image2", "ico"}
_CURES = {
    "speech": "Use a recording such as WAV, MP3, M4A, FLAC or OGG, or a video with sound.",
    "video": "Use a video such as MP4, MOV, MKV or WebM.",
}


log = logging.getLogger(__name__)


@contextmanager
def open_media(path: str | Path, kind: str) -> Iterator[InputContainer]:
    """Open a sound or video file for reading and close it again; `kind` is "speech" or "video".

    Raises UserError, naming file, reason and cure, if it is missing, not sound or video at all, or broken,
    even when FFmpeg finds that out only later, inside the block.
    """
    path = require_file(path, kind)
    with path.open("rb") as file:
        head = file.read(4096)
    if not head:
        raise UserError(path, "is an empty file", _CURES[kind])
    if is_text(head):
        raise UserError(path, f"is text, not {_describe(kind)}", _CURES[kind])
    try:
        # An absolute name is never taken for an address such as "http:" or "concat:".
        container = av.open(str(path.absolute()), metadata_errors="replace")
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
            cure = "Convert it once with ffmpeg, or use another file."
            raise UserError(path, f"cannot be decoded ({error.strerror})", cure) from error


def is_text(head: bytes) -> bool:
    """Whether the first bytes of a file are plain text.

    FFmpeg would draw text as a film, or follow a playlist to other files and wait for it to grow.
    """
    if any(byte < 0x20 and byte not in b"\t\n\r\f\x1b" for byte in head):
        return False
    # The last character may be cut in the middle.
    return any(_is_utf8(head[: len(head) - cut]) for cut in range(4))


def find_video_stream(container: InputContainer) -> VideoStream | None:
    """The first real video stream; the cover picture of a song is none."""
    for stream in container.streams.video:
        if not stream.disposition & (Disposition.attached_pic | Disposition.timed_thumbnails):
            return stream
    return None


def find_sound_stream(container: InputContainer, path: str | Path) -> AudioStream:
    """The sound track marked as default, or the one that FFmpeg would play. Raises UserError if there is none."""
    tracks = container.streams.audio
    if not tracks:
        raise UserError(path, "has no sound", "Use a recording, or a video with a sound track.")
    marked = [track for track in tracks if track.disposition & Disposition.default]
    chosen = marked[0] if marked else container.streams.best("audio")
    if len(tracks) > 1:
        log.info("%s has %d sound tracks; number %d is used", path, len(tracks), tracks.index(chosen) + 1)
    return chosen


def find_start_time(path: str | Path, kind: str) -> float | None:
    """Presentation time in seconds of the first picture, in the file's own clock; None if it has no video.

    Sound and picture both count from here, so that they stay in step whatever the clock starts with.
    """
    with open_media(path, kind) as container:
        stream = find_video_stream(container)
        if stream is None:
            return None
        for frame in decode_tolerantly(container, stream):
            return 0.0 if frame.time is None else float(frame.time)
    return None


def decode_tolerantly(container: InputContainer, stream: av.stream.Stream) -> Iterator[av.frame.Frame]:
    """Decode one stream, passing over damaged packets as long as they are few.

    Trailing tags in an MP3 or one lost network packet are no reason to refuse a whole recording; raises the
    FFmpeg error if more than one packet in ten (and more than three) are damaged.
    """
    damaged = 0
    for number, packet in enumerate(container.demux(stream)):
        try:
            frames = packet.decode()
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
