"""Reading, writing and resizing of images as uint8 RGB arrays."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union, cast

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from s3dnerf.errors import ArgumentError, UserError
from s3dnerf.media.color import apply_profile
from s3dnerf.media.files import atomic_write, require_file
from s3dnerf.media.memory import to_array

if TYPE_CHECKING:
    from torch import Tensor

ImageInput = Union[str, Path, bytes, Image.Image, np.ndarray, "Tensor"]
"""An image as a path, the content of a file, or pixels."""
ImagesInput = ImageInput | Sequence[ImageInput]
"""One image, or a list or tuple of images of one person."""
MAX_IMAGES = 8
"""Most images of one person. Each takes the time of one more rendering of the radiance field."""
HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
"""Brands of pictures in HEIF, as phones write them."""
WHITE = (255, 255, 255)
BROKEN = (OSError, SyntaxError, ValueError, EOFError)
"""What Pillow raises for broken pictures."""
ROUNDING = 1e-3
"""By how much floats may leave [0, 1], as they do after resizing."""
FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "HEIF", "AVIF", "BMP", "GIF", "TIFF")
"""Formats of Pillow that are read. Others start programs, or hold pictures larger than their headers say."""
MAX_ASPECT = 10
"""Longest side of a picture relative to the other one. Panoramas have up to about six."""
_WRITABLE: dict[str, dict[str, Any]] = {
    ".png": {"compress_level": 4},  # 3% larger than with Pillow's 6, and twice as fast
    ".jpg": {"quality": 95},
    ".jpeg": {"quality": 95},
    ".webp": {"quality": 95},
}


def list_images(image: ImagesInput) -> list[ImageInput]:
    """Return one image or several as a list.

    Raises:
        UserError: there are none or too many.
    """
    images: list[ImageInput] = list(image) if isinstance(image, (list, tuple)) else [cast(ImageInput, image)]
    if not 1 <= len(images) <= MAX_IMAGES:
        raise ArgumentError("image", None, f"are {len(images)} images", f"Give 1 to {MAX_IMAGES} of one person.")
    return images


def read_image(image: ImageInput, argument: str = "image", over: tuple[int, int, int] = WHITE) -> np.ndarray:
    """Read an image as displayed, as RGB ``uint8 [H, W, 3]``.

    EXIF rotation is applied, colors of an ICC profile such as Display P3 are converted to sRGB, transparency is
    composited over a color, gray is repeated to three channels, and 16-bit values (or the 10 or 12 bits of them that
    are used) are scaled to 8 bits. Animations give their first frame.

    Args:
        image: a path, the bytes of a file, an image of Pillow, an array ``[H, W]`` or ``[H, W, 1, 3 or 4]``, or a
            tensor of PyTorch ``[1, 3 or 4, H, W]``. Arrays and tensors hold integers of 8 or 16 bits, or floats in
            [0, 1].
        argument: name of an image in memory, for messages.
        over: color behind transparent pixels.

    Raises:
        UserError: the file is missing, not an image, or broken; or the array is no image.
    """
    if isinstance(image, Image.Image):
        return _decode(image, argument, over)
    if isinstance(image, (str, os.PathLike)):
        path = require_file(Path(image), "image")
        return _read_file(path, path, over)
    if isinstance(image, (bytes, bytearray, memoryview)):
        return _read_file(io.BytesIO(image), argument, over)
    if hasattr(image, "__array__"):
        pixels = check_pixels(image, argument)
        return _decode(Image.fromarray(pixels), argument, over) if pixels.shape[2] == 4 else pixels
    hint = "Give a path, the bytes of a file, an image of Pillow, an array or a tensor."
    raise ArgumentError(argument, None, f"is of type {type(image).__name__}, which is no image", hint)


def read_picture_size(path: Path) -> tuple[int, int]:
    """Return width and height of an image file as it is stored, without decoding its pixels.

    Raises:
        UserError: the file is missing or not an image.
    """
    with _open_picture(require_file(path, "image"), path) as image:
        return image.size


def check_aspect(width: int, height: int, name: Path | str) -> None:
    """Raise UserError if a picture is a strip, in which the search for faces takes long and finds none."""
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise UserError(name, f"is a strip of {width} x {height} pixels", "Cut out the part that shows the face.")


def _read_file(file: Path | io.BytesIO, name: Path | str, over: tuple[int, int, int]) -> np.ndarray:
    with _open_picture(file, name) as image:
        return _decode(image, name, over)


@contextmanager
def _open_picture(file: Path | io.BytesIO, name: Path | str) -> Iterator[Image.Image]:
    if _read_brand(file) in HEIF_BRANDS:
        # Apple's format; Pillow itself reads AVIF.
        from pillow_heif import register_heif_opener

        register_heif_opener()
    try:
        image = Image.open(file)
    except UnidentifiedImageError as error:
        raise _refuse_format(name) from error
    except Image.DecompressionBombError as error:
        raise _refuse_size(name) from error
    except BROKEN as error:
        raise _refuse_broken(name, error) from error
    with image:
        if image.format not in FORMATS:
            raise _refuse_format(name)
        yield image


def _read_brand(file: Path | io.BytesIO) -> bytes:
    """Return the brand of a file of the ISO base media format, such as b"heic", or b""."""
    if isinstance(file, Path):
        with file.open("rb") as opened:
            head = opened.read(12)
    else:
        head = file.getvalue()[:12]
    return head[8:12] if head[4:8] == b"ftyp" else b""


def _decode(image: Image.Image, name: Path | str, over: tuple[int, int, int]) -> np.ndarray:
    try:
        image.load()
        return _to_rgb(ImageOps.exif_transpose(image), name, over)
    except Image.DecompressionBombError as error:
        raise _refuse_size(name) from error
    except BROKEN as error:
        raise _refuse_broken(name, error) from error


def _refuse_format(name: Path | str) -> UserError:
    return UserError(name, "is not a picture that can be read", "Use a PNG, JPEG, WebP, HEIC or AVIF file.")


def _refuse_size(name: Path | str) -> UserError:
    return UserError(name, "is too large a picture", "Shrink it to a few thousand pixels a side.")


def _refuse_broken(name: Path | str, error: Exception) -> UserError:
    return UserError(name, f"is a broken picture ({error})", "Save it again as PNG or JPEG.")


def check_pixels(image: Any, argument: str) -> np.ndarray:
    """Return an array or tensor of an image (see :func:`read_image`) as ``uint8 [H, W, 3]`` or ``uint8 [H, W, 4]``."""
    pixels = to_array(image)
    given = f"{pixels.dtype} {list(pixels.shape)}"
    if hasattr(image, "detach"):
        pixels = pixels[0] if pixels.ndim == 4 and len(pixels) == 1 else pixels
        pixels = np.moveaxis(pixels, 0, -1) if pixels.ndim == 3 else pixels
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 3, 4) or not pixels.size:
        hint = "Give an array [H, W, 3], or a tensor [3, H, W]."
        raise ArgumentError(argument, None, f"is {given}, which is not the shape of an image", hint)
    if np.issubdtype(pixels.dtype, np.floating):
        if not (np.isfinite(pixels).all() and pixels.min() >= -ROUNDING and pixels.max() <= 1 + ROUNDING):
            raise ArgumentError(argument, None, "has floats outside 0 to 1", "Divide values up to 255 by 255.")
        pixels = np.clip(np.rint(pixels * 255.0), 0, 255).astype(np.uint8)
    elif pixels.dtype == np.uint16:
        pixels = np.rint(pixels * (255.0 / 65535.0)).astype(np.uint8)
    elif pixels.dtype != np.uint8:
        hint = "Use uint8, uint16, or floats in [0, 1]."
        raise ArgumentError(argument, None, f"is {given}, which is not the type of an image", hint)
    return np.ascontiguousarray(np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels)


def write_image(path: str | Path, image: np.ndarray) -> None:
    """Write an RGB image ``uint8 [H, W, 3]`` in the format of the suffix (.png, .jpg, .jpeg, .webp).

    Raises:
        UserError: the suffix is unknown.
        ValueError: the array has another type or shape.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"expected uint8 [H, W, 3], got {image.dtype} {list(image.shape)}")
    suffix = Path(path).suffix.lower()
    if suffix not in _WRITABLE:
        raise UserError(path, f"pictures cannot be written as '{suffix}'", f"Use one of {', '.join(_WRITABLE)}.")
    with atomic_write(path) as temporary:
        Image.fromarray(image).save(temporary, **_WRITABLE[suffix])


def resize_image(image: np.ndarray, size: int | tuple[int, int]) -> np.ndarray:
    """Resize ``uint8`` or ``float32`` ``[H, W, C]`` or ``[H, W]``; the type is kept.

    Axes are downsampled by averaging over pixel areas and upsampled by cubic interpolation, which can overshoot the
    range of float values.

    Args:
        image: the image.
        size: side, or (height, width).
    """
    height, width = (size, size) if isinstance(size, int) else size
    shrunk = (min(height, image.shape[0]), min(width, image.shape[1]))
    result = _resize(image, shrunk, cv2.INTER_AREA)
    return _resize(result, (height, width), cv2.INTER_CUBIC)


def _resize(image: np.ndarray, size: tuple[int, int], interpolation: int) -> np.ndarray:
    if image.shape[:2] == size:
        return image.copy()
    resized = cv2.resize(image, (size[1], size[0]), interpolation=interpolation)
    return resized.reshape(*size, *image.shape[2:])


def _count_bits(values: np.ndarray) -> int:
    """Return the number of bits that a 16-bit image uses: 10, 12 or 16.

    Cameras and scanners store 10 to 14 bits unscaled in 16-bit files, mostly without metadata. An image that would be
    almost black, with no value above a sixteenth of the range, is therefore read in the range that it uses.
    """
    largest = int(values.max(initial=0))
    return 16 if largest >= 2**12 else 12 if largest >= 2**10 else 10


def _to_rgb(image: Image.Image, name: Path | str, over: tuple[int, int, int]) -> np.ndarray:
    if image.mode.startswith("I"):
        # Pillow clips 16-bit gray at 255 instead of scaling it.
        values = np.asarray(image)
        gray = values.astype(np.float32) * (255.0 / (2 ** _count_bits(values) - 1))
        return np.repeat(np.clip(np.rint(gray), 0, 255).astype(np.uint8)[..., None], 3, axis=2)
    if image.mode == "F":
        raise UserError(name, "holds floating-point pixels of unknown range", "Save it as an 8-bit PNG.")
    image = apply_profile(image, name)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (*over, 255)), image)
    return np.array(image.convert("RGB"))
