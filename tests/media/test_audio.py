"""Audio: decoding of all formats to 16 kHz in sync, exact windows, and messages for unusable speech."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from av.stream import Disposition
from PIL import Image

import s3dnerf
from s3dnerf.constants import SAMPLE_RATE, SAMPLES_PER_FRAME
from s3dnerf.errors import UserError
from s3dnerf.media.audio import (
    TARGET_RMS,
    SpeechLevel,
    check_speech,
    count_frames,
    cut_speech_window,
    measure_level,
    read_speech,
    speech_gain,
    stream_audio,
    stream_speech,
    stream_speech_windows,
    write_flac,
    write_wav,
)
from s3dnerf.media.rumble import remove_rumble

RATES = [8000, 16000, 22050, 44100, 48000]
SECONDS = 1.5


def sweep(rate: int) -> np.ndarray:
    """A tone that rises from 200 to 3000 Hz in 1.5 s: its place in time is unmistakable."""
    time = np.arange(round(SECONDS * rate)) / rate
    return 0.5 * np.sin(2 * np.pi * (200 * time + 2800 / (2 * SECONDS) * time**2))


def find_shift(sound: np.ndarray, reference: np.ndarray) -> int:
    """By how many samples `sound` is late."""
    size = 2 ** int(np.ceil(np.log2(len(sound) + len(reference))))
    correlation = np.fft.irfft(np.fft.rfft(sound, size) * np.conj(np.fft.rfft(reference, size)))
    lag = int(np.argmax(correlation))
    return lag - size if lag > size // 2 else lag


def write_sound(path: Path, sound: np.ndarray, rate: int, make_film: Callable[..., None]) -> None:
    if path.suffix == ".mp4":
        pictures = [np.zeros((32, 32, 3), np.uint8)] * 30
        make_film(path, pictures, np.arange(30) / 20, sound, rate)
    elif path.suffix == ".m4a":
        write_m4a(path, sound, rate)
    else:
        soundfile.write(path, sound.T, rate)


def write_m4a(path: Path, sound: np.ndarray, rate: int) -> None:
    with av.open(str(path), "w", format="mp4") as container:
        track = container.add_stream("aac", rate=rate, layout="mono" if len(sound) == 1 else "stereo")
        frame = av.AudioFrame.from_ndarray(sound.astype(np.float32), "fltp", track.layout.name)
        frame.sample_rate, frame.pts = rate, 0
        container.mux(track.encode(frame))
        container.mux(track.encode(None))


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("suffix", [".wav", ".flac", ".mp3", ".ogg", ".m4a", ".mp4"])
def test_every_format_keeps_length_level_and_time(
    tmp_path: Path, make_film: Callable[..., None], suffix: str, rate: int, channels: int
) -> None:
    path = tmp_path / f"sweep{suffix}"
    write_sound(path, np.repeat(sweep(rate)[None], channels, axis=0), rate, make_film)
    speech = read_speech(path)
    assert speech.dtype == np.float32
    if suffix in (".wav", ".flac"):
        assert len(speech) == pytest.approx(SECONDS * SAMPLE_RATE, abs=2)
    # AAC and Vorbis may end with a whole packet of 1024 of their own samples.
    packet = 1024 * SAMPLE_RATE / rate if suffix in (".m4a", ".mp4", ".ogg") else 0
    extra = len(speech) - SECONDS * SAMPLE_RATE
    assert extra >= -0.01 * SECONDS * SAMPLE_RATE
    assert extra <= max(0.01 * SECONDS * SAMPLE_RATE, packet)
    assert abs(find_shift(speech, sweep(SAMPLE_RATE))) < 0.002 * SAMPLE_RATE
    middle = speech[4000:20000]
    assert np.sqrt(np.mean(middle**2)) == pytest.approx(0.5 / np.sqrt(2), rel=0.06)


@pytest.mark.parametrize("rate", RATES)
def test_sine_keeps_frequency_and_phase(tmp_path: Path, make_film: Callable[..., None], rate: int) -> None:
    frequency = 1000.0
    sound = 0.3 * np.sin(2 * np.pi * frequency * np.arange(round(SECONDS * rate)) / rate)
    write_sound(tmp_path / "a.wav", sound[None], rate, make_film)
    speech = read_speech(tmp_path / "a.wav")[2000:18000]
    time = np.arange(2000, 18000) / SAMPLE_RATE
    amplitude = 2 * np.mean(speech * np.exp(-2j * np.pi * frequency * time)) * 1j
    assert abs(amplitude) == pytest.approx(0.3, rel=0.01)
    assert abs(np.angle(amplitude)) / (2 * np.pi * frequency) < 2e-6  # seconds
    assert np.argmax(np.abs(np.fft.rfft(speech))) == frequency


def test_two_different_channels_are_averaged(tmp_path: Path) -> None:
    left, right = sweep(SAMPLE_RATE), 0.3 * np.sin(0.2 * np.arange(round(SECONDS * SAMPLE_RATE)))
    soundfile.write(tmp_path / "a.wav", np.stack([left, right], axis=1), SAMPLE_RATE, subtype="FLOAT")
    np.testing.assert_allclose(read_speech(tmp_path / "a.wav"), (left + right) / 2, atol=1e-6)


@pytest.mark.parametrize(("channels", "centre"), [(6, 2), (8, 2)])
def test_the_center_channel_keeps_its_level(tmp_path: Path, channels: int, centre: int) -> None:
    sound = np.zeros((round(SECONDS * SAMPLE_RATE), channels))
    sound[:, centre] = sweep(SAMPLE_RATE)
    soundfile.write(tmp_path / "a.wav", sound, SAMPLE_RATE, subtype="FLOAT")
    np.testing.assert_allclose(read_speech(tmp_path / "a.wav"), sweep(SAMPLE_RATE), atol=1e-6)
    stereo = np.concatenate(list(stream_audio(tmp_path / "a.wav", SAMPLE_RATE)), axis=1)
    np.testing.assert_allclose(stereo, np.sqrt(0.5) * np.stack([sweep(SAMPLE_RATE)] * 2), atol=1e-6)


def test_opposite_channels_do_not_cancel(tmp_path: Path) -> None:
    speech, noise = (
        sweep(SAMPLE_RATE),
        0.05 * np.random.default_rng(0).standard_normal((2, round(SECONDS * SAMPLE_RATE))),
    )
    soundfile.write(tmp_path / "a.wav", np.stack([speech, -speech], axis=1), SAMPLE_RATE, subtype="FLOAT")
    np.testing.assert_allclose(read_speech(tmp_path / "a.wav"), speech, atol=1e-6)
    soundfile.write(tmp_path / "b.wav", (np.stack([speech, -speech]) + noise).T, SAMPLE_RATE, subtype="FLOAT")
    assert np.corrcoef(read_speech(tmp_path / "b.wav"), speech)[0, 1] > 0.99


def test_a_silent_channel_does_not_halve_the_other(tmp_path: Path) -> None:
    speech = sweep(SAMPLE_RATE)
    soundfile.write(tmp_path / "a.wav", np.stack([0 * speech, speech], axis=1), SAMPLE_RATE, subtype="FLOAT")
    np.testing.assert_allclose(read_speech(tmp_path / "a.wav"), speech, atol=1e-6)


@pytest.mark.parametrize("default", [None, 1])
def test_the_default_track_is_used(tmp_path: Path, default: int | None) -> None:
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        tracks = [container.add_stream("pcm_s16le", rate=SAMPLE_RATE, layout="mono") for _ in range(2)]
        for number, track in enumerate(tracks):
            track.disposition = Disposition.default if number == default else Disposition(0)
        for number, track in enumerate(tracks):
            frame = av.AudioFrame.from_ndarray(np.full((1, SAMPLE_RATE), 8000 * number, np.int16), "s16", "mono")
            frame.sample_rate = SAMPLE_RATE
            container.mux(track.encode(frame))
    assert np.abs(read_speech(tmp_path / "a.mkv")).max() == (0.0 if default is None else 8000 / 32768)


def measure_gain(hertz: float) -> float:
    tone = np.sin(2 * np.pi * hertz * np.arange(4 * SAMPLE_RATE) / SAMPLE_RATE).astype(np.float32)
    clean = np.concatenate(list(remove_rumble(np.split(tone, 50))))
    return 20 * np.log10(clean[SAMPLE_RATE:].std() / tone[SAMPLE_RATE:].std())


def test_rumble_is_removed_and_speech_is_not() -> None:
    assert measure_gain(3.0) < -70
    assert measure_gain(12.0) < -20
    assert abs(measure_gain(100.0)) < 0.01
    assert abs(measure_gain(1000.0)) < 0.01
    sound = sweep(SAMPLE_RATE).astype(np.float32)
    clean = np.concatenate(list(remove_rumble([sound])))
    assert abs(find_shift(clean, sound)) <= 1


def test_an_offset_is_removed_without_a_click_whatever_the_blocks() -> None:
    offset = np.full(SAMPLE_RATE, 0.7, np.float32)
    for size in (37, 800, 5000):
        blocks = [offset[first : first + size] for first in range(0, SAMPLE_RATE, size)]
        assert np.abs(np.concatenate(list(remove_rumble(blocks)))).max() < 1e-6
    speech = read_speech(Path(s3dnerf.__file__).parent / "assets" / "speech.wav")[: 2 * SAMPLE_RATE]
    plain, shifted = (np.concatenate(list(remove_rumble([sound]))) for sound in (speech, speech + np.float32(0.4)))
    np.testing.assert_allclose(shifted, plain, atol=1e-5)
    assert list(remove_rumble([])) == []
    assert len(np.concatenate(list(remove_rumble([speech[:10]])))) == 10


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW"])
def test_every_sample_format_has_full_scale_one(tmp_path: Path, subtype: str) -> None:
    soundfile.write(tmp_path / "a.wav", sweep(SAMPLE_RATE), SAMPLE_RATE, subtype=subtype)
    tolerance = {"PCM_U8": 0.008, "ULAW": 0.02}.get(subtype, 1e-4)
    np.testing.assert_allclose(read_speech(tmp_path / "a.wav"), sweep(SAMPLE_RATE), atol=tolerance)


def test_stereo_is_kept_when_asked_for(tmp_path: Path) -> None:
    sound = np.stack([sweep(44100), -sweep(44100)])
    soundfile.write(tmp_path / "a.wav", sound.T, 44100)
    blocks = list(stream_audio(tmp_path / "a.wav", 48000))
    stereo = np.concatenate(blocks, axis=1)
    assert stereo.shape == (2, round(SECONDS * 48000))
    np.testing.assert_allclose(stereo[0], -stereo[1], atol=1e-4)


@pytest.mark.parametrize(("picture_start", "sound_start"), [(0.0, 0.5), (0.5, 0.0), (0.25, 0.5), (0.0, 0.0)])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts"])
def test_the_first_sample_is_at_the_first_video_frame(
    tmp_path: Path, make_film: Callable[..., None], suffix: str, picture_start: float, sound_start: float
) -> None:
    path = tmp_path / f"a{suffix}"
    pictures = [np.zeros((32, 32, 3), np.uint8)] * 30
    make_film(path, pictures, picture_start + np.arange(30) / 20, sweep(48000)[None], 48000, sound_start)
    late = round((sound_start - picture_start) * SAMPLE_RATE)
    expected = np.pad(sweep(SAMPLE_RATE), (max(0, late), 0))[max(0, -late) :]
    speech = read_speech(path)
    assert abs(find_shift(speech, expected)) < 0.002 * SAMPLE_RATE
    if late > 0:
        assert np.abs(speech[: late - 500]).max() < 0.01
    assert abs(len(speech) - len(expected)) < 0.04 * SAMPLE_RATE


@pytest.mark.parametrize(("gap", "expected"), [(0.5, 0.5), (0.03, 0.0), (-0.02, 0.0), (-0.25, -0.25)])
def test_gaps_become_zeros_and_overlaps_are_cut(tmp_path: Path, gap: float, expected: float) -> None:
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        track = container.add_stream("pcm_s16le", rate=SAMPLE_RATE, layout="mono")
        for start in (0.0, 1.0 + gap):
            frame = av.AudioFrame.from_ndarray(np.full((1, SAMPLE_RATE), 8000, np.int16), "s16", "mono")
            frame.sample_rate, frame.pts = SAMPLE_RATE, round(start * SAMPLE_RATE)
            container.mux(track.encode(frame))
        container.mux(track.encode(None))
    speech = read_speech(tmp_path / "a.mkv")
    assert len(speech) == pytest.approx((2.0 + expected) * SAMPLE_RATE, abs=32)
    assert np.sum(speech == 0) == pytest.approx(max(0.0, expected) * SAMPLE_RATE, abs=32)


def test_shipped_sample_is_speech_with_a_pause() -> None:
    path = Path(__file__).parents[2] / "s3dnerf" / "assets" / "speech.wav"
    speech = read_speech(path)
    check_speech(path, measure_level([speech]))
    assert 6.0 <= len(speech) / SAMPLE_RATE <= 8.0
    assert path.stat().st_size < 300_000
    loud = np.abs(speech[: len(speech) // 320 * 320].reshape(-1, 320)).max(axis=1) > 0.01
    pauses = np.diff(np.flatnonzero(loud)) * 0.02
    assert 0.6 <= pauses.max() <= 0.9


def test_wav_and_flac_are_lossless_at_sixteen_bits(tmp_path: Path) -> None:
    speech = np.random.default_rng(0).integers(-32768, 32768, 5000).astype(np.float32) / 32768
    for write, name in ((write_wav, "a.wav"), (write_flac, "a.flac")):
        write(tmp_path / name, speech)
        np.testing.assert_array_equal(read_speech(tmp_path / name), speech)
    write_wav(tmp_path / "loud.wav", np.array([2.0, -2.0], np.float32))
    np.testing.assert_allclose(read_speech(tmp_path / "loud.wav"), [32767 / 32768, -1.0])
    with pytest.raises(ValueError, match="mono"):
        write_wav(tmp_path / "b.wav", np.zeros((2, 10), np.float32))


@pytest.mark.parametrize("window", [1, 16, 640, 3200, 3201, 10240])
def test_window_center_is_the_exact_sample(window: int) -> None:
    for frame in (0, 1, 7):
        speech = np.zeros(20 * SAMPLES_PER_FRAME, np.float32)
        speech[round((frame + 0.5) * SAMPLES_PER_FRAME)] = 1.0
        np.testing.assert_array_equal(np.flatnonzero(cut_speech_window(speech, frame, window)), [window // 2])


def test_windows_of_many_frames_and_beyond_the_ends() -> None:
    speech = np.arange(1, 2001, dtype=np.float32)
    windows = cut_speech_window(speech, np.array([0, 1, 50]), 1000)
    assert windows.shape == (3, 1000)
    np.testing.assert_array_equal(windows[0], np.pad(speech[:820], (180, 0)))
    np.testing.assert_array_equal(windows[1], speech[460:1460])
    np.testing.assert_array_equal(windows[2], np.zeros(1000))
    np.testing.assert_array_equal(cut_speech_window(np.zeros(0, np.float32), 3, 5), np.zeros(5))


def test_shifting_audio_by_a_frame_shifts_windows_by_one() -> None:
    speech = np.random.default_rng(0).standard_normal(30 * 640).astype(np.float32)
    frames = np.arange(5, 20)
    shifted = np.concatenate([np.zeros(640, np.float32), speech])
    np.testing.assert_array_equal(cut_speech_window(shifted, frames + 1, 3200), cut_speech_window(speech, frames, 3200))


@pytest.mark.parametrize("window", [1, 100, 640, 3200, 3333, 9600])
@pytest.mark.parametrize("samples", [0, 1, 319, 320, 960, 6400, 15999])
@pytest.mark.parametrize("block", [7, 1024, 100_000])
def test_streamed_windows_equal_cut_ones(window: int, samples: int, block: int) -> None:
    speech = np.random.default_rng(0).standard_normal(samples).astype(np.float32)
    blocks = (speech[first : first + block] for first in range(0, samples, block))
    windows = list(stream_speech_windows(blocks, window))
    assert len(windows) == count_frames(samples)
    expected = cut_speech_window(speech, np.arange(count_frames(samples)), window)
    np.testing.assert_array_equal(np.stack(windows), expected)


def test_the_number_of_frames_is_rounded() -> None:
    assert [count_frames(n) for n in (0, 1, 640, 959, 960, 1280, 16000)] == [1, 1, 1, 1, 2, 2, 25]


def test_level_of_a_sine_between_pauses() -> None:
    tone = (0.2 * np.sin(2 * np.pi * 440 * np.arange(16000) / SAMPLE_RATE)).astype(np.float32)
    speech = np.concatenate([np.zeros(8000, np.float32), tone, np.zeros(8000, np.float32)])
    whole, pieces = measure_level([speech]), measure_level(np.array_split(speech, 77))
    assert whole.samples == pieces.samples == 32000
    assert whole.active_rms == pytest.approx(0.2 / np.sqrt(2), rel=1e-3)
    assert pieces.active_rms == pytest.approx(whole.active_rms, rel=1e-6)
    assert whole.peak == pytest.approx(0.2, rel=1e-3)
    assert speech_gain(whole) * whole.active_rms == pytest.approx(10 ** (-23 / 20))
    louder = measure_level([4 * speech])
    assert speech_gain(louder) == pytest.approx(speech_gain(whole) / 4, rel=1e-6)


def test_gain_of_digital_silence_is_one() -> None:
    assert speech_gain(SpeechLevel(16000, 0.0, 0.0)) == 1.0
    assert speech_gain(SpeechLevel(16000, TARGET_RMS, 1.0)) == 1.0


def check(path: Path) -> None:
    check_speech(path, measure_level(stream_speech(path)))


def test_unusable_speech_is_reported(tmp_path: Path) -> None:
    cases = {
        "empty.wav": (np.zeros(0), r"holds no sound at all \(0 samples\)\. Use"),
        "short.wav": (0.1 * np.ones(1600), r"is too short \(0\.100 s; at least 0\.2 s are needed\)\. Use"),
        "silent.wav": (np.zeros(16000), r"is silent .*\. Use a recording of speech, or turn up"),
        "faint.wav": (0.0009 * np.ones(16000), "is silent"),
        "blip.wav": (0.5 * np.ones(100), "is too short"),
    }
    for name, (sound, message) in cases.items():
        soundfile.write(tmp_path / name, sound, SAMPLE_RATE)
        with pytest.raises(UserError, match=f"{name}: {message}"):
            check(tmp_path / name)
    soundfile.write(tmp_path / "enough.wav", 0.0011 * np.ones(3200), SAMPLE_RATE)
    check(tmp_path / "enough.wav")


def test_files_without_audio_are_reported(tmp_path: Path, make_film: Callable[..., None]) -> None:
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "picture.png")
    (tmp_path / "text.wav").write_text("Good morning.\n" * 50)
    (tmp_path / "list.m3u8").write_text("#EXTM3U\n#EXTINF:9,\nother.ts\n")
    (tmp_path / "zero.wav").write_bytes(b"")
    (tmp_path / "noise.mp3").write_bytes(np.random.default_rng(0).bytes(20000))
    soundfile.write(tmp_path / "nan.wav", np.full(16000, np.nan), SAMPLE_RATE, subtype="FLOAT")
    make_film(tmp_path / "mute.mp4", [np.zeros((32, 32, 3), np.uint8)] * 5, np.arange(5) / 25)
    cases = {
        "picture.png": "is a picture, not sound that can be read. Use a recording",
        "text.wav": "is text, not sound that can be read. Use a recording",
        "list.m3u8": "is text, not sound that can be read. Use a recording",
        "zero.wav": "is an empty file. Use a recording",
        "noise.mp3": "is not sound that can be read, or it is cut short. Use a recording",
        "nan.wav": "holds samples that are not numbers. Record",
        "mute.mp4": "has no sound. Use a recording, or a video with a sound track.",
        "none.wav": "does not exist. Check the name of the speech file.",
    }
    for name, message in cases.items():
        with pytest.raises(UserError) as caught:
            read_speech(tmp_path / name)
        assert str(caught.value).startswith(f"{tmp_path / name}: {message}")


def test_trailing_tags_and_a_cover_image_are_ignored(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.mp3", sweep(44100), 44100)
    with (tmp_path / "a.mp3").open("ab") as file:
        file.write(b"TAG" + b"\x00" * 125)
    assert len(read_speech(tmp_path / "a.mp3")) == pytest.approx(SECONDS * SAMPLE_RATE, rel=0.05)


def test_memory_does_not_grow_with_length(tmp_path: Path, resident_mebibytes: Callable[[], float]) -> None:
    minute = np.tile(sweep(22050).astype(np.float32), 40)
    with soundfile.SoundFile(tmp_path / "long.wav", "w", 22050, 2) as file:
        for _ in range(10):
            file.write(np.stack([minute, minute], axis=1))
    windows = stream_speech_windows(stream_speech(tmp_path / "long.wav"), 3200)
    for _ in range(1000):
        next(windows)
    before = resident_mebibytes()
    count = 1000 + sum(1 for _ in windows)
    assert count == 10 * 60 * 25
    # Ten minutes are 37 MiB as samples and 183 MiB as windows.
    assert resident_mebibytes() - before < 6
