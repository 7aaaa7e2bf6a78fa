"""From the square that the model renders to the frames of the video."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np

from s3dnerf.face.crop import CropPaster, limit_image_size
from s3dnerf.face.portrait import Face
from s3dnerf.media.image import resize_image
from s3dnerf.media.video import Region
from s3dnerf.render_options import RenderOptions

MOST_PIXELS = 36_864 * 256
"""Most pixels of a frame: the limit of H.264 level 5.1, which players support."""

LARGEST_PASTED = 512
"""Largest side of squares that are pasted into a picture: their detail costs time with every pixel."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Framing:
    """What a frame of the video shows: the square around the head, or the whole picture with the head pasted in."""

    size: tuple[int, int]
    """Width and height of the frames."""
    paster: CropPaster | None = None
    """Pastes squares into the picture, if all of it is shown."""
    beside: np.ndarray | None = None
    """``uint8 [height, width / 2, 3]`` the source, shown to the left of the frame."""

    def is_square(self, side: int) -> bool:
        """Tell whether squares of this side are the frames themselves."""
        return self.paster is None and self.beside is None and self.size == (side, side)

    @property
    def changing(self) -> Region | None:
        """Rows and columns of frames outside of which nothing changes; None if there are none."""
        if self.paster is None:
            return None
        shift = 0 if self.beside is None else self.beside.shape[1]
        rows, columns = self.paster.region
        return rows, slice(columns.start + shift, columns.stop + shift)

    def compose(self, square: np.ndarray) -> np.ndarray:
        """Return the frame ``uint8 [height, width, C]`` of a rendered square ``uint8 [S, S, C]``."""
        if self.paster is not None:
            frame = self.paster.paste(square)
        else:
            frame = square if len(square) == self.size[1] else resize_image(square, self.size[1])
        return frame if self.beside is None else np.concatenate([self.beside, frame], axis=1)


def choose_size(framing: Framing, options: RenderOptions) -> int | None:
    """Return the side of the rendered squares in pixels; None for the model's own."""
    if options.refine != "off" or options.show != "color":
        return None
    if framing.paster is None:
        return options.size
    return choose_pasted_size(framing.paster.box.side)


def choose_pasted_size(side: float) -> int:
    """Return the side in pixels of the rendered square that is pasted into a square of ``side`` pixels."""
    return min(round(side), LARGEST_PASTED)


def choose_framing(face: Face, options: RenderOptions, side: int) -> Framing:
    """Return the framing of a source.

    Args:
        face: the source.
        options: checked ones; they decide what is shown, and the largest side of a picture. A larger picture is
            downsampled.
        side: side of the frames of the framing "crop".
    """
    if options.framing == "crop":
        beside = resize_image(face.image, side) if options.side_by_side else None
        return Framing((side * (1 if beside is None else 2), side), beside=beside)
    picture, box = limit_image_size(face.picture, face.crop, options.max_side, MOST_PIXELS)
    height, width = picture.shape[:2]
    if picture is not face.picture:
        log.info("the picture is shown in %d x %d pixels (of %d x %d)", width, height, *face.picture.shape[1::-1])
    beside = picture.copy() if options.side_by_side else None
    return Framing((width * (1 if beside is None else 2), height), CropPaster(picture, box), beside)
