"""Windows of an image of any size and roll, at the cost of their own pixels."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

MIN_PYRAMID_SIDE = 768
"""Images whose longer side is at most this are not halved further."""


@dataclass(frozen=True)
class Window:
    """A square in an image, rotated about its center; it may reach beyond the image."""

    center: np.ndarray
    """``[2]`` x and y in pixels of the image, whose left, top corner is at 0."""
    side: float
    """Pixels of the image."""
    roll: float = 0.0
    """Clockwise rotation in radians."""

    def map_to_image(self, size: float) -> np.ndarray:
        """Return the matrix ``[2, 3]`` from positions in the window, in [0, size], to positions in the image."""
        turn = make_rotation(self.roll) * (self.side / size)
        return np.concatenate([turn, (self.center - turn.sum(1) * (size / 2))[:, None]], axis=1)


def make_rotation(roll: float) -> np.ndarray:
    """Return the matrix ``[2, 2]`` that rotates clockwise by ``roll`` radians where y points down."""
    cos, sin = np.cos(roll), np.sin(roll)
    return np.array([[cos, -sin], [sin, cos]])


def build_pyramid(image: np.ndarray) -> list[np.ndarray]:
    """Build an image pyramid: repeatedly halve an image ``[H, W, 3]`` by averaging, down to about 768 pixels.

    With it, the cost of a crop of any size is about that of its own pixels. The image itself comes first.
    """
    pyramid = [image]
    while max(pyramid[-1].shape[:2]) > MIN_PYRAMID_SIDE and min(pyramid[-1].shape[:2]) > 1:
        height, width = (side // 2 for side in pyramid[-1].shape[:2])
        pyramid.append(
            cv2.resize(pyramid[-1][: 2 * height, : 2 * width], (width, height), interpolation=cv2.INTER_AREA)
        )
    return pyramid


def crop_from_pyramid(pyramid: list[np.ndarray], window: Window, size: int) -> np.ndarray:
    """Crop a window from an image pyramid and resize it to ``[size, size, 3]``; black beyond the image.

    Downsampling averages with a Gaussian whose standard deviation is half the ratio of the sides.
    """
    ratio = window.side / size
    # The last level that still has four times the resolution of the result, so that most averaging is already done.
    level = min(max(int(np.log2(ratio)) - 2, 0), len(pyramid) - 1) if ratio > 1 else 0
    image, step = pyramid[level], 2**level
    sigma = np.sqrt(0.25 * ratio**2 - (step**2 - 1) / 12) / step if ratio > 1 else 0.0
    margin = int(np.ceil(4 * sigma)) + 2
    reach = window.side / 2 * (abs(np.cos(window.roll)) + abs(np.sin(window.roll)))
    low = np.floor((window.center - reach) / step).astype(int) - margin
    high = np.ceil((window.center + reach) / step).astype(int) + margin
    left, top = low.clip(0, np.array(image.shape[1::-1]) - 1)
    part = image[top : max(high[1], top + 1), left : max(high[0], left + 1)]
    if sigma:
        part = cv2.GaussianBlur(part, (0, 0), sigma)
    matrix = window.map_to_image(size) / step
    # OpenCV places pixel centers at whole numbers.
    matrix[:, 2] += matrix[:, :2].sum(1) / 2 - 0.5 - np.array([left, top])
    return cv2.warpAffine(part, matrix, (size, size), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
