"""Colors of phones: ICC profiles, HEIC and AVIF, and video with a wide gamut and a high dynamic range."""

from __future__ import annotations

import io
import logging
import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image, ImageCms

from s3dnerf.media.color import HLG, PQ, compress_highlights, convert_to_srgb
from s3dnerf.media.image import read_image
from s3dnerf.media.video import stream_frames

P3_TO_XYZ = np.array([[0.515102, 0.291965, 0.157153], [0.241182, 0.692236, 0.066582], [-0.001050, 0.041882, 0.784378]])
"""Columns: the primaries of Display P3, adapted to the white D50 of profiles."""


def make_p3_profile() -> bytes:
    """Return a profile of Display P3: matrix and tone curve, as phones embed it."""

    def fixed(*values: float) -> bytes:
        return b"".join(struct.pack(">i", round(value * 65536)) for value in values)

    def text(words: str) -> bytes:
        data = words.encode("utf-16-be")
        return b"mluc" + bytes(4) + struct.pack(">II", 1, 12) + b"enUS" + struct.pack(">II", len(data), 28) + data

    curve = b"para" + bytes(4) + struct.pack(">HH", 3, 0) + fixed(2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
    tags = {b"desc": text("Display P3"), b"wtpt": b"XYZ " + bytes(4) + fixed(0.9642, 1.0, 0.8249)}
    for name, column in zip((b"rXYZ", b"gXYZ", b"bXYZ"), P3_TO_XYZ.T, strict=True):
        tags[name] = b"XYZ " + bytes(4) + fixed(*column)
    tags |= {name: curve for name in (b"rTRC", b"gTRC", b"bTRC")}
    table, body, offset = b"", b"", 128 + 4 + 12 * len(tags)
    for name, data in tags.items():
        data += bytes(-len(data) % 4)
        table += name + struct.pack(">II", offset + len(body), len(data))
        body += data
    header = struct.pack(">I", offset + len(body)) + bytes(4) + struct.pack(">I", 0x04000000) + b"mntrRGB XYZ "
    header += bytes(12) + b"acsp" + bytes(28) + fixed(0.9642, 1.0, 0.8249)
    return header + bytes(128 - len(header)) + struct.pack(">I", len(tags)) + table + body


P3 = make_p3_profile()
IN_P3 = np.array([[[200, 100, 80], [120, 120, 120], [255, 0, 0], [255, 255, 255]]], np.uint8)
# Linear light of P3 to that of sRGB, clipped, and back to values.
IN_SRGB = np.array([[[214, 95, 73], [120, 120, 120], [255, 0, 0], [255, 255, 255]]])


def test_display_p3_becomes_srgb_in_all_formats(tmp_path: Path) -> None:
    image = Image.fromarray(np.repeat(np.repeat(IN_P3, 16, axis=0), 16, axis=1))
    for name, options in (("a.png", {}), ("a.jpg", {"quality": 98, "subsampling": 0}), ("a.webp", {"lossless": True})):
        image.save(tmp_path / name, icc_profile=P3, **options)
        np.testing.assert_allclose(read_image(tmp_path / name)[8, 8::16], IN_SRGB[0], atol=3)


def test_a_profile_with_transparency_keeps_the_transparency() -> None:
    image = Image.fromarray(np.dstack([IN_P3, np.array([[255, 0, 255, 51]], np.uint8)]))
    image.info["icc_profile"] = P3
    expected = [IN_SRGB[0, 0], [0, 255, 0], IN_SRGB[0, 2], [51, 255, 51]]
    np.testing.assert_allclose(read_image(image, over=(0, 255, 0))[0], expected, atol=2)


def test_profiles_of_srgb_and_of_other_modes_change_nothing(caplog: pytest.LogCaptureFixture) -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for mode, profile in (("RGB", srgb), ("L", P3)):
        image = Image.fromarray(IN_P3).convert(mode)
        expected = np.asarray(image.convert("RGB"))
        image.info["icc_profile"] = profile
        np.testing.assert_array_equal(read_image(image), expected)
    image = Image.fromarray(IN_P3)
    image.info["icc_profile"] = b"no profile"
    with caplog.at_level(logging.WARNING):
        np.testing.assert_array_equal(read_image(image, "portrait"), IN_P3)
    assert "portrait: its color profile is broken" in caplog.text


@pytest.mark.parametrize("suffix", ["heic", "avif"])
def test_pictures_of_phones_are_read_from_files_and_bytes(suffix: str, tmp_path: Path) -> None:
    if suffix == "heic":
        pytest.importorskip("pillow_heif").register_heif_opener()
    rows, columns = np.mgrid[:64, :96]
    picture = np.dstack([2 * columns, 3 * rows, 255 - 2 * columns]).astype(np.uint8)
    picture[:16, :16] = (200, 100, 80)
    file = io.BytesIO()
    Image.fromarray(picture).save(file, {"heic": "HEIF", "avif": "AVIF"}[suffix], quality=95, icc_profile=P3)
    (tmp_path / f"a.{suffix}").write_bytes(file.getvalue())
    for given in (tmp_path / f"a.{suffix}", file.getvalue()):
        found = read_image(given).astype(int)
        assert found.shape == (64, 96, 3)
        np.testing.assert_allclose(found[8, 8], IN_SRGB[0, 0], atol=5)


def test_light_is_kept_up_to_the_knee_and_highlights_are_compressed() -> None:
    light = np.linspace(0, 8, 800)
    mapped = compress_highlights(light)
    np.testing.assert_array_equal(mapped[light <= 0.5], light[light <= 0.5])
    assert (np.diff(mapped) >= 0).all() and mapped.max() <= 1 + 1e-9
    # Smooth: the slope changes little from sample to sample.
    assert np.abs(np.diff(mapped, 2)).max() < 5e-4 and mapped[-1] == pytest.approx(1.0)


def encode(light: np.ndarray, transfer: int) -> np.ndarray:
    """Return gray signal values of nits: inverse PQ, or inverse HLG for a display of 1000 nits."""
    if transfer == PQ:
        power = (light / 10_000) ** (2610 / 16384)
        return ((0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power)) ** (2523 / 32)
    scene = (light / 1000) ** (1 / 1.2)
    log_part = 0.17883277 * np.log(np.maximum(12 * scene - 0.28466892, 1e-9)) + 0.55991073
    return np.where(scene <= 1 / 12, np.sqrt(3 * scene), log_part)


@pytest.mark.parametrize("transfer", [PQ, HLG])
def test_gray_of_hdr_has_the_brightness_of_sdr(transfer: int) -> None:
    nits = np.array([0.0, 5.0, 20.0, 40.0, 100.0, 203.0, 500.0, 1000.0])
    signal = np.rint(encode(nits, transfer) * 65535).astype(np.uint16)
    found = convert_to_srgb(np.repeat(signal[None, :, None], 3, axis=2), 9, transfer)[0].astype(int)
    assert np.ptp(found, axis=1).max() <= 1
    light = np.minimum(nits, 100) / 203
    srgb = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    np.testing.assert_allclose(found[:5, 0], 255 * srgb[:5], atol=2)
    # White is a little below the brightest highlight, which fills the range.
    assert 215 <= found[5, 0] <= 235 < found[6, 0] < found[7, 0] and found[7, 0] >= 254


def write_hdr(path: Path, frame: np.ndarray, transfer: int) -> None:
    """Write ``uint16 [H, W, 3]`` of BT.2020 as three frames of 10-bit HEVC."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx265", rate=25, options={"crf": "4", "x265-params": "log-level=error"})
        stream.height, stream.width = frame.shape[:2]
        stream.pix_fmt, stream.time_base = "yuv420p10le", Fraction(1, 25)
        context = stream.codec_context
        context.color_range, context.colorspace, context.color_primaries, context.color_trc = 1, 9, 9, transfer
        for number in range(3):
            image = av.VideoFrame.from_ndarray(frame, "rgb48le").reformat(
                format="yuv420p10le", dst_colorspace=9, dst_color_range=1
            )
            image.pts, image.time_base = number, Fraction(1, 25)
            image.color_primaries, image.color_trc = 9, transfer
            container.mux(stream.encode(image))
        container.mux(stream.encode(None))


@pytest.mark.skipif("libx265" not in av.codecs_available, reason="this PyAV has no encoder of HEVC")
@pytest.mark.parametrize("transfer", [PQ, HLG])
def test_hdr_video_is_tone_mapped_where_it_is_read(transfer: int, tmp_path: Path) -> None:
    ramp = np.repeat(np.linspace(0.0, 1.0, 16), 16) * 65535
    frame = np.repeat(np.repeat(ramp[None, :, None], 64, axis=0), 3, axis=2).astype(np.uint16)
    # Orange, as skin is.
    frame[32:] = np.array([36000, 26000, 20000], np.uint16)
    write_hdr(tmp_path / "a.mp4", frame, transfer)
    frames = list(stream_frames(tmp_path / "a.mp4"))
    assert len(frames) == 3
    expected = convert_to_srgb(frame, 9, transfer)
    for row in (16, 48):
        np.testing.assert_allclose(frames[0][row, 8::16].astype(int), expected[row, 8::16], atol=6)
    assert (np.diff(frames[0][16, 8::16, 0].astype(int)) >= 0).all()
