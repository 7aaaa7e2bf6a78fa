"""Speech audio: decoding to 16 kHz mono float32, its level, and the window of each video frame.

Everything is streamed in blocks of samples, so that memory does not grow with the length of the audio.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import av
import numpy as np

from s3dnerf.constants import FPS as FPS
from s3dnerf.constants import SAMPLE_RATE, SAMPLES_PER_FRAME
from s3dnerf.errors import UserError, first_line
from s3dnerf.media.container import decode_tolerantly, find_audio_stream, find_start_time, name_media, open_media
from s3dnerf.media.downmix import StereoStatistics, downmix_matrix
from s3dnerf.media.files import atomic_write
from s3dnerf.media.memory import Media
from s3dnerf.media.rumble import remove_rumble

LAYOUTS = {1: "mono", 2: "stereo"}
MIN_SECONDS = 0.2
SILENCE_RMS = 10.0 ** (-60.0 / 20.0)
TARGET_RMS = 10.0 ** (-23.0 / 20.0)

_LEVEL_FRAME = SAMPLE_RATE // 50
_ACTIVE_RANGE = 10.0 ** (-30.0 / 10.0)
# Timestamps of real files jitter by about a millisecond; only larger jumps are gaps in the recording.
_GAP_SECONDS = 0.05
_LONGEST_GAP = 600.0
_LONGEST_OVERLAP = 1.0
_STEREO_SECONDS, _STEREO_SEARCH_SECONDS = 60.0, 600.0
_LOUDEST = 1e3
"""Largest sample of sound whose full scale is 1. Recordings in floating point exceed it by a little."""


@dataclass(frozen=True)
class SpeechLevel:
    """Length and loudness of a recording. Full scale is 1."""

    samples: int
    """Number of 16 kHz samples."""
    active_rms: float
    """Root mean square without pauses: over the 20 ms frames within 30 dB of the 95th percentile of energy."""
    peak: float
    """Largest absolute sample."""


def stream_audio(path: Media, rate: int, channels: int | None = None) -> Generator[np.ndarray, None, None]:
    """Stream the audio of a file as blocks ``float32 [C, n]`` in [-1, 1].

    The first sample is at the time of the first video frame (audio that starts later is padded with zeros, earlier
    audio is cut), or is the first sample of a file without video. Gaps in the recording become zeros. If there are
    several audio tracks, the default one is used.

    Args:
        path: an audio or video file, on disk or in memory.
        rate: sample rate of the output.
        channels: 1 for a speech mix of all channels (see ``downmix``); None keeps mono and stereo, and mixes more
            channels down to stereo.

    Raises:
        UserError: the file is missing or broken, or has no audio.
    """
    start = find_start_time(path, "speech")
    stereo = _choose_stereo_weights(path) if channels == 1 else None
    with open_media(path, "speech") as container:
        frames = decode_tolerantly(container, find_audio_stream(container, path))
        yield from _resample(_align(frames, start, stereo, path), rate)


def resample_audio(blocks: Iterable[np.ndarray], rate: int, new_rate: int) -> Generator[np.ndarray, None, None]:
    """Resample blocks ``float32 [C, n]`` (C is 1 or 2) without delay."""
    yield from _resample(((block, rate) for block in blocks), new_rate)


def stream_speech(path: Media) -> Iterator[np.ndarray]:
    """Stream the audio of a file as mono 16 kHz blocks ``float32 [n]``; see ``stream_audio``."""
    for block in stream_audio(path, SAMPLE_RATE, channels=1):
        yield block[0]


def stream_clean_speech(path: Media) -> Iterator[np.ndarray]:
    """Stream the input of the models: ``stream_speech`` after ``remove_rumble``."""
    yield from remove_rumble(stream_speech(path))


def read_clean_speech(path: Media) -> np.ndarray:
    """Read all of ``stream_clean_speech``, ``float32 [n]``."""
    return np.concatenate([np.zeros(0, np.float32), *stream_clean_speech(path)])


def read_speech(path: Media) -> np.ndarray:
    """Read all of ``stream_speech``, ``float32 [n]``; n may be 0."""
    return np.concatenate([np.zeros(0, np.float32), *stream_speech(path)])


def fit_length(blocks: Iterable[np.ndarray], samples: int | None) -> Iterator[np.ndarray]:
    """Cut blocks ``[n]`` of audio at ``samples``, or pad them with silence; None leaves them unchanged."""
    if samples is None:
        yield from blocks
        return
    left = samples
    for block in blocks:
        yield block[:left]
        left -= min(left, len(block))
        if not left:
            return
    while left:
        yield np.zeros(min(left, SAMPLE_RATE), np.float32)
        left -= min(left, SAMPLE_RATE)


def measure_level(blocks: Iterable[np.ndarray]) -> SpeechLevel:
    """Measure 16 kHz blocks ``float32 [n]``, keeping only one energy value per 20 ms."""
    energies: list[np.ndarray] = []
    rest = np.zeros(0, np.float32)
    samples, peak = 0, 0.0
    for block in blocks:
        samples += len(block)
        peak = max(peak, float(np.max(np.abs(block), initial=0.0)))
        rest = np.concatenate([rest, block])
        whole = len(rest) // _LEVEL_FRAME * _LEVEL_FRAME
        energies.append(_frame_energies(rest[:whole]))
        rest = rest[whole:]
    if samples and samples < _LEVEL_FRAME:
        energies.append(np.mean(np.square(rest), keepdims=True))
    energy = np.concatenate(energies) if energies else np.zeros(0, np.float32)
    return SpeechLevel(samples, _active_rms(energy), peak)


def check_speech(path: Media, level: SpeechLevel) -> None:
    """Raise UserError if the speech of ``path`` with this level is empty, too short or silent."""
    if level.samples == 0:
        raise UserError(path, "holds no sound at all (0 samples)", "Use a recording of speech.")
    seconds = level.samples / SAMPLE_RATE
    if seconds < MIN_SECONDS:
        reason = f"is too short ({seconds:.3f} s; at least {MIN_SECONDS} s are needed)"
        raise UserError(path, reason, "Use a longer recording.")
    if level.active_rms < SILENCE_RMS:
        reason = "is silent (below -60 dB of full scale throughout)"
        raise UserError(path, reason, "Use a recording of speech, or turn up its volume.")


def speech_gain(level: SpeechLevel) -> float:
    """Return the gain that brings the active RMS to ``TARGET_RMS`` (-23 dBFS); 1 for digital silence."""
    return TARGET_RMS / level.active_rms if level.active_rms > 0.0 else 1.0


def count_frames(samples: int) -> int:
    """Return the number of 25 fps frames in ``samples`` of 16 kHz audio, rounded half up, at least 1."""
    return max(1, (2 * samples + SAMPLES_PER_FRAME) // (2 * SAMPLES_PER_FRAME))


def cut_speech_window(speech: np.ndarray, frame: int | np.ndarray, window: int) -> np.ndarray:
    """Cut the window of speech that is centered on a video frame, padded with zeros beyond the ends.

    Args:
        speech: ``[n]``.
        frame: a frame number, or an array of k of them. Frame k is centered on sample (k + 0.5) * 640, which is at
            index ``window // 2`` of the result.
        window: number of samples.

    Returns:
        ``[window]``, or ``[k, window]`` for an array.
    """
    first = np.asarray(frame)[..., None] * SAMPLES_PER_FRAME + SAMPLES_PER_FRAME // 2 - window // 2
    index = first + np.arange(window)
    inside = (index >= 0) & (index < len(speech))
    if not len(speech):
        return np.zeros(index.shape, np.float32)
    return np.where(inside, speech[np.clip(index, 0, len(speech) - 1)], np.float32(0.0))


def stream_speech_windows(blocks: Iterable[np.ndarray], window: int) -> Iterator[np.ndarray]:
    """Stream the windows ``float32 [window]`` of ``cut_speech_window`` for frames 0, 1, ... of blocks ``[n]``.

    There are ``count_frames(samples)`` windows. One block and one window are held at a time.
    """
    cutter = SpeechWindows(window)
    for block in blocks:
        yield from cutter.feed(block)
    yield from cutter.finish()


class SpeechWindows:
    """Cuts the windows of frames 0, 1, ... from sound that comes in blocks, see ``cut_speech_window``."""

    def __init__(self, window: int) -> None:
        """Take the number of samples of a window."""
        self.window = window
        self.samples = self.frames = 0
        """Samples that came, and windows that were cut."""
        self._origin = min(0, SAMPLES_PER_FRAME // 2 - window // 2)  # sample number of buffer[0]
        self._buffer = np.zeros(-self._origin, np.float32)

    def feed(self, block: np.ndarray) -> Iterator[np.ndarray]:
        """Yield the windows that ``block [n]`` completes."""
        self.samples += len(block)
        self._buffer = np.concatenate([self._buffer, block])
        while self._start() + self.window <= len(self._buffer):
            start = self._start()
            self.frames += 1
            yield self._buffer[start : start + self.window].copy()
        dropped = min(self._start(), len(self._buffer))
        self._buffer = self._buffer[dropped:]
        self._origin += dropped

    def finish(self) -> Iterator[np.ndarray]:
        """Yield the other windows, of all frames of the sound; silence follows it."""
        while self.frames < count_frames(self.samples):
            piece = self._buffer[self._start() : self._start() + self.window]
            self.frames += 1
            yield np.pad(piece, (0, self.window - len(piece)))

    def _start(self) -> int:
        return self.frames * SAMPLES_PER_FRAME + SAMPLES_PER_FRAME // 2 - self.window // 2 - self._origin


def write_wav(path: str | Path, speech: np.ndarray) -> None:
    """Write ``float32 [n]``, clipped to [-1, 1], as 16-bit, 16 kHz mono WAV."""
    _write_pcm16(path, speech, "WAV")


def write_flac(path: str | Path, speech: np.ndarray) -> None:
    """Write ``float32 [n]``, clipped to [-1, 1], as 16-bit, 16 kHz mono FLAC, about half the size of a WAV."""
    _write_pcm16(path, speech, "FLAC")


def read_flac(file: str | Path | BinaryIO) -> np.ndarray:
    """Read a file that :func:`write_flac` wrote, ``float32 [n]``.

    Args:
        file: its path, or an open file that can seek.

    Raises:
        UserError: it is damaged, or is not 16 kHz mono.
    """
    import soundfile

    name = name_media(file)
    try:
        speech, rate = soundfile.read(file, dtype="float32")
    except (OSError, soundfile.SoundFileError) as error:
        raise UserError(name, f"cannot be read ({first_line(error)})", "Prepare the clip again.") from error
    if rate != SAMPLE_RATE or speech.ndim != 1:
        raise UserError(name, f"is not mono sound of {SAMPLE_RATE} Hz", "Prepare the clip again.")
    return speech


def _write_pcm16(path: str | Path, speech: np.ndarray, container: str) -> None:
    # Rendering needs no sound file library.
    import soundfile

    if speech.ndim != 1:
        raise ValueError(f"expected mono sound [n], got {list(speech.shape)}")
    # The inverse of how readers scale 16-bit samples, so that a round trip is lossless.
    pcm = np.clip(np.rint(speech * 32768.0), -32768, 32767).astype(np.int16)
    with atomic_write(path) as temporary:
        soundfile.write(temporary, pcm, SAMPLE_RATE, subtype="PCM_16", format=container)


def _frame_energies(samples: np.ndarray) -> np.ndarray:
    return np.mean(np.square(samples.reshape(-1, _LEVEL_FRAME)), axis=1)


def _active_rms(energy: np.ndarray) -> float:
    if not len(energy):
        return 0.0
    active = energy[energy >= np.percentile(energy, 95) * _ACTIVE_RANGE]
    return float(np.sqrt(np.mean(active, dtype=np.float64)))


def _choose_stereo_weights(path: Media) -> np.ndarray:
    """Choose the mono weights ``[1, 2]`` of two channels, from the first minute that is not silent.

    It is searched in the first ten minutes, because hours of silence fit into a small file.
    """
    statistics, seconds, searched = StereoStatistics(), 0.0, 0.0
    with open_media(path, "speech") as container:
        for frame in decode_tolerantly(container, find_audio_stream(container, path)):
            sound = _to_float(frame)
            if len(sound) != 2 or seconds > _STEREO_SECONDS or searched > _STEREO_SEARCH_SECONDS:
                break
            searched += sound.shape[1] / frame.sample_rate
            if np.abs(sound).max(initial=0.0) > SILENCE_RMS:
                statistics.add(np.nan_to_num(sound))
                seconds += sound.shape[1] / frame.sample_rate
    return statistics.choose_weights()


def _align(
    frames: Iterable[av.AudioFrame], start: float | None, stereo: np.ndarray | None, path: Media
) -> Iterator[tuple[np.ndarray, int]]:
    """Turn decoded frames into (``float32 [C, n]``, rate) without gaps or overlaps, from time ``start`` on."""
    clock, started = start, False  # presentation time of the next sample; whether a sample was yielded
    for frame in frames:
        sound, rate = _mix_down(_to_float(frame), frame, stereo), frame.sample_rate
        if not np.isfinite(sound).all():
            raise UserError(path, "holds samples that are not numbers", "Record or convert it again.")
        if np.abs(sound).max(initial=0.0) > _LOUDEST:
            reason = f"holds samples {_LOUDEST:g} times as loud as full scale"
            raise UserError(path, reason, "Convert it to 16-bit sound, or scale it to -1 to 1.")
        if clock is None:
            clock = frame.time or 0.0
        late = 0.0 if frame.time is None else frame.time - clock
        if started and not -_LONGEST_OVERLAP < late < _LONGEST_GAP:
            clock, late = clock + late, 0.0  # the file's clock was reset, as in concatenated recordings
        elif started and abs(late) < _GAP_SECONDS:
            late = 0.0
        missing = round(late * rate)
        yield from _make_silence(len(sound), missing, rate)
        sound = sound[:, max(0, -missing) :]
        clock += (max(0, missing) + sound.shape[1]) / rate
        started = started or sound.shape[1] > 0
        yield sound, rate


def _make_silence(channels: int, samples: int, rate: int) -> Iterator[tuple[np.ndarray, int]]:
    """Yield zeros ``[channels, samples]`` in blocks of at most one second."""
    for first in range(0, samples, rate):
        yield np.zeros((channels, min(rate, samples - first)), np.float32), rate


def _mix_down(sound: np.ndarray, frame: av.AudioFrame, stereo: np.ndarray | None) -> np.ndarray:
    """Mix ``float32 [C, n]`` down to two channels, or to one if the weights ``[1, 2]`` of two channels are given."""
    if len(sound) == 1 or (stereo is None and len(sound) == 2):
        return sound
    if len(sound) == 2:
        return stereo @ sound
    return downmix_matrix([channel.name for channel in frame.layout.channels], 2 if stereo is None else 1) @ sound


def _to_float(frame: av.AudioFrame) -> np.ndarray:
    """Return the samples of a decoded frame as ``float32 [C, n]``, with integers scaled to [-1, 1]."""
    values = frame.to_ndarray()
    if not frame.format.is_planar:
        values = values.reshape(-1, frame.layout.nb_channels).T
    if values.dtype == np.uint8:
        sound = (values.astype(np.float32) - 128.0) / 128.0
    elif np.issubdtype(values.dtype, np.integer):
        sound = (values / -float(np.iinfo(values.dtype.name).min)).astype(np.float32)
    else:
        sound = values.astype(np.float32)
    return sound


def _resample(pieces: Iterable[tuple[np.ndarray, int]], new_rate: int) -> Iterator[np.ndarray]:
    """Resample pieces (``float32 [C, n]``, rate) to the number of channels of the first piece."""
    resampler, layout, old_rate = None, "", 0
    for sound, rate in pieces:
        layout = layout or LAYOUTS[len(sound)]
        if layout != LAYOUTS[len(sound)]:
            sound = np.repeat(sound.mean(axis=0, keepdims=True), 3 - len(sound), axis=0)
        if rate != old_rate:
            yield from _pull(resampler, None)
            resampler, old_rate = av.AudioResampler("fltp", layout, new_rate), rate
        if sound.shape[1]:
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(sound), "fltp", layout)
            frame.sample_rate = rate
            yield from _pull(resampler, frame)
    yield from _pull(resampler, None)


def _pull(resampler: av.AudioResampler | None, frame: av.AudioFrame | None) -> Iterator[np.ndarray]:
    for resampled in resampler.resample(frame) if resampler else ():
        if resampled is not None and resampled.samples:
            yield resampled.to_ndarray()
