"""Speech: any sound file to 16 kHz mono float32, its level, and the window that belongs to each video frame.

Everything streams: blocks of samples go from one generator to the next, and memory does not grow with length.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import av
import numpy as np
import soundfile
from scipy.signal import butter, sosfilt, sosfilt_zi

from s3dnerf.errors import UserError
from s3dnerf.media.container import decode_tolerantly, find_sound_stream, find_start_time, open_media
from s3dnerf.media.downmix import StereoStatistics, make_downmix
from s3dnerf.media.files import replace_when_done

SAMPLE_RATE = 16000
FPS = 25
SAMPLES_PER_FRAME = SAMPLE_RATE // FPS
LAYOUTS = {1: "mono", 2: "stereo"}
MIN_SECONDS = 0.2
SILENCE_RMS = 10.0 ** (-60.0 / 20.0)
TARGET_RMS = 10.0 ** (-23.0 / 20.0)

_LEVEL_FRAME = SAMPLE_RATE // 50
_ACTIVE_RANGE = 10.0 ** (-30.0 / 10.0)
# Timestamps jitter by a millisecond or so in real files; only a larger jump is a gap in the recording.
_GAP_SECONDS = 0.05
_LONGEST_GAP = 600.0
_LONGEST_OVERLAP = 1.0
_SETTLING = SAMPLE_RATE // 20
_STEREO_SECONDS = 60.0


@dataclass(frozen=True)
class SpeechLevel:
    """How long and how loud a recording is.

    samples: number of 16 kHz samples. active_rms: root mean square over the 20 ms frames whose energy is at
    most 30 dB below the 95th percentile (pauses do not count). peak: largest absolute sample. Full scale
    is 1.
    """

    samples: int
    active_rms: float
    peak: float


def stream_sound(path: str | Path, rate: int, channels: int | None = None) -> Iterator[np.ndarray]:
    """Yield the sound of any audio or video file as float32 blocks [C, n] in [-1, 1] at `rate` hertz.

    channels: 1 mixes all channels down for listening to speech (see `downmix`); None keeps mono and stereo and mixes
    anything larger down to stereo. Of several sound tracks the one marked as default is taken.

    The first sample belongs to the first picture of a video (sound that starts later is preceded by zeros,
    earlier sound is cut), or is the first sample of a file without pictures; gaps in the recording become
    zeros. Raises UserError if the file is missing, is not sound, has no sound, or is broken.
    """
    start = find_start_time(path, "speech")
    stereo = _choose_stereo_weights(path) if channels == 1 else None
    with open_media(path, "speech") as container:
        frames = decode_tolerantly(container, find_sound_stream(container, path))
        yield from _resample(_align(frames, start, stereo, path), rate)


def resample_sound(blocks: Iterable[np.ndarray], rate: int, new_rate: int) -> Iterator[np.ndarray]:
    """Change the sample rate of float32 blocks [C, n] (C is 1 or 2) without moving anything in time."""
    yield from _resample(((block, rate) for block in blocks), new_rate)


def stream_speech(path: str | Path) -> Iterator[np.ndarray]:
    """Yield the sound of any audio or video file as float32 blocks [n], mono, 16 kHz; see `stream_sound`."""
    for block in stream_sound(path, SAMPLE_RATE, channels=1):
        yield block[0]


def stream_clean_speech(path: str | Path) -> Iterator[np.ndarray]:
    """Yield what models hear of a file: `stream_speech` without what is below speech, see `remove_rumble`."""
    yield from remove_rumble(stream_speech(path))


def read_clean_speech(path: str | Path) -> np.ndarray:
    """The whole of `stream_clean_speech`, float32 [n]."""
    return np.concatenate([np.zeros(0, np.float32), *stream_clean_speech(path)])


def read_speech(path: str | Path) -> np.ndarray:
    """The whole sound of a file as float32 [n], mono, 16 kHz (n may be 0); see `stream_sound`."""
    return np.concatenate([np.zeros(0, np.float32), *stream_speech(path)])


def remove_rumble(blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Take what is below speech out of float32 blocks [n] of 16 kHz sound: a constant offset, wind, traffic.

    A fourth-order Butterworth high-pass at 25 Hz: 74 dB down at 3 Hz, nothing at 100 Hz and above, where it delays by
    1.1 ms at most. Rumble that is 22 dB louder than the speech leaves the lips as they were (correlation 0.999; 0.92 at
    second order). It starts settled on the offset of the first 50 ms, so that an offset makes no click.
    """
    filter_, state, waiting = _design_rumble_filter(), None, np.zeros(0, np.float32)

    def begin() -> tuple[np.ndarray, np.ndarray]:
        return sosfilt(filter_, waiting, zi=sosfilt_zi(filter_) * waiting.mean(dtype=np.float64))

    for block in blocks:
        if state is not None:
            filtered, state = sosfilt(filter_, block, zi=state)
            yield filtered.astype(np.float32)
            continue
        waiting = np.concatenate([waiting, block])
        if len(waiting) >= _SETTLING:
            filtered, state = begin()
            yield filtered.astype(np.float32)
    if state is None and len(waiting):
        yield begin()[0].astype(np.float32)


def fit_length(blocks: Iterable[np.ndarray], samples: int | None) -> Iterator[np.ndarray]:
    """Cut blocks [n] of sound at `samples`, or go on with silence up to there; None leaves them as they are."""
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
    """Measure float32 blocks [n] of 16 kHz sound; keeps only one energy value for every 20 ms."""
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


def check_speech(path: str | Path, level: SpeechLevel) -> None:
    """Raise UserError if the speech of `path`, measured as `level`, is empty, too short, or silent."""
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
    """Factor that brings the active RMS to TARGET_RMS (-23 dB of full scale); 1 for digital silence."""
    return TARGET_RMS / level.active_rms if level.active_rms > 0.0 else 1.0


def count_frames(samples: int) -> int:
    """Number of 25 fps frames that `samples` of 16 kHz sound last: the nearest, half up, at least 1."""
    return max(1, (2 * samples + SAMPLES_PER_FRAME) // (2 * SAMPLES_PER_FRAME))


def cut_speech_window(speech: np.ndarray, frame: int | np.ndarray, window: int) -> np.ndarray:
    """Cut `window` samples, centered on sample (frame + 0.5) * 640, out of speech [n]; zeros beyond its ends.

    The center sample stands at index window // 2. One frame number gives [window], an array of k gives
    [k, window].
    """
    first = np.asarray(frame)[..., None] * SAMPLES_PER_FRAME + SAMPLES_PER_FRAME // 2 - window // 2
    index = first + np.arange(window)
    inside = (index >= 0) & (index < len(speech))
    if not len(speech):
        return np.zeros(index.shape, np.float32)
    return np.where(inside, speech[np.clip(index, 0, len(speech) - 1)], np.float32(0.0))


def stream_speech_windows(blocks: Iterable[np.ndarray], window: int) -> Iterator[np.ndarray]:
    """Yield float32 [window] for frame 0, 1, ... of blocks [n], equal to those of `cut_speech_window`.

    There are count_frames(total samples) of them. Holds one block and one window at a time.
    """
    origin = min(0, SAMPLES_PER_FRAME // 2 - window // 2)  # sample number of buffer[0]
    buffer = np.zeros(-origin, np.float32)
    total = frame = 0

    def start() -> int:
        return frame * SAMPLES_PER_FRAME + SAMPLES_PER_FRAME // 2 - window // 2 - origin

    for block in blocks:
        total += len(block)
        buffer = np.concatenate([buffer, block])
        while start() + window <= len(buffer):
            yield buffer[start() : start() + window].copy()
            frame += 1
        dropped = min(start(), len(buffer))
        buffer = buffer[dropped:]
        origin += dropped
    while frame < count_frames(total):
        piece = buffer[start() : start() + window]
        yield np.pad(piece, (0, window - len(piece)))
        frame += 1


def write_wav(path: str | Path, speech: np.ndarray) -> None:
    """Write float32 [n] in [-1, 1] (clipped) as 16-bit, 16 kHz mono WAV."""
    _write_pcm16(path, speech, "WAV")


def write_flac(path: str | Path, speech: np.ndarray) -> None:
    """Write float32 [n] in [-1, 1] (clipped) as 16-bit, 16 kHz mono FLAC: lossless, about half of a WAV."""
    _write_pcm16(path, speech, "FLAC")


def _write_pcm16(path: str | Path, speech: np.ndarray, container: str) -> None:
    if speech.ndim != 1:
        raise ValueError(f"expected mono sound [n], got {list(speech.shape)}")
    # The inverse of how readers scale 16-bit samples, so that reading and writing again changes nothing.
    pcm = np.clip(np.rint(speech * 32768.0), -32768, 32767).astype(np.int16)
    with replace_when_done(path) as temporary:
        soundfile.write(temporary, pcm, SAMPLE_RATE, subtype="PCM_16", format=container)


def _frame_energies(samples: np.ndarray) -> np.ndarray:
    return np.mean(np.square(samples.reshape(-1, _LEVEL_FRAME)), axis=1)


def _active_rms(energy: np.ndarray) -> float:
    if not len(energy):
        return 0.0
    active = energy[energy >= np.percentile(energy, 95) * _ACTIVE_RANGE]
    return float(np.sqrt(np.mean(active, dtype=np.float64)))


@cache
def _design_rumble_filter() -> np.ndarray:
    return butter(4, 25.0, "highpass", fs=SAMPLE_RATE, output="sos")


def _choose_stereo_weights(path: str | Path) -> np.ndarray:
    """Listen to the first minute that is not silent, and choose how two channels are mixed to one: [1, 2]."""
    statistics, heard = StereoStatistics(), 0.0
    with open_media(path, "speech") as container:
        for frame in decode_tolerantly(container, find_sound_stream(container, path)):
            sound = _to_float(frame)
            if len(sound) != 2 or heard > _STEREO_SECONDS:
                break
            if np.abs(sound).max(initial=0.0) > SILENCE_RMS:
                statistics.add(np.nan_to_num(sound))
                heard += sound.shape[1] / frame.sample_rate
    return statistics.choose_weights()


def _align(
    frames: Iterable[av.AudioFrame], start: float | None, stereo: np.ndarray | None, path: str | Path
) -> Iterator[tuple[np.ndarray, int]]:
    """Turn decoded frames into (float32 [C, n], rate) without gaps or overlaps, beginning at time `start`."""
    clock, begun = start, False  # presentation time at which the next sample is due; whether one was given
    for frame in frames:
        sound, rate = _mix_down(_to_float(frame), frame, stereo), frame.sample_rate
        if not np.isfinite(sound).all():
            raise UserError(path, "holds samples that are not numbers", "Record or convert it again.")
        if clock is None:
            clock = frame.time or 0.0
        late = 0.0 if frame.time is None else frame.time - clock
        if begun and not -_LONGEST_OVERLAP < late < _LONGEST_GAP:
            clock, late = clock + late, 0.0  # the file's clock was set anew, as in joined recordings
        elif begun and abs(late) < _GAP_SECONDS:
            late = 0.0
        missing = round(late * rate)
        yield from _make_silence(len(sound), missing, rate)
        sound = sound[:, max(0, -missing) :]
        clock += (max(0, missing) + sound.shape[1]) / rate
        begun = begun or sound.shape[1] > 0
        yield sound, rate


def _make_silence(channels: int, samples: int, rate: int) -> Iterator[tuple[np.ndarray, int]]:
    """Zeros [channels, samples] in blocks of at most a second."""
    for first in range(0, samples, rate):
        yield np.zeros((channels, min(rate, samples - first)), np.float32), rate


def _mix_down(sound: np.ndarray, frame: av.AudioFrame, stereo: np.ndarray | None) -> np.ndarray:
    """Mix float32 [C, n] down to two channels, or to one where the weights [1, 2] of two channels are given."""
    if len(sound) == 1 or (stereo is None and len(sound) == 2):
        return sound
    if len(sound) == 2:
        return stereo @ sound
    return make_downmix([channel.name for channel in frame.layout.channels], 2 if stereo is None else 1) @ sound


def _to_float(frame: av.AudioFrame) -> np.ndarray:
    """Samples of a decoded frame as float32 [C, n], integers scaled to [-1, 1]."""
    values = frame.to_ndarray()
    if not frame.format.is_planar:
        values = values.reshape(-1, frame.layout.nb_channels).T
    if values.dtype == np.uint8:
        sound = (values.astype(np.float32) - 128.0) / 128.0
    elif np.issubdtype(values.dtype, np.integer):
        sound = (values / -float(np.iinfo(values.dtype).min)).astype(np.float32)
    else:
        sound = values.astype(np.float32)
    return sound


def _resample(pieces: Iterable[tuple[np.ndarray, int]], new_rate: int) -> Iterator[np.ndarray]:
    """Resample (float32 [C, n], rate) pieces; the channel count of the first piece is kept throughout."""
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
