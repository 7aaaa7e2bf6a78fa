"""Dense optical flow between two images, by dense inverse search (DIS; Kroeger et al., 2016)."""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np

MAX_CYCLE_ERROR = 1.0
"""Largest forward-backward error in pixels of a pixel whose flow counts."""
MAX_INTENSITY_CHANGE = 20.0
"""Largest difference in gray levels (of 255), averaged over 5 x 5 pixels, between two matching places."""
HALF_CONFIDENCE_GRADIENT = 4.0
"""Gradient in gray levels per pixel at which confidence is half of that at strong edges. Flat areas match anywhere."""
_AXES = ((1, 0), (0, 1))


def measure_flow(frame: np.ndarray, source: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute the flow from a frame to a source image of the same scene.

    Args:
        frame: ``uint8 [S, S, 3]``.
        source: of the same size.

    Returns:
        The flow (u, v) ``float32 [S/2, S/2, 2]`` in image coordinates, in which the image is two units wide, and its
        confidence ``float32 [S/2, S/2]`` in [0, 1]. Confidence is low at occlusions and in flat areas.
    """
    frame_gray, source_gray = (cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in (frame, source))
    search = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    # The stub does not know that None lets OpenCV make the result.
    forward = search.calc(frame_gray, source_gray, None)  # type: ignore[call-overload]
    backward = search.calc(source_gray, frame_gray, None)  # type: ignore[call-overload]
    size = len(frame_gray)
    target = forward + _list_pixels(size)
    cycle = forward + sample(backward, target)
    cycle_error = _measure_length(cycle[..., 0], cycle[..., 1])
    change = cv2.blur(cv2.absdiff(frame_gray, sample(source_gray, target)).astype(np.float32), (5, 5))
    inside = (target >= 0) & (target <= size - 1)
    texture = cv2.blur(_measure_gradient(frame_gray), (5, 5))
    confidence = (cycle_error < MAX_CYCLE_ERROR) & (change < MAX_INTENSITY_CHANGE) & inside[..., 0] & inside[..., 1]
    confidence = confidence * (texture / (texture + HALF_CONFIDENCE_GRADIENT)).astype(np.float32)
    half = (size // 2, size // 2)
    flow, confidence = (cv2.resize(part, half, interpolation=cv2.INTER_AREA) for part in (forward, confidence))
    return flow * np.float32(2.0 / size), confidence


@lru_cache(maxsize=16)
def _list_pixels(size: int) -> np.ndarray:
    """Return the pixel positions (x, y) of a square, ``float32 [size, size, 2]``."""
    return np.stack(np.meshgrid(np.arange(size), np.arange(size)), axis=-1).astype(np.float32)


def _measure_gradient(gray: np.ndarray) -> np.ndarray:
    """Return the gradient of ``uint8 [S, S]`` in gray levels per pixel; differences are one-sided at the border."""
    x, y = (cv2.Sobel(gray, cv2.CV_32F, *axis, ksize=1, scale=0.5, borderType=cv2.BORDER_REPLICATE) for axis in _AXES)
    x[:, [0, -1]] *= 2
    y[[0, -1]] *= 2
    return _measure_length(x, y)


def _measure_length(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    # The last digit of cv2.magnitude depends on where its result lies in memory, and batches must be repeatable.
    return np.sqrt(x * x + y * y)


def sample(image: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """Sample ``image [H, W, ...]`` bilinearly at ``pixels [H, W, 2]`` (x, y); the border is replicated."""
    # The stub does not know that one map may hold both coordinates.
    return cv2.remap(  # type: ignore[call-overload]
        image, pixels, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
