"""Outputs of video: codecs, transparency and sequences of pictures."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from s3dnerf.errors import UserError
from s3dnerf.media.video import check_video_output, open_video, stream_frames

SIZE = (96, 64)


@pytest.fixture(scope="module")
def clear() -> np.ndarray:
    """A red that fades from transparent on the left to opaque on the right, ``uint8 [64, 96, 4]``."""
    frame = np.zeros((SIZE[1], SIZE[0], 4), np.uint8)
    frame[..., 0], frame[..., 3] = 200, np.linspace(0, 255, SIZE[0]).astype(np.uint8)
    return frame


def decode_with_alpha(path: Path) -> list[np.ndarray]:
    """Decode VP9 with its alpha, which FFmpeg's own decoder leaves out."""
    decoder = av.CodecContext.create("libvpx-vp9", "r")
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        return [frame.to_ndarray(format="rgba") for packet in packets for frame in decoder.decode(packet)]


def test_webm_keeps_transparency(clear: np.ndarray, tmp_path: Path) -> None:
    with open_video(tmp_path / "a.webm", SIZE, alpha=True) as writer:
        for _ in range(4):
            writer.write(clear)
    with av.open(str(tmp_path / "a.webm")) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "vp9"
        assert {key.lower(): value for key, value in stream.metadata.items()}["alpha_mode"] == "1"
    frames = decode_with_alpha(tmp_path / "a.webm")
    assert len(frames) == 4
    for frame in frames:
        assert np.abs(frame[..., 3].astype(int) - clear[..., 3]).max() <= 4
        assert np.abs(frame[..., :3].astype(int) - clear[..., :3]).max() <= 4


@pytest.mark.skipif("libx265" not in av.codecs_available, reason="this PyAV has no encoder of HEVC")
def test_hevc_is_written_under_the_name_that_players_know(tmp_path: Path) -> None:
    rows = np.linspace(0, 255, SIZE[1]).astype(np.uint8)
    frame = np.repeat(np.repeat(rows[:, None, None], SIZE[0], axis=1), 3, axis=2)
    with open_video(tmp_path / "a.mp4", SIZE, codec="hevc") as writer:
        for _ in range(3):
            writer.write(frame)
    with av.open(str(tmp_path / "a.mp4")) as container:
        context = container.streams.video[0].codec_context
        assert (context.name, context.codec_tag) == ("hevc", "hvc1")
    frames = list(stream_frames(tmp_path / "a.mp4"))
    assert len(frames) == 3 and max(np.abs(one.astype(int) - frame).max() for one in frames) <= 6


@pytest.mark.parametrize("alpha", [False, True])
def test_sequences_of_pictures_are_lossless(clear: np.ndarray, alpha: bool, tmp_path: Path) -> None:
    folder = tmp_path / "new"
    frames = [np.roll(clear, shift, axis=1)[..., : 4 if alpha else 3] for shift in range(3)]
    with open_video(folder / "a_%03d.png", SIZE, alpha=alpha) as writer:
        for frame in frames:
            writer.write(frame)
        assert not list(folder.glob("*.png"))
    assert sorted(path.name for path in folder.iterdir()) == ["a_000.png", "a_001.png", "a_002.png"]
    for path, frame in zip(sorted(folder.iterdir()), frames, strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(path)), frame)


def test_an_interrupted_sequence_leaves_older_pictures(clear: np.ndarray, tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes(b"older")
    with pytest.raises(KeyboardInterrupt), open_video(tmp_path / "%d.png", SIZE, alpha=True) as writer:
        writer.write(clear)
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == ["0.png"] and (tmp_path / "0.png").read_bytes() == b"older"
    with pytest.raises(ValueError, match="expected uint8"), open_video(tmp_path / "%d.png", SIZE) as writer:
        writer.write(clear)
    with pytest.raises(UserError, match="would hold no picture"), open_video(tmp_path / "%d.png", SIZE):
        pass


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("a.mp4", {"alpha": True}, "has no transparency"),
        ("a.mov", {"alpha": True, "codec": "hevc"}, "has no transparency"),
        ("a.webm", {"codec": "hevc"}, "holds no HEVC"),
        ("a.mp4", {"codec": "av1"}, "codec av1: is not known"),
        ("a.png", {}, "is the name of one picture"),
        ("%d_%d.png", {}, "is the name of one picture"),
        ("%s.png", {}, "is the name of one picture"),
        ("a.gif", {}, "cannot be written as"),
    ],
)
def test_what_an_output_cannot_hold_is_refused(
    name: str, options: dict[str, object], reason: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=reason):
        check_video_output(tmp_path / name, **options)
