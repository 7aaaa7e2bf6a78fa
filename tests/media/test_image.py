"""Images: decoding of all formats to upright uint8 RGB, and messages for broken files."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from s3dnerf.errors import UserError
from s3dnerf.media.image import read_image, resize_image, write_image

UPRIGHT = np.random.default_rng(0).integers(0, 256, (5, 8, 3), dtype=np.uint8)
# How a camera that was held that way stores the upright picture, by EXIF orientation number.
STORED = {
    1: UPRIGHT,
    2: UPRIGHT[:, ::-1],
    3: UPRIGHT[::-1, ::-1],
    4: UPRIGHT[::-1],
    5: UPRIGHT.transpose(1, 0, 2),
    6: np.rot90(UPRIGHT, 1),
    7: UPRIGHT[::-1, ::-1].transpose(1, 0, 2),
    8: np.rot90(UPRIGHT, -1),
}


@pytest.mark.parametrize("orientation", STORED)
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "turned.png"
    Image.fromarray(np.ascontiguousarray(STORED[orientation])).save(path, exif=exif)
    np.testing.assert_array_equal(read_image(path), UPRIGHT)


def test_alpha_is_composited_over_white(tmp_path: Path) -> None:
    pixels = np.array([[[0, 0, 0, 0], [0, 0, 0, 255], [100, 0, 200, 51]]], np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    # A fifth of the color and four fifths of white.
    np.testing.assert_array_equal(read_image(tmp_path / "a.png")[0], [[255] * 3, [0] * 3, [224, 204, 244]])


def test_grey_with_alpha_and_palette_with_a_clear_color(tmp_path: Path) -> None:
    Image.fromarray(np.array([[[0, 51], [90, 255]]], np.uint8), "LA").save(tmp_path / "la.png")
    np.testing.assert_array_equal(read_image(tmp_path / "la.png")[0], [[204] * 3, [90] * 3])
    palette = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.save(tmp_path / "p.png", transparency=0)
    np.testing.assert_array_equal(read_image(tmp_path / "p.png")[0], [[255, 255, 255], [40, 50, 60]])


def test_transparent_pixels_show_the_chosen_color() -> None:
    pixels = np.array([[[0, 0, 0, 0], [100, 0, 200, 51]]], np.uint8)
    np.testing.assert_array_equal(read_image(pixels, over=(0, 255, 0))[0], [[0, 255, 0], [20, 204, 40]])


def test_pixels_in_memory_are_read_as_those_of_a_file(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", UPRIGHT)
    data = (tmp_path / "a.png").read_bytes()
    tensor = torch.from_numpy(UPRIGHT).permute(2, 0, 1)
    for given in (
        *(str(tmp_path / "a.png"), data, bytearray(data), Image.fromarray(UPRIGHT), Image.open(tmp_path / "a.png")),
        *(UPRIGHT, UPRIGHT / 255.0, (UPRIGHT / 255.0).astype(np.float32), UPRIGHT.astype(np.uint16) * 257),
        *(np.dstack([UPRIGHT, np.full((5, 8), 255, np.uint8)]), tensor, tensor[None], tensor / 255.0),
    ):
        np.testing.assert_array_equal(read_image(given), UPRIGHT)
    gray = UPRIGHT[..., 0]
    for given in (gray, gray[..., None], torch.from_numpy(gray)[None]):
        np.testing.assert_array_equal(read_image(given), np.repeat(gray[..., None], 3, axis=2))


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (UPRIGHT.astype(np.float32), "has floats outside 0 to 1"),
        (np.full((4, 4, 3), np.nan), "has floats outside 0 to 1"),
        (UPRIGHT.astype(np.int64), "is int64"),
        (UPRIGHT[..., :2], r"is uint8 \[5, 8, 2\]"),
        (torch.from_numpy(UPRIGHT), r"is uint8 \[5, 8, 3\]"),
        (np.zeros((0, 4, 3), np.uint8), r"is uint8 \[0, 4, 3\]"),
        (b"", "is not a picture"),
        (b"no picture", "is not a picture"),
        ({"image": 1}, "is of type dict"),
        (None, "is of type NoneType"),
    ],
)
def test_what_is_no_image_is_refused_by_the_name_of_the_argument(given: object, reason: str) -> None:
    with pytest.raises(UserError, match=f"^portrait: {reason}"):
        read_image(given, "portrait")


@pytest.mark.parametrize("mode", ["L", "1", "CMYK"])
def test_other_color_modes_become_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "a.tiff"
    Image.fromarray(np.array([[0, 255], [255, 0]], np.uint8)).convert(mode).save(path)
    expected = np.repeat(np.array([[0, 255], [255, 0]], np.uint8)[..., None], 3, axis=2)
    np.testing.assert_array_equal(read_image(path), expected)


def test_sixteen_bit_grey_is_scaled(tmp_path: Path) -> None:
    levels = np.array([[0, 257, 128 * 257, 200 * 257 + 100, 65535]], np.uint16)
    cv2.imwrite(str(tmp_path / "a.png"), levels)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png")[0, :, 0], [0, 1, 128, 200, 255])


def test_sixteen_bit_color_is_scaled(tmp_path: Path) -> None:
    levels = (np.arange(0, 256, 17)[None, :, None] * np.array([257, 257, 257])).astype(np.uint16)
    levels[..., 0] //= 2
    cv2.imwrite(str(tmp_path / "a.png"), levels)  # blue first
    expected = levels[0, :, ::-1] / 257.0
    assert np.abs(read_image(tmp_path / "a.png")[0] - expected).max() <= 1.0


@pytest.mark.parametrize(("suffix", "tolerance"), [(".png", 0), (".jpg", 6), (".webp", 8)])
def test_written_images_are_read_back(tmp_path: Path, suffix: str, tolerance: int) -> None:
    ramp = np.linspace(0, 255, 64).astype(np.uint8)
    image = np.stack(np.broadcast_arrays(ramp[:, None], ramp[None, :], np.uint8(90)), axis=2)
    write_image(tmp_path / f"a{suffix}", image)
    difference = np.abs(read_image(tmp_path / f"a{suffix}").astype(int) - image)
    assert difference.mean() <= tolerance / 3
    assert list(tmp_path.iterdir()) == [tmp_path / f"a{suffix}"]


def test_unknown_suffix_and_wrong_arrays_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot be written as '\.xyz'.*\.png"):
        write_image(tmp_path / "a.xyz", np.zeros((2, 2, 3), np.uint8))
    with pytest.raises(ValueError, match="expected uint8"):
        write_image(tmp_path / "a.png", np.zeros((2, 2, 3), np.float32))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_truncated_images_are_reported(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    write_image(path, np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    path.write_bytes(path.read_bytes()[:1500])
    with pytest.raises(UserError, match="a.* is a broken picture.*Save it again"):
        read_image(path)


def test_files_that_are_not_images_are_reported(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("Hello there.")
    with pytest.raises(UserError, match=r"a\.png: is not a picture that can be read\. Use a PNG"):
        read_image(tmp_path / "a.png")
    with pytest.raises(UserError, match="does not exist"):
        read_image(tmp_path / "none.png")
    Image.fromarray(np.zeros((2, 2), np.float32)).save(tmp_path / "float.tiff")
    with pytest.raises(UserError, match="floating-point"):
        read_image(tmp_path / "float.tiff")


def test_downsampling_averages_areas() -> None:
    image = np.array([[0, 4, 10, 10], [8, 12, 10, 30]], np.float32)[..., None]
    np.testing.assert_allclose(resize_image(image, (1, 2)), [[[6.0], [15.0]]])


def test_upsampling_keeps_pixel_centers() -> None:
    ramp = np.arange(8, dtype=np.float32)[None, :, None] * np.ones((8, 1, 3), np.float32)
    grown = resize_image(ramp, 16)
    assert grown.shape == (16, 16, 3)
    # Pixel i of 16 lies at (i + 0.5) / 2 - 0.5 of 8; OpenCV's cubic sways by 0.05 about a straight line.
    np.testing.assert_allclose(grown[8, 4:12, 0], (np.arange(4, 12) + 0.5) / 2 - 0.5, atol=0.05)


@pytest.mark.parametrize("shape", [(6, 10), (6, 10, 1), (6, 10, 3), (6, 10, 4)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_shape_and_type_are_kept_and_flat_color_stays(shape: tuple[int, ...], dtype: type) -> None:
    for size in (4, 20, (3, 30), (20, 5)):
        height, width = (size, size) if isinstance(size, int) else size
        result = resize_image(np.full(shape, 77, dtype), size)
        assert result.shape == (height, width, *shape[2:])
        assert result.dtype == dtype
        np.testing.assert_allclose(result, 77, atol=1e-4)


@pytest.mark.parametrize(("bits", "suffix"), [(10, ".png"), (12, ".png"), (12, ".tif"), (16, ".png")])
def test_the_used_bits_of_sixteen_are_scaled_to_eight(tmp_path: Path, bits: int, suffix: str) -> None:
    values = np.linspace(0, 2**bits - 1, 256 * 16).round().astype(np.uint16).reshape(16, 256)
    path = tmp_path / f"a{suffix}"
    Image.fromarray(values).save(path)
    expected = values * (255.0 / (2**bits - 1))
    np.testing.assert_allclose(read_image(path), np.repeat(expected[..., None], 3, axis=2), atol=0.5001)
