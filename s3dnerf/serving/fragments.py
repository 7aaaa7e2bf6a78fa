"""Live frames as a stream of fragmented MP4, for Media Source Extensions and players."""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np

from s3dnerf.constants import FPS, SAMPLE_RATE
from s3dnerf.live.session import LiveFrame

# Two frames a fragment, so that none waits for long; fragments of single frames lose some.
_OPTIONS = {"movflags": "empty_moov+default_base_moof", "frag_duration": "80000", "flush_packets": "1"}


class _Sink:
    """A file that collects what is written, and cannot seek."""

    def __init__(self) -> None:
        self.data = bytearray()

    def write(self, data: bytes) -> int:
        self.data += data
        return len(data)

    def take(self) -> bytes:
        data = bytes(self.data)
        self.data.clear()
        return data


class Mp4Fragments:
    """Encodes live frames as H.264 and AAC in fragments of MP4."""

    def __init__(self, size: tuple[int, int]) -> None:
        """Open the stream.

        Args:
            size: width and height, even numbers.
        """
        self.size = size
        self.sink = _Sink()
        self.container = av.open(self.sink, "w", format="mp4", options=dict(_OPTIONS))
        video = {"preset": "ultrafast", "tune": "zerolatency", "crf": "23"}
        self.video = self.container.add_stream("libx264", rate=FPS, options=video)
        self.video.width, self.video.height = size
        self.video.pix_fmt = "yuv420p"
        self.video.gop_size = FPS
        self.audio = self.container.add_stream("aac", rate=SAMPLE_RATE, layout="mono")
        self.frames = 0

    def write(self, frame: LiveFrame) -> bytes:
        """Append a frame with its sound, and return the bytes that are complete, which may be none."""
        image = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame.image), "rgb24")
        image.pts, image.time_base = self.frames, Fraction(1, FPS)
        for packet in self.video.encode(image):
            # The muxer cannot know how long the last frame of a fragment lasts.
            packet.duration = round(1 / (FPS * packet.time_base))
            self.container.mux(packet)
        sound = av.AudioFrame.from_ndarray(np.clip(frame.sound, -1.0, 1.0)[None], "fltp", "mono")
        sound.sample_rate, sound.time_base = SAMPLE_RATE, Fraction(1, SAMPLE_RATE)
        sound.pts = self.frames * len(frame.sound)
        self.container.mux(self.audio.encode(sound))
        self.frames += 1
        return self.sink.take()

    def finish(self) -> bytes:
        """End the stream and return the last bytes."""
        self.container.mux(self.video.encode(None))
        self.container.mux(self.audio.encode(None))
        self.container.close()
        return self.sink.take()
