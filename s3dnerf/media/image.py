"""Still pictures: files to uint8 RGB arrays and back."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from s3dnerf.errors import UserError
from s3dnerf.media.files import replace_when_done, require_file

_WRITABLE = {".png": {}, ".jpg": {"quality": 95}, ".jpeg": {"quality": 95}, ".webp": {"quality": 95}}


def read_image(path: str | Path) -> np.ndarray:
    """Read a picture as uint8 RGB [H, W, 3], the way a viewer shows it.

    EXIF rotation is applied, transparency is laid over white, grey becomes three equal channels, 16-bit
    values (or the 10 or 12 bits that are used of them) are scaled to 8 bits.
    Of an animation the first picture is taken. Raises UserError if the file is missing, not a picture, or broken.
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
    """Write uint8 RGB [H, W, 3]; the suffix (.png, .jpg, .jpeg, .webp) chooses the format.

    Raises UserError for another suffix and ValueError for another kind of array.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"expected uint8 [H, W, 3], got {image.dtype} {list(image.shape)}")
    suffix = Path(path).suffix.lower()
    if suffix not in _WRITABLE:
        raise UserError(path, f"pictures cannot be written as '{suffix}'", f"Use one of {', '.join(_WRITABLE)}.")
    with replace_when_done(path) as temporary:
        Image.fromarray(image).save(temporary, **_WRITABLE[suffix])


def resize_image(image: np.ndarray, size: int | tuple[int, int]) -> np.ndarray:
    """Resize uint8 or float32 [H, W, C] (or [H, W]) to `size` = side or (height, width); the type is kept.

    Averages over pixel areas along an axis that shrinks and interpolates cubically along one that grows (so
    float values may overshoot their range a little).
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
    """Bits that the values of a 16-bit picture make use of: 10, 12 or 16.

    Cameras and scanners store 10 to 14 bits as they are in files of 16, most often without saying so. What would be
    nearly black, with no value above a sixteenth of the range, is therefore read in the range that it does use.
    """
    largest = int(values.max(initial=0))
    return 16 if largest >= 2**12 else 12 if largest >= 2**10 else 10


def _to_rgb(image: Image.Image, path: Path) -> np.ndarray:
    if image.mode.startswith("I"):
        # Pillow would clip 16-bit grey at 255 instead of scaling it.
        values = np.asarray(image)
        grey = values.astype(np.float32) * (255.0 / (2 ** _count_bits(values) - 1))
        return np.repeat(np.clip(np.rint(grey), 0, 255).astype(np.uint8)[..., None], 3, axis=2)
    if image.mode == "F":
        raise UserError(path, "holds floating-point pixels of unknown range", "Save it as an 8-bit PNG.")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return np.array(image.convert("RGB"))
