"""Video: streaming reader at a fixed frame rate, exact random access, streaming H.264 + AAC writer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from types import TracebackType

import av
import numpy as np
from av.container import InputContainer
from av.video.reformatter import Colorspace, Interpolation

from s3dnerf.errors import UserError
from s3dnerf.media.audio import FPS, LAYOUTS, SAMPLE_RATE, resample_sound, stream_sound
from s3dnerf.media.container import decode_tolerantly, find_video_stream, open_media
from s3dnerf.media.files import check_output, is_stream, replace_when_done

SOUND_RATE = 48000
_VP9_SPEED = {"deadline": "realtime", "cpu-used": "8", "row-mt": "1"}
"""libvpx at its fastest: at its usual speed it takes many times as long as rendering."""

# Frames that are cheaper to decode through than to seek past.
_DECODE_AHEAD = 24
# Without these flags swscale rounds down (a level too dark) and repeats chroma instead of interpolating it.
# Their numbers are those of libswscale: not every PyAV release has names for them.
_ACCURATE_ROUNDING, _FULL_CHROMA_OUT, _FULL_CHROMA_IN = 0x40000, 0x2000, 0x4000
_CONVERSION = int(Interpolation.BICUBIC) | _ACCURATE_ROUNDING | _FULL_CHROMA_OUT | _FULL_CHROMA_IN


@dataclass(frozen=True)
class VideoInfo:
    """What a video file says about itself.

    width, height: pixels as a player shows them (rotation applied, pixels made square). fps: frames a second
    on average. frames: None if the file does not say. duration: seconds, 0 if the file does not say.
    """

    width: int
    height: int
    fps: float
    frames: int | None
    has_audio: bool
    duration: float


@dataclass(frozen=True)
class TimedFrame:
    """A decoded frame and the seconds, after the first frame, at which a player shows and removes it."""

    frame: av.VideoFrame
    begin: float
    end: float


def probe_video(path: str | Path) -> VideoInfo:
    """Look at a video without decoding more than its first frame. Raises UserError if it is none."""
    with open_media(path, "video") as container:
        stream = _require_stream(container, path)
        first = _first_frame(container, stream, path)
        height, width = _shown_size(first, stream)
        duration = _stated_seconds(stream) or (container.duration or 0) / av.time_base
        fps = float(stream.average_rate or stream.guessed_rate or FPS)
        return VideoInfo(width, height, fps, stream.frames or None, bool(container.streams.audio), duration)


def stream_frames(path: str | Path, fps: float = FPS) -> Iterator[np.ndarray]:
    """Yield uint8 RGB [H, W, 3] at `fps` frames a second, whatever the file's own rate, upright.

    Frame k is the picture whose presentation time is nearest to k / fps after the first picture, so that the
    result keeps step with `stream_speech`; there are round(duration * fps) frames, at least one. One decoded
    frame is held at a time. Raises UserError if the file is missing, is no video, is damaged, or ends before
    its stated length.
    """
    with open_media(path, "video") as container:
        stream = _require_stream(container, path)
        stream.thread_type = "AUTO"
        size = None
        for frame in _pick_nearest(_time_frames(container, stream, path), fps):
            size = size or _shown_size(frame, stream)
            yield _to_rgb(frame, size)


def read_frames(path: str | Path, indices: Sequence[int] | np.ndarray) -> np.ndarray:
    """Read frames by number from a file written by VideoWriter: uint8 RGB [n, H, W, 3], in the given order.

    Seeks to the key frame before each and decodes forward: quick if the file was written with a short `gop`.
    Raises ValueError for a negative number and UserError if the file holds no such frame.
    """
    indices = np.asarray(indices, dtype=np.int64)
    if indices.size == 0 or indices.min() < 0:
        raise ValueError("indices must be one or more numbers of 0 or above")
    wanted = np.unique(indices)
    with open_media(path, "video") as container:
        _require_stream(container, path)
        pictures = dict(zip(wanted.tolist(), _read_sorted(container, wanted.tolist(), path), strict=True))
    return np.stack([pictures[index] for index in indices.tolist()])


@dataclass(frozen=True)
class VideoFormat:
    """A container that can be written, and its codecs."""

    container: str
    video: str = "libx264"
    audio: str = "aac"
    file_options: tuple[tuple[str, str], ...] = ()
    """Options of the muxer for files."""
    stream_options: tuple[tuple[str, str], ...] = ()
    """Options of the muxer for pipes and devices, in which it cannot go back."""


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
"""What can be written, by suffix."""


def choose_video_format(path: str | Path) -> VideoFormat:
    """Return the format that the suffix of an output names; pipes and devices without a suffix get fragmented MP4.

    Raises UserError for any other suffix, or none.
    """
    suffix = Path(path).suffix.lower()
    if not suffix and is_stream(path):
        return _MP4
    if suffix not in VIDEO_FORMATS:
        reason = f"videos cannot be written as '{suffix}'" if suffix else "has no suffix that names a video format"
        raise UserError(path, reason, f"Use one of {', '.join(VIDEO_FORMATS)}.")
    return VIDEO_FORMATS[suffix]


def check_video_output(path: str | Path, inputs: Iterable[str | Path | None] = ()) -> None:
    """Refuse a video output before any work is done; see `check_output` and `choose_video_format`."""
    check_output(path, inputs, can_stream=True)
    choose_video_format(path)


class _WriteOnly:
    """A pipe or device as FFmpeg's muxers see it: no seeking, so that they do not try to go back."""

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
    """Write a video with sound frame by frame; a context manager. The suffix chooses the format (`VIDEO_FORMATS`).

    MP4, MOV and Matroska hold H.264 (yuv420p) and AAC, WebM holds VP9 and Opus. A pipe or a character device is written
    to as the frames come; in an MP4 these are fragments.

    size: (width, height) of the frames; odd sides are padded to even ones by repeating the last column or
    row, as yuv420p demands. audio: a sound or video file (written at 48 kHz, mono or stereo as it is), or
    float32 [n] at 16 kHz, or None; it is cut or padded with silence to the length of the picture. crf: x264
    quality, lower is better (VP9's scale is made to match). gop: frames between key frames, None for the
    encoder's choice; short ones make `read_frames` quick. preset: how hard x264 tries, "ultrafast" to "veryslow".

    The file appears under its name only when the block ends well; on any error nothing is left and an older
    file stays. Raises UserError if the place cannot be written, the sound cannot be read, or no frame was
    written.
    """

    def __init__(
        self,
        path: str | Path,
        size: tuple[int, int],
        fps: int | float | Fraction = FPS,
        audio: str | Path | np.ndarray | None = None,
        crf: float = 18,
        gop: int | None = None,
        preset: str = "medium",
    ) -> None:
        self.path = Path(path)
        self.format = choose_video_format(path)
        self.size = size
        self.fps = Fraction(fps).limit_denominator(1001)
        self.frames = 0
        self._audio = audio
        self._options = {"crf": str(crf), "preset": preset}
        if self.format.video == "libvpx-vp9":
            # Without a bit rate of zero, crf is only a bound. At 1.6 times its crf VP9 is as near to
            # its source as x264 (38.2 and 38.4 dB on a real clip at 18), in a file of about the same size.
            self._options = {"crf": str(min(63, round(1.6 * crf))), "b": "0", **_VP9_SPEED}
        self._gop = gop

    def __enter__(self) -> VideoWriter:
        with ExitStack() as stack:
            part = stack.enter_context(replace_when_done(self.path, can_stream=True))
            options, file = self.format.file_options, str(part)
            if is_stream(part):
                options, file = self.format.stream_options, stack.enter_context(closing(_WriteOnly(part)))
            container = av.open(file, "w", format=self.format.container, options=dict(options))
            self._container = stack.enter_context(container)
            self._video = self._add_video_stream()
            self._sound = None
            if self._audio is not None:
                self._sound = _SoundTrack(self._container, self._audio, self.format.audio)
                stack.callback(self._sound.close)
            self._stack = stack.pop_all()
        return self

    def write(self, frame: np.ndarray) -> None:
        """Append one frame, uint8 RGB [H, W, 3] of the size given to the constructor (else ValueError)."""
        width, height = self.size
        if frame.dtype != np.uint8 or frame.shape != (height, width, 3):
            raise ValueError(f"expected uint8 [{height}, {width}, 3], got {frame.dtype} {list(frame.shape)}")
        if width % 2 or height % 2:
            frame = np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), "rgb24")
        picture = picture.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU601, interpolation=_CONVERSION)
        picture.pts, picture.time_base = self.frames, 1 / self.fps
        self._container.mux(self._video.encode(picture))
        self.frames += 1
        if self._sound:
            self._sound.write_until(self.frames / self.fps)

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
            if self._sound:
                self._sound.finish()

    def _add_video_stream(self) -> av.VideoStream:
        stream = self._container.add_stream(self.format.video, rate=self.fps, options=self._options)
        stream.width, stream.height = (side + side % 2 for side in self.size)
        stream.pix_fmt = "yuv420p"
        stream.time_base = 1 / self.fps
        context = stream.codec_context
        # Limited range and the BT.601 matrix, which also those readers assume that ignore these marks (OpenCV);
        # primaries and transfer of BT.709, as in sRGB.
        context.color_range, context.colorspace = 1, 6
        context.color_primaries, context.color_trc = 1, 1
        if self._gop is not None:
            stream.gop_size = self._gop
        return stream


class _SoundTrack:
    """The sound track of a file being written; takes as many samples from its source as the picture lasts."""

    def __init__(self, container: av.container.OutputContainer, audio: str | Path | np.ndarray, codec: str) -> None:
        if isinstance(audio, np.ndarray):
            self._blocks = resample_sound(iter(_split(audio)), SAMPLE_RATE, SOUND_RATE)
        else:
            self._blocks = stream_sound(audio, SOUND_RATE)
        self._rest = next(self._blocks, np.zeros((1, 0), np.float32))
        self._layout = LAYOUTS[len(self._rest)]
        self._container = container
        # At this rate AAC's usual coder takes longer for a sound less like its source.
        options = {"aac_coder": "fast"} if codec == "aac" else {}
        self._stream = container.add_stream(codec, rate=SOUND_RATE, layout=self._layout, options=options)
        self._stream.bit_rate = 96000 * len(self._rest)
        self._samples = 0

    def write_until(self, seconds: Fraction) -> None:
        """Encode up to this moment; the source is padded with silence when it has ended."""
        needed = round(seconds * SOUND_RATE) - self._samples
        while needed > 0:
            if not self._rest.shape[1]:
                silence = np.zeros((len(self._rest), needed), np.float32)
                self._rest = next(self._blocks, silence)
            self._encode(self._rest[:, :needed])
            taken = min(needed, self._rest.shape[1])
            self._rest = self._rest[:, taken:]
            needed -= taken

    def finish(self) -> None:
        """Encode what the encoder still holds."""
        self._container.mux(self._stream.encode(None))

    def close(self) -> None:
        """Stop reading the source."""
        self._blocks.close()

    def _encode(self, sound: np.ndarray) -> None:
        sound = np.clip(sound, -1, 1)
        planar = self._stream.format.is_planar
        packed = np.ascontiguousarray(sound if planar else sound.T.reshape(1, -1))
        frame = av.AudioFrame.from_ndarray(packed, "fltp" if planar else "flt", self._layout)
        frame.sample_rate = SOUND_RATE
        frame.pts, frame.time_base = self._samples, Fraction(1, SOUND_RATE)
        self._container.mux(self._stream.encode(frame))
        self._samples += sound.shape[1]


def _split(speech: np.ndarray, length: int = SAMPLE_RATE) -> Iterator[np.ndarray]:
    """Cut speech [n] into blocks [1, length]; the last one is shorter."""
    for first in range(0, len(speech), length):
        yield speech[None, first : first + length].astype(np.float32)


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
    """Decode a whole stream, counting time from its first frame."""
    start, end = None, 0.0
    for frame in decode_tolerantly(container, stream):
        if start is None:
            start = frame.time or 0.0
        begin = end if frame.time is None else frame.time - start
        end = begin + _frame_seconds(frame, stream)
        yield TimedFrame(frame, begin, end)
    if start is None:
        raise UserError(path, "holds no picture that can be decoded", "Use another video.")
    _check_complete(stream, end, path)


def _pick_nearest(frames: Iterable[TimedFrame], fps: float) -> Iterator[av.VideoFrame]:
    """Yield the frame that begins nearest to k / fps, for k = 0, 1, ... until the last one ends."""
    picked, last = 0, None
    for timed in frames:
        while last is not None and picked / fps < (last.begin + timed.begin) / 2:
            yield last.frame
            picked += 1
        last = timed
    while last is not None and picked < max(1, round(last.end * fps)):
        yield last.frame
        picked += 1


def _frame_seconds(frame: av.VideoFrame, stream: av.VideoStream) -> float:
    if frame.duration and frame.time_base:
        return float(frame.duration * frame.time_base)
    return float(1 / (stream.average_rate or stream.guessed_rate or FPS))


def _check_complete(stream: av.VideoStream, end: float, path: str | Path) -> None:
    """Refuse a file whose pictures last `end` seconds, well short of its stated length."""
    stated = _stated_seconds(stream)
    if end < stated - max(0.5, 0.02 * stated):
        reason = f"ends after {end:.1f} of its {stated:.1f} seconds: it is cut short or damaged"
        raise UserError(path, reason, "Copy or download it again, or convert it once with ffmpeg.")


def _stated_seconds(stream: av.VideoStream) -> float:
    """Length of a stream as its file states it; 0 if it does not."""
    if stream.duration is not None:
        return float(stream.duration * stream.time_base)
    # Matroska and WebM carry it as a tag, "00:01:02.500000000".
    parts = stream.metadata.get("DURATION", "").split(":")
    if len(parts) != 3:
        return 0.0
    return 3600.0 * float(parts[0]) + 60.0 * float(parts[1]) + float(parts[2])


def _shown_size(frame: av.VideoFrame, stream: av.VideoStream) -> tuple[int, int]:
    """(height, width) of a frame as a player shows it: pixels made square, rotation applied."""
    width = max(1, round(frame.width * (stream.sample_aspect_ratio or 1)))
    return (width, frame.height) if _count_quarter_turns(frame) % 2 else (frame.height, width)


def _count_quarter_turns(frame: av.VideoFrame) -> int:
    """How often the picture must be turned by 90 degrees, counterclockwise, to stand upright."""
    return round(frame.rotation / 90) % 4


def _to_rgb(frame: av.VideoFrame, size: tuple[int, int]) -> np.ndarray:
    """Convert to uint8 RGB [H, W, 3], upright; `size` is (height, width) as shown."""
    quarter_turns = _count_quarter_turns(frame)
    height, width = reversed(size) if quarter_turns % 2 else size
    picture = frame.reformat(width=width, height=height, format="rgb24", interpolation=_CONVERSION)
    return np.ascontiguousarray(np.rot90(picture.to_ndarray(), quarter_turns))


def _read_sorted(container: InputContainer, wanted: list[int], path: str | Path) -> Iterator[np.ndarray]:
    """Yield the frames numbered `wanted` (ascending, unique)."""
    stream = find_video_stream(container)
    start = (stream.start_time or 0) * stream.time_base
    rate = stream.average_rate or Fraction(FPS)
    decoder: Iterator[av.VideoFrame] = iter(())
    position, frame = -1, None  # number of `frame`, the last one decoded
    for index in wanted:
        if frame is None or index - position > _DECODE_AHEAD:
            decoder, position, frame = _seek(container, stream, index, start, rate)
        while frame is not None and position < index:
            frame = next(decoder, None)
            position = -1 if frame is None else round((frame.pts * stream.time_base - start) * rate)
        if frame is None or position != index:
            raise UserError(path, f"has no frame {index}", "Prepare the clip again.")
        yield _to_rgb(frame, _shown_size(frame, stream))


def _seek(
    container: InputContainer, stream: av.VideoStream, index: int, start: Fraction, rate: Fraction
) -> tuple[Iterator[av.VideoFrame], int, av.VideoFrame | None]:
    """Start decoding at a key frame at or before `index`: the decoder, and its first frame with its place."""
    back = 0
    while True:
        target = max(0, index - back)
        container.seek(int((start + target / rate) / stream.time_base), stream=stream)
        decoder = container.decode(stream)
        frame = next(decoder, None)
        position = -1 if frame is None else round((frame.pts * stream.time_base - start) * rate)
        # Seeking goes by decoding time, which runs ahead of presentation time when there are B-frames.
        if target == 0 or (frame is not None and position <= index):
            return decoder, position, frame
        back = 2 * back + 4
