"""Reading, writing and resizing of images as uint8 RGB arrays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from s3dnerf.errors import UserError
from s3dnerf.media.files import atomic_write, require_file

_WRITABLE: dict[str, dict[str, Any]] = {
    ".png": {},
    ".jpg": {"quality": 95},
    ".jpeg": {"quality": 95},
    ".webp": {"quality": 95},
}


def read_image(path: str | Path) -> np.ndarray:
    """Read an image as displayed, as RGB ``uint8 [H, W, 3]``.

    EXIF rotation is applied, transparency is composited over white, gray is repeated to three channels, and 16-bit
    values (or the 10 or 12 bits of them that are used) are scaled to 8 bits. Animations give their first frame.

    Raises:
        UserError: the file is missing, not an image, or broken.
    """
    path = require_file(path, "image")
    try:
        with Image.open(path) as image:
            image.load()
            return _to_rgb(ImageOps.exif_transpose(image), path)
    except UnidentifiedImageError as error:
        raise UserError(path, "is not a picture that can be read", "Use a PNG, JPEG or WebP file.") from error
    except Image.DecompressionBombError as error:
        raise UserError(path, "is too large a picture", "Shrink it to a few thousand pixels a side.") from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise UserError(path, f"is a broken picture ({error})", "Save it again as PNG or JPEG.") from error


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


def _to_rgb(image: Image.Image, path: Path) -> np.ndarray:
    if image.mode.startswith("I"):
        # Pillow clips 16-bit gray at 255 instead of scaling it.
        values = np.asarray(image)
        gray = values.astype(np.float32) * (255.0 / (2 ** _count_bits(values) - 1))
        return np.repeat(np.clip(np.rint(gray), 0, 255).astype(np.uint8)[..., None], 3, axis=2)
    if image.mode == "F":
        raise UserError(path, "holds floating-point pixels of unknown range", "Save it as an 8-bit PNG.")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return np.array(image.convert("RGB"))
