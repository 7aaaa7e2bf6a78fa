"""A visible watermark: a short text, half transparent, in the lower right corner of every frame."""

from __future__ import annotations

from typing import cast

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from s3dnerf.errors import ArgumentError

MAX_CHARACTERS = 80
OPACITY = 0.6
RELATIVE_HEIGHT = 1 / 22
"""Size of the font as a fraction of the height of the frame."""
SMALLEST_FONT = 8
"""Pixels. Smaller letters cannot be read."""
MISSING = "\U0010ffff"
"""A code point that no font has; it is drawn as the box of missing characters."""


class Watermark:
    """A text that is drawn into frames of one size.

    It is white with a dark outline, so that it shows on any background. Its font is that of Pillow, which has the
    characters of Western European languages.

    Args:
        text: one line of at most 80 characters.
        size: (width, height) of the frames.

    Raises:
        ArgumentError: the text cannot be drawn, or does not fit into the frames.
    """

    def __init__(self, text: str, size: tuple[int, int]) -> None:
        check_watermark(text)
        width, height = size
        room = round(0.95 * width)
        font_size = max(SMALLEST_FONT, round(RELATIVE_HEIGHT * height))
        while (box := _measure(text, font_size))[2] - box[0] > room or box[3] - box[1] > height // 2:
            font_size -= 1
            if font_size < SMALLEST_FONT:
                reason = f"does not fit into frames of {width} x {height} pixels"
                raise ArgumentError("watermark", text, reason, "Use a shorter text, or larger frames.")
        left, top, right, bottom = box
        margin = max(1, min(width - (right - left), height - (bottom - top), round(font_size / 2)) // 2)
        picture = Image.new("LA", (right - left, bottom - top), (0, 0))
        draw = ImageDraw.Draw(picture)
        draw.text(
            (-left, -top),
            text,
            fill=(255, 255),
            font=_load_font(font_size),
            stroke_width=_stroke(font_size),
            stroke_fill=(0, 255),
        )
        drawn = np.asarray(picture).astype(np.float32)
        end_x, end_y = width - margin, height - margin
        self._place = (slice(max(0, end_y - drawn.shape[0]), end_y), slice(max(0, end_x - drawn.shape[1]), end_x))
        self._color, self._alpha = drawn[..., :1], drawn[..., 1:] * np.float32(OPACITY / 255)

    def draw(self, frame: np.ndarray) -> np.ndarray:
        """Return a copy of a frame ``uint8 [H, W, 3 or 4]`` with the text. Transparent frames are opaque under it."""
        marked = frame.copy()
        corner = frame[self._place].astype(np.float32)
        color, alpha = corner[..., :3], self._alpha
        if frame.shape[-1] == 3:
            marked[self._place] = np.round(color + alpha * (self._color - color))
            return marked
        behind = corner[..., 3:] / 255
        total = alpha + behind * (1 - alpha)
        color = (alpha * self._color + (1 - alpha) * behind * color) / np.maximum(total, 1e-6)
        marked[self._place] = np.round(np.concatenate([color, 255 * total], axis=-1))
        return marked


def check_watermark(text: str) -> str:
    """Return a text that can be drawn as a watermark.

    Raises:
        ArgumentError: it is empty, too long, has line breaks, or characters that the font does not have.
    """
    if not isinstance(text, str) or not text.strip():
        raise ArgumentError("watermark", None, "is empty", "Give a short text, or leave the option out.")
    if len(text) > MAX_CHARACTERS or not text.isprintable():
        shown = f"{text[:20]}..." if len(text) > 20 else text
        reason = f"is not one line of at most {MAX_CHARACTERS} characters"
        raise ArgumentError("watermark", shown, reason, "Use a shorter text.")
    font = _load_font(24)
    missing = bytes(font.getmask(MISSING))
    for character in text:
        if bytes(font.getmask(character)) == missing:
            reason = f"has the character {character}, which the font does not have"
            raise ArgumentError("watermark", text, reason, "Use letters of Western European languages.")
    return text


def _load_font(size: int) -> ImageFont.FreeTypeFont:
    # Pillow without FreeType has only a bitmap font, in one size; its packages on PyPI have FreeType.
    return cast("ImageFont.FreeTypeFont", ImageFont.load_default(size))


def _stroke(font_size: int) -> int:
    return max(1, font_size // 14)


def _measure(text: str, font_size: int) -> tuple[int, int, int, int]:
    box = _load_font(font_size).getbbox(text, stroke_width=_stroke(font_size))
    return (int(np.floor(box[0])), int(np.floor(box[1])), int(np.ceil(box[2])), int(np.ceil(box[3])))
