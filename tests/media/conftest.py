"""Videos for the media tests, written without the code under test."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

CLOCK = Fraction(1, 90000)
BARS, BAR = 12, 8


def draw_number(number: int) -> np.ndarray:
    """A picture [64, 96, 3] whose 12 black or white bars are the binary digits of `number`."""
    digits = (number >> np.arange(BARS)) & 1
    row = np.repeat(digits * 255, BAR).astype(np.uint8)
    return np.broadcast_to(row[None, :, None], (64, BARS * BAR, 3)).copy()


def read_number(picture: np.ndarray) -> int:
    """The number that `draw_number` drew."""
    middles = picture[32, BAR // 2 :: BAR, 1] > 127
    return int(np.sum(middles * (1 << np.arange(BARS))))


def write_film(
    path: Path,
    pictures: Sequence[np.ndarray],
    times: Sequence[float],
    sound: np.ndarray | None = None,
    rate: int = 48000,
    sound_start: float = 0.0,
    rotation: float = 0.0,
) -> None:
    """Write H.264 + AAC with each picture at its time in seconds; the container goes by the suffix."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=25, options={"preset": "ultrafast", "crf": "10"})
        video.height, video.width = pictures[0].shape[:2]
        video.pix_fmt, video.time_base, video.codec_context.time_base = "yuv420p", CLOCK, CLOCK
        if rotation:
            if not hasattr(video, "set_display_rotation"):
                pytest.skip("this PyAV cannot write a rotation")
            video.set_display_rotation(rotation)
        if sound is not None:
            track = container.add_stream("aac", rate=rate, layout="mono" if len(sound) == 1 else "stereo")
            track.bit_rate = 128000
            frame = av.AudioFrame.from_ndarray(sound.astype(np.float32), "fltp", track.layout.name)
            frame.sample_rate, frame.time_base = rate, Fraction(1, rate)
            frame.pts = round(sound_start * rate)
            container.mux(track.encode(frame))
            container.mux(track.encode(None))
        for picture, time in zip(pictures, times, strict=True):
            frame = av.VideoFrame.from_ndarray(picture, "rgb24")
            frame.pts, frame.time_base = round(time / CLOCK), CLOCK
            container.mux(video.encode(frame))
        container.mux(video.encode(None))


@pytest.fixture(scope="session")
def make_film() -> Callable[..., None]:
    return write_film


@pytest.fixture(scope="session")
def number_pictures() -> tuple[Callable[[int], np.ndarray], Callable[[np.ndarray], int]]:
    """(draw, read): a number to a picture of 12 bars and back."""
    return draw_number, read_number


@pytest.fixture(scope="session")
def resident_mebibytes() -> Callable[[], float]:
    """Measures the memory that this process holds now, that of FFmpeg's buffers included."""

    def measure() -> float:
        pages = Path("/proc/self/statm")
        if not pages.exists():
            pytest.skip("needs /proc/self/statm")
        return int(pages.read_text().split()[1]) * 4096 / 2**20

    return measure
