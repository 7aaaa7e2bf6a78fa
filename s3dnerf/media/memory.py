"""Sound and pictures in memory, given as the content of a file or as arrays."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from s3dnerf.errors import ArgumentError

MAX_CHANNELS = 64
"""Most channels of sound in an array. The shorter axis of an array holds them."""
RATES = (4_000, 384_000)
"""Smallest and largest sample rate of sound in an array."""


@dataclass(frozen=True)
class MediaBytes:
    """The content of an audio or video file."""

    data: bytes = field(repr=False)
    name: str
    """Name for messages."""

    def open(self) -> io.BytesIO:
        """Open the content as a file of its own, which can seek."""
        return io.BytesIO(self.data)

    def __str__(self) -> str:
        return self.name


Media = str | Path | MediaBytes
"""An audio or video file, on disk or in memory."""
AudioInput = str | Path | bytes | tuple[Any, int]
"""Sound as a path, the content of a file, or ``(samples, rate)``."""


def to_media(value: AudioInput | MediaBytes, argument: str) -> Media:
    """Return sound as a file that can be opened several times.

    Args:
        value: a path, the bytes of a file of any format that ffmpeg reads, or ``(samples, rate)``. Samples are an array
            or a tensor ``[n]``, ``[n, C]`` or ``[C, n]``: floats in [-1, 1], or integers, whose range is scaled to it.
        argument: name of the argument, for messages.

    Raises:
        ArgumentError: it is none of these.
    """
    if isinstance(value, MediaBytes):
        return value
    if isinstance(value, (str, os.PathLike)):
        return Path(value)
    if isinstance(value, (bytes, bytearray, memoryview)):
        return MediaBytes(bytes(value), argument)
    if isinstance(value, (tuple, list)) and len(value) == 2:
        return MediaBytes(_encode_wav(*value, argument), argument)
    reason = f"is of type {type(value).__name__}, which holds no sound"
    raise ArgumentError(argument, None, reason, "Give a path, the bytes of a file, or (samples, rate).")


def to_array(value: Any) -> np.ndarray:
    """Return an array, or a tensor of PyTorch on any device, as an array."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        # NumPy has no bfloat16.
        value = value.float() if value.is_floating_point() else value
    return np.asarray(value)


def _encode_wav(samples: Any, rate: Any, argument: str) -> bytes:
    import soundfile

    hint = "Give (samples, rate), such as (array of shape [n] in [-1, 1], 16000)."
    if isinstance(rate, bool) or not hasattr(rate, "__int__") or np.size(rate) != 1 or rate != int(rate):
        raise ArgumentError(argument, None, "has a sample rate that is no whole number", hint)
    if not RATES[0] <= rate <= RATES[1]:
        raise ArgumentError(argument, None, f"has a sample rate of {rate:g}", f"Use {RATES[0]} to {RATES[1]}.")
    sound = to_array(samples)
    if sound.ndim == 2 and sound.shape[0] < sound.shape[1]:
        sound = sound.T
    if sound.ndim not in (1, 2) or sound.shape[1:] > (MAX_CHANNELS,):
        raise ArgumentError(argument, None, f"has samples of shape {list(np.shape(samples))}", hint)
    if sound.dtype == np.uint8:
        sound = (sound.astype(np.float32) - 128.0) / 128.0
    elif np.issubdtype(sound.dtype, np.signedinteger):
        sound = (sound / -float(np.iinfo(sound.dtype).min)).astype(np.float32)
    elif not np.issubdtype(sound.dtype, np.floating):
        raise ArgumentError(argument, None, f"has samples of type {sound.dtype}", hint)
    file = io.BytesIO()
    soundfile.write(file, sound.astype(np.float32), int(rate), subtype="FLOAT", format="WAV")
    return file.getvalue()
