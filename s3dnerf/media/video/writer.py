"""Writing of video: streaming H.264 or HEVC and AAC in MP4, MOV and Matroska, VP9 and Opus in WebM."""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import av
import numpy as np
from av.video.reformatter import Colorspace, VideoReformatter

from s3dnerf.constants import FPS, SAMPLE_RATE
from s3dnerf.errors import UserError, first_line
from s3dnerf.limits import require_choice
from s3dnerf.media.audio import LAYOUTS, resample_audio, stream_audio
from s3dnerf.media.container import SWSCALE_FLAGS
from s3dnerf.media.files import atomic_write, is_stream
from s3dnerf.media.memory import Media

log = logging.getLogger(__name__)
AUDIO_RATE = 48_000
"""Sample rate of written audio."""
_VP9_SPEED = {"deadline": "realtime", "cpu-used": "8", "row-mt": "1"}
"""The fastest setting of libvpx; its default takes many times as long as rendering."""
NVENC = {"libx264": "h264_nvenc", "libx265": "hevc_nvenc"}
"""The encoders of NVIDIA GPUs that have them; data center GPUs such as A100 and H100 have none."""
CODECS = ("h264", "hevc")
LARGE_FRAME = 512 * 512
"""Pixels above which x264 refines motion in fewer steps and predicts macroblocks as a whole. Frames of 1024 x 1024 then
take 7.5 ms in place of 13.9, in files that are 5 % larger and .14 dB worse, whole pictures of 2.5 megapixels 11 in
place of 14, in files that are 6 % larger and .23 dB worse. Files of smaller frames would be 8 to 13 % larger. It also
weighs no reference frames, which changes nothing but the time, and leaves half of the processors to the renderer."""
_FAST_PRESET, _LARGE_OPTIONS = "veryfast", {"x264-params": "subme=1:partitions=none:weightp=0"}
CONVERTED_MARGIN = 8
"""Pixels around a changed region that the conversion to 4:2:0 takes into account."""
_NVENC_OPTIONS = {"preset": "p4", "tune": "hq", "rc": "vbr", "b": "0"}

Region = tuple[slice, slice]
"""Rows and columns of a frame."""


@dataclass(frozen=True)
class VideoFormat:
    """An output container and its codecs."""

    container: str
    video: str = "libx264"
    audio: str = "aac"
    pixels: str = "yuv420p"
    """Layout of the pixels; "yuva420p" has transparency."""
    file_options: tuple[tuple[str, str], ...] = ()
    """Muxer options for files."""
    stream_options: tuple[tuple[str, str], ...] = ()
    """Muxer options for pipes and devices, which cannot seek."""
    tags: tuple[tuple[str, str], ...] = ()
    """Metadata of the file, such as its title."""


_MOOV_FIRST = (("movflags", "+faststart"),)
_FRAGMENTS = (("movflags", "+frag_keyframe+delay_moov+default_base_moof"),)
_MP4 = VideoFormat("mp4", file_options=_MOOV_FIRST, stream_options=_FRAGMENTS)
VIDEO_FORMATS = {
    ".mp4": _MP4,
    ".m4v": _MP4,
    ".mov": replace(_MP4, container="mov"),
    ".mkv": VideoFormat("matroska"),
    ".webm": VideoFormat("webm", "libvpx-vp9", "libopus"),
}
"""Output formats by suffix."""


def choose_video_format(path: str | Path, codec: str = "h264", alpha: bool = False) -> VideoFormat:
    """Return the format for the suffix of an output; pipes and devices without a suffix get fragmented MP4.

    Args:
        path: the output.
        codec: "h264" or "hevc". WebM always has VP9.
        alpha: whether frames have transparency.

    Raises:
        UserError: the suffix is missing or unknown, this PyAV has no encoder, or the format has no transparency.
    """
    require_choice("codec", codec, CODECS)
    found = _find_format(path)
    if alpha:
        if found.video != "libvpx-vp9":
            raise UserError(path, "has no transparency", "Use .webm, or a PNG sequence such as frames/%05d.png.")
        found = replace(found, pixels="yuva420p")
    if codec == "hevc":
        if found.video != "libx264":
            raise UserError(path, "holds no HEVC", "Use .mp4, .mov or .mkv, or leave the codec out.")
        found = replace(found, video="libx265")
    if found.video not in av.codecs_available:
        raise UserError(path, f"needs the encoder {found.video}, which this PyAV has not", "Install PyAV from PyPI.")
    return found


def _find_format(path: str | Path) -> VideoFormat:
    suffix = Path(path).suffix.lower()
    if not suffix and is_stream(path):
        return _MP4
    if suffix not in VIDEO_FORMATS:
        reason = f"videos cannot be written as '{suffix}'" if suffix else "has no suffix that names a video format"
        raise UserError(path, reason, f"Use one of {', '.join(VIDEO_FORMATS)}.")
    return VIDEO_FORMATS[suffix]


def choose_encoder(video_format: VideoFormat, size: tuple[int, int], hardware: bool) -> str:
    """Return the encoder of a format: its own, or NVENC if ``hardware`` asks for it and it can be opened.

    It cannot on machines without such an encoder, and for frames that are too small for it.
    """
    name = NVENC.get(video_format.video, "")
    if not hardware or name not in av.codecs_available:
        return video_format.video
    context = av.CodecContext.create(name, "w")
    assert isinstance(context, av.VideoCodecContext), "a video encoder"
    context.width, context.height = (side + side % 2 for side in size)
    context.pix_fmt, context.time_base = "yuv420p", Fraction(1, FPS)
    context.options = dict(_NVENC_OPTIONS)
    try:
        context.open()
    except av.error.FFmpegError as error:
        log.info("no hardware encoder (%s); %s encodes", first_line(error), video_format.video)
        return video_format.video
    return name


def _count_processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _widen(region: Region, size: tuple[int, int]) -> Region:
    """Return an even window around a region, with a margin of twice :data:`CONVERTED_MARGIN`."""
    width, height = size
    margin = 2 * CONVERTED_MARGIN
    rows, columns = (
        slice(max(0, (side.start - margin) // 2 * 2), min(length, -(-(side.stop + margin) // 2) * 2))
        for side, length in zip(region, (height, width), strict=True)
    )
    return rows, columns


def _trim(window: slice, length: int, margin: int, scale: int) -> tuple[int, int, int]:
    """Return first and end of the part of a window that is away from its border, and where the window begins.

    All are in pixels of a plane that has one of them for ``scale`` pixels of the frame. The border of the frame counts
    as seen.
    """
    first = window.start + margin * (window.start > 0)
    end = window.stop - margin * (window.stop < length)
    return first // scale, end // scale, window.start // scale


def _view_planes(image: av.VideoFrame) -> list[np.ndarray]:
    """Return the planes ``uint8 [H, W]`` of a frame, without their padding; they share its memory."""
    # PyAV's stubs leave out that planes are buffers.
    planes: list[Any] = list(image.planes)
    return [np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)[:, : plane.width] for plane in planes]


class _WriteOnly:
    """A file object without seeking, so that FFmpeg's muxers do not try to seek in a pipe or device."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb", buffering=0)

    def write(self, data: bytes) -> int:
        view = memoryview(data)
        while view:
            view = view[self._file.write(view) :]
        return len(data)

    def close(self) -> None:
        self._file.close()


class VideoWriter:
    """Context manager that writes a video with audio frame by frame.

    The suffix selects the format (``VIDEO_FORMATS``): H.264 or HEVC (yuv420p) and AAC in MP4, MOV and Matroska, VP9 and
    Opus in WebM. Pipes and character devices are written as the frames arrive, MP4 in fragments. A file appears under
    its name only when the block ends without an error; otherwise an older file stays.

    Args:
        path: the output.
        size: (width, height) of the frames. Odd sides are padded by repeating the last column or row, since yuv420p
            needs even sides.
        fps: frames per second.
        audio: an audio or video file (written at 48 kHz, in mono or stereo as it is), on disk or in memory, or
            ``float32 [n]`` at 16 kHz. It is cut or padded with silence to the length of the video. None for no audio.
        crf: quality as of x264, lower is better; mapped to an equivalent value for VP9.
        gop: frames between key frames, None for the encoder's choice. Short ones make ``read_frames`` fast.
        preset: speed of x264, "ultrafast" to "veryslow".
        video_format: container and codecs, from :func:`choose_video_format` (the default). Its encoder may be one of
            a GPU, from :func:`choose_encoder`.

    Raises:
        UserError: the output cannot be written, the audio cannot be read, or no frame is written.
    """

    def __init__(
        self,
        path: str | Path,
        size: tuple[int, int],
        fps: int | float | Fraction = FPS,
        audio: Media | np.ndarray | None = None,
        crf: float = 18,
        gop: int | None = None,
        preset: str = "medium",
        video_format: VideoFormat | None = None,
    ) -> None:
        self.path = Path(path)
        self.format = video_format or choose_video_format(path)
        self.size = size
        self.fps = Fraction(fps).limit_denominator(1001)
        self.frames = 0
        self._audio = audio
        self.encoder = self.format.video
        self.channels = 4 if self.format.pixels == "yuva420p" else 3
        self._options = {"crf": str(crf), "preset": preset}
        if self.encoder == "libx264" and preset == _FAST_PRESET and size[0] * size[1] > LARGE_FRAME:
            self._options |= _LARGE_OPTIONS | {"threads": str(max(1, _count_processors() // 2))}
        if self.encoder == "libx265":
            # At the same crf, x265 is as close to its source as x264 (42.3 and 42.1 dB on a real clip at 18), in a file
            # that is 9 % smaller and takes three times as long.
            self._options["x265-params"] = "log-level=error"
        if self.encoder in NVENC.values():
            # NVENC's scale of constant quality is close to that of x264.
            self._options = {**_NVENC_OPTIONS, "cq": str(crf)}
        if self.format.video == "libvpx-vp9":
            # Unless the bit rate is zero, crf is only a bound. At 1.6 times the crf, VP9 is as close to its source as
            # x264 (38.2 and 38.4 dB on a real clip at 18), in a file of about the same size.
            self._options = {"crf": str(min(63, round(1.6 * crf))), "b": "0", **_VP9_SPEED}
        self._gop = gop
        # It keeps its tables from frame to frame; making them takes longer than converting a frame.
        self._reformatter = VideoReformatter()
        self._window: Region | None = None
        self._first: list[np.ndarray] = []
        """The planes of the first frame, if only a part of the others is converted."""
        self._encoded: deque[av.VideoFrame] = deque()
        """Frames of which that part can be overwritten."""

    def limit_changes(self, changing: Region) -> None:
        """Convert only a part of each frame after the first one, outside of which frames are equal.

        Call it before the first frame.

        Args:
            changing: rows and columns of this part, such as those of a head in a picture.
        """
        # Two by two pixels share a color, so the window is even. Frames of odd size are converted whole.
        if self.size[0] % 2 == self.size[1] % 2 == 0:
            self._window = _widen(changing, self.size)

    def __enter__(self) -> VideoWriter:
        with ExitStack() as stack:
            part = stack.enter_context(atomic_write(self.path, can_stream=True))
            file: str | _WriteOnly
            options, file = self.format.file_options, str(part)
            if is_stream(part):
                options, file = self.format.stream_options, stack.enter_context(closing(_WriteOnly(part)))
            container = av.open(file, "w", format=self.format.container, options=dict(options))
            self._container = stack.enter_context(container)
            self._container.metadata.update(self.format.tags)
            self._video = self._add_video_stream()
            self._audio_track = None
            if self._audio is not None:
                self._audio_track = _AudioTrack(self._container, self._audio, self.format.audio)
                stack.callback(self._audio_track.close)
            self._stack = stack.pop_all()
        return self

    def write(self, frame: np.ndarray) -> None:
        """Append an RGB frame ``uint8 [H, W, 3]``, or RGBA if the format has transparency.

        Raises:
            ValueError: it does not have the size of the video.
        """
        self.encode(self.convert(frame))

    def convert(self, frame: np.ndarray) -> av.VideoFrame:
        """Convert an RGB or RGBA frame ``uint8 [H, W, 3 or 4]`` to the format of the encoder.

        One thread at a time may convert, while another one encodes.

        Raises:
            ValueError: the frame does not have the size of the video.
        """
        width, height = self.size
        if frame.dtype != np.uint8 or frame.shape != (height, width, self.channels):
            shape = [height, width, self.channels]
            raise ValueError(f"expected uint8 {shape}, got {frame.dtype} {list(frame.shape)}")
        if self._window is not None and self._first:
            return self._convert_window(frame, self._window)
        if width % 2 or height % 2:
            frame = np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        image = self._convert_colors(frame)
        if self._window is not None:
            self._first = [plane.copy() for plane in _view_planes(image)]
        return image

    def _convert_colors(self, frame: np.ndarray) -> av.VideoFrame:
        image = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), "rgba" if self.channels == 4 else "rgb24")
        return self._reformatter.reformat(
            image, format=self.format.pixels, dst_colorspace=Colorspace.ITU601, interpolation=SWSCALE_FLAGS
        )

    def _convert_window(self, frame: np.ndarray, window: Region) -> av.VideoFrame:
        """Convert a window of a frame into an earlier frame or a copy of the first one, which are equal beyond it."""
        rows, columns = window
        part = _view_planes(self._convert_colors(frame[window]))
        image = self._encoded.popleft() if self._encoded else self._copy_first_frame()
        # Copies it if the encoder still reads it.
        image.make_writable()
        for plane, changed in zip(_view_planes(image), part, strict=True):
            scale = frame.shape[0] // len(plane)
            # Near the border of the window, the conversion has not seen all pixels that it would see in the frame.
            inner = [
                _trim(side, size, CONVERTED_MARGIN, scale)
                for side, size in ((rows, frame.shape[0]), (columns, frame.shape[1]))
            ]
            places = tuple(slice(start, end) for start, end, _ in inner)
            sources = tuple(slice(start - offset, end - offset) for start, end, offset in inner)
            plane[places] = changed[sources]
        return image

    def _copy_first_frame(self) -> av.VideoFrame:
        image = av.VideoFrame(*self.size, self.format.pixels)
        for plane, first in zip(_view_planes(image), self._first, strict=True):
            plane[:] = first
        return image

    def encode(self, image: av.VideoFrame) -> None:
        """Append a frame from :meth:`convert`, once: a later frame may be converted into it."""
        image.pts, image.time_base = self.frames, 1 / self.fps
        self._container.mux(self._video.encode(image))
        if self._window is not None:
            self._encoded.append(image)
        self.frames += 1
        if self._audio_track:
            self._audio_track.write_until(self.frames / self.fps)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            self._stack.__exit__(kind, error, trace)
            return
        with self._stack:
            if not self.frames:
                raise UserError(self.path, "would hold no picture", "Give at least one frame.")
            self._container.mux(self._video.encode(None))
            if self._audio_track:
                self._audio_track.finish()

    def _add_video_stream(self) -> av.VideoStream:
        stream = self._container.add_stream(self.encoder, rate=self.fps, options=self._options)
        stream.width, stream.height = (side + side % 2 for side in self.size)
        stream.pix_fmt = self.format.pixels
        stream.time_base = 1 / self.fps
        context = stream.codec_context
        # Limited range and the BT.601 matrix, which readers that ignore these tags (OpenCV) also assume; primaries and
        # transfer function of BT.709, as in sRGB.
        context.color_range, context.colorspace = 1, 6
        context.color_primaries, context.color_trc = 1, 1
        if self.channels == 4:
            # Players look for this tag.
            stream.metadata["alpha_mode"] = "1"
        if self.format.video in ("libx265", NVENC["libx265"]) and self.format.container in ("mp4", "mov"):
            # Players of Apple need this name.
            context.codec_tag = "hvc1"
        if self._gop is not None:
            stream.gop_size = self._gop
        return stream


class _AudioTrack:
    """The audio track of a file being written; takes as many samples from its source as the video lasts."""

    def __init__(self, container: av.container.OutputContainer, audio: Media | np.ndarray, codec: str) -> None:
        if isinstance(audio, np.ndarray):
            self._blocks = resample_audio(iter(_split(audio)), SAMPLE_RATE, AUDIO_RATE)
        else:
            self._blocks = stream_audio(audio, AUDIO_RATE)
        self._rest = next(self._blocks, np.zeros((1, 0), np.float32))
        self._layout = LAYOUTS[len(self._rest)]
        self._container = container
        # At this bit rate AAC's default coder is slower and less accurate.
        options = {"aac_coder": "fast"} if codec == "aac" else {}
        stream = container.add_stream(codec, rate=AUDIO_RATE, layout=self._layout, options=options)
        assert isinstance(stream, av.AudioStream), "the codecs of all formats are known"
        self._stream = stream
        self._stream.bit_rate = 96000 * len(self._rest)
        self._samples = 0

    def write_until(self, seconds: Fraction) -> None:
        """Encode up to this time; the source is padded with silence after its end."""
        needed = round(seconds * AUDIO_RATE) - self._samples
        while needed > 0:
            if not self._rest.shape[1]:
                silence = np.zeros((len(self._rest), needed), np.float32)
                self._rest = next(self._blocks, silence)
            self._encode(self._rest[:, :needed])
            taken = min(needed, self._rest.shape[1])
            self._rest = self._rest[:, taken:]
            needed -= taken

    def finish(self) -> None:
        """Flush the encoder."""
        self._container.mux(self._stream.encode(None))

    def close(self) -> None:
        """Stop reading the source."""
        self._blocks.close()

    def _encode(self, sound: np.ndarray) -> None:
        sound = np.clip(sound, -1, 1)
        planar = self._stream.format.is_planar
        packed = np.ascontiguousarray(sound if planar else sound.T.reshape(1, -1))
        frame = av.AudioFrame.from_ndarray(packed, "fltp" if planar else "flt", self._layout)
        frame.sample_rate = AUDIO_RATE
        frame.pts, frame.time_base = self._samples, Fraction(1, AUDIO_RATE)
        self._container.mux(self._stream.encode(frame))
        self._samples += sound.shape[1]


def _split(speech: np.ndarray, length: int = SAMPLE_RATE) -> Iterator[np.ndarray]:
    """Cut speech ``[n]`` into blocks ``[1, length]``; the last one may be shorter."""
    for first in range(0, len(speech), length):
        yield speech[None, first : first + length].astype(np.float32)
