"""Sound in memory: the bytes of files, arrays and tensors, and messages for what is neither."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from s3dnerf.errors import ArgumentError, UserError
from s3dnerf.media.audio import read_speech, stream_audio, write_wav
from s3dnerf.media.memory import MediaBytes, to_media
from s3dnerf.media.video import VideoWriter

SOUND = (0.3 * np.sin(np.arange(16000) * 0.05)).astype(np.float32)


def test_bytes_are_read_as_the_file_is_and_as_often_as_needed(tmp_path: Path) -> None:
    write_wav(tmp_path / "a.wav", SOUND)
    expected = read_speech(tmp_path / "a.wav")
    data = (tmp_path / "a.wav").read_bytes()
    for given in (data, bytearray(data), memoryview(data)):
        media = to_media(given, "audio")
        for _ in range(2):
            np.testing.assert_array_equal(read_speech(media), expected)
    assert to_media(tmp_path / "a.wav", "audio") == to_media(str(tmp_path / "a.wav"), "audio") == tmp_path / "a.wav"


@pytest.mark.parametrize(
    "samples",
    [
        SOUND,
        SOUND.astype(np.float64),
        np.rint(SOUND * 32768).astype(np.int16),
        np.rint(SOUND.astype(np.float64) * 2**31).astype(np.int32),
        np.stack([SOUND, SOUND]),
        np.stack([SOUND, SOUND], axis=1),
        torch.from_numpy(SOUND),
        torch.from_numpy(SOUND)[None],
    ],
    ids=lambda samples: f"{samples.dtype}{list(samples.shape)}",
)
def test_samples_are_read_in_all_layouts(samples: object) -> None:
    np.testing.assert_allclose(read_speech(to_media((samples, 16000), "audio")), SOUND, atol=2e-5)


def test_unsigned_bytes_are_centered() -> None:
    samples = np.rint(SOUND * 128 + 128).astype(np.uint8)
    np.testing.assert_allclose(read_speech(to_media((samples, 16000), "audio")), SOUND, atol=1 / 128)


def test_samples_of_another_rate_are_resampled() -> None:
    tone = np.sin(2 * np.pi * 440 * np.arange(44100) / 44100)
    heard = read_speech(to_media((tone, 44100), "audio"))
    assert len(heard) == 16000
    expected = np.sin(2 * np.pi * 440 * np.arange(16000) / 16000)
    np.testing.assert_allclose(heard[500:-500], expected[500:-500], atol=0.01)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (b"", "audio: is an empty file"),
        (b"this is text", "audio: is text"),
        (bytes(range(256)) * 20, "audio: "),
        ((16000, SOUND), "audio: has a sample rate that is no whole number"),
        ((SOUND, 0), "audio: has a sample rate of 0"),
        ((SOUND, 44100.5), "audio: has a sample rate"),
        ((np.zeros((2, 3, 4)), 16000), r"audio: has samples of shape \[2, 3, 4\]"),
        ((SOUND > 0, 16000), "audio: has samples of type bool"),
        ((np.full(16000, np.nan, np.float32), 16000), "audio: holds samples that are not numbers"),
        ((np.zeros(0, np.float32), 16000), "audio: "),
        (3, "audio: is of type int"),
    ],
)
def test_what_is_no_sound_is_refused_by_the_name_of_the_argument(given: object, reason: str) -> None:
    with pytest.raises(UserError, match=f"^{reason}"):
        speech = read_speech(to_media(given, "audio"))
        if not len(speech):
            raise ArgumentError("audio", None, "holds no sound", "Give some.")


def test_sound_in_memory_becomes_the_track_of_a_video(tmp_path: Path) -> None:
    media = to_media((np.stack([SOUND, np.zeros_like(SOUND)]), 16000), "audio")
    assert isinstance(media, MediaBytes)
    with VideoWriter(tmp_path / "a.mp4", (32, 32), audio=media) as writer:
        for _ in range(25):
            writer.write(np.zeros((32, 32, 3), np.uint8))
    track = np.concatenate(list(stream_audio(tmp_path / "a.mp4", 16000)), axis=1)
    assert len(track) == 2
    np.testing.assert_allclose(np.sqrt(np.mean(track[:, 2000:14000] ** 2, axis=1)), [0.3 / np.sqrt(2), 0.0], atol=0.01)
