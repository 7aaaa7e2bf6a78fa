"""From the square that the model renders to the frames of the video."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np

from s3dnerf.face.crop import CropPaster, limit_image_size
from s3dnerf.face.portrait import Face
from s3dnerf.media.image import resize_image

MOST_PIXELS = 36_864 * 256
"""Most pixels of a frame: the limit of H.264 level 5.1, which players support."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Framing:
    """What a frame of the video shows: the square around the head, or the whole picture with the head pasted in."""

    size: tuple[int, int]
    """Width and height of the frames."""
    paster: CropPaster | None = None
    """Pastes squares into the picture, if all of it is shown."""

    def is_square(self, side: int) -> bool:
        """Tell whether squares of this side are the frames themselves."""
        return self.paster is None and self.size == (side, side)

    def compose(self, square: np.ndarray) -> np.ndarray:
        """Return the frame ``uint8 [height, width, C]`` of a rendered square ``uint8 [S, S, C]``."""
        if self.paster is not None:
            return self.paster.paste(square)
        return square if self.is_square(len(square)) else resize_image(square, self.size[0])


def choose_framing(framing: str, face: Face, side: int, max_side: int) -> Framing:
    """Return the framing of a source.

    Args:
        framing: "crop" or "picture".
        face: the source.
        side: side of the frames of "crop".
        max_side: largest side of the frames of "picture". A larger picture is downsampled.
    """
    if framing == "crop":
        return Framing((side, side))
    picture, box = limit_image_size(face.picture, face.crop, max_side, MOST_PIXELS)
    height, width = picture.shape[:2]
    if picture is not face.picture:
        log.info("the picture is shown in %d x %d pixels (of %d x %d)", width, height, *face.picture.shape[1::-1])
    return Framing((width, height), CropPaster(picture, box))
