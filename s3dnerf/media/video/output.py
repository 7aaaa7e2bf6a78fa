"""Outputs of video by their name: a file in a container, or a sequence of pictures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from s3dnerf.constants import FPS
from s3dnerf.media.files import check_output
from s3dnerf.media.memory import Media
from s3dnerf.media.video.sequence import SequenceWriter, is_sequence
from s3dnerf.media.video.writer import Region, VideoWriter, choose_encoder, choose_video_format


def check_video_output(
    path: str | Path, inputs: Iterable[str | Path | None] = (), codec: str = "h264", alpha: bool = False
) -> None:
    """Raise UserError early for an invalid output; see ``check_output`` and ``choose_video_format``."""
    check_output(path, inputs, can_stream=True)
    if not is_sequence(path):
        choose_video_format(path, codec, alpha)


def open_video(
    path: str | Path,
    size: tuple[int, int],
    audio: Media | None = None,
    *,
    fps: int = FPS,
    codec: str = "h264",
    alpha: bool = False,
    hardware: bool = False,
    preset: str = "medium",
    tags: Mapping[str, str] | None = None,
    changing: Region | None = None,
) -> VideoWriter | SequenceWriter:
    """Return a writer for an output, as a context manager.

    Args:
        path: a video file, or a sequence of PNG files such as "frames/%05d.png", which has no sound.
        size: (width, height) of the frames.
        audio: the sound.
        fps: frames per second.
        codec: "h264" or "hevc".
        alpha: whether frames are RGBA.
        hardware: encode on the GPU where :func:`choose_encoder` finds an encoder there.
        preset: speed of x264 and x265.
        tags: metadata of a video file, such as its title. Sequences have none.
        changing: rows and columns outside of which all frames are equal, see :meth:`VideoWriter.limit_changes`.

    Raises:
        UserError: see :func:`check_video_output`.
    """
    if is_sequence(path):
        return SequenceWriter(path, size, 4 if alpha else 3)
    found = choose_video_format(path, codec, alpha)
    found = replace(found, video=choose_encoder(found, size, hardware), tags=tuple((tags or {}).items()))
    writer = VideoWriter(path, size, fps, audio=audio, preset=preset, video_format=found)
    if changing is not None:
        writer.limit_changes(changing)
    return writer
