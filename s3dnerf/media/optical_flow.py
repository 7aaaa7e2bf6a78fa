"""Optical flow: where in one picture is what another shows? By dense inverse search (Kroeger et al., 2016)."""

from __future__ import annotations

import cv2
import numpy as np

LARGEST_MISS = 1.0
"""Pixels by which the way to the portrait and back may miss its start, at a trusted pixel."""
LARGEST_CHANGE = 20.0
"""Difference of gray values (of 255), averaged over five pixels, beyond which two places are not the same thing."""
TEXTURE = 4.0
"""Gradient of gray values a pixel at which confidence is half of what it is at strong edges."""


def measure_flow(frame: np.ndarray, portrait: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Follow what a frame shows to where it is in a portrait of the same scene.

    Args:
        frame: ``uint8 [S, S, 3]``.
        portrait: of the same size.

    Returns:
        ``float32 [S/2, S/2, 2]`` the way (u, v) there in image coordinates, in which a picture is two units wide, and
        ``float32 [S/2, S/2]`` in [0, 1], how far it can be trusted: not where it is hidden, nor where all is plain.
    """
    here, there = (cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in (frame, portrait))
    search = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    forth, back = search.calc(here, there, None), search.calc(there, here, None)
    size = len(here)
    target = forth + np.stack(np.meshgrid(np.arange(size), np.arange(size)), axis=-1).astype(np.float32)
    miss = np.linalg.norm(forth + sample(back, target), axis=-1)
    change = cv2.blur(cv2.absdiff(here, sample(there, target)).astype(np.float32), (5, 5))
    inside = ((target >= 0) & (target <= size - 1)).all(axis=-1)
    texture = cv2.blur(np.hypot(*np.gradient(here.astype(np.float32))), (5, 5))
    confidence = (miss < LARGEST_MISS) & (change < LARGEST_CHANGE) & inside
    confidence = confidence * (texture / (texture + TEXTURE)).astype(np.float32)
    small = (size // 2, size // 2)
    flow, confidence = (cv2.resize(part, small, interpolation=cv2.INTER_AREA) for part in (forth, confidence))
    return flow * np.float32(2.0 / size), confidence


def sample(image: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Read ``image [H, W, ...]`` at pixels ``places [H, W, 2]`` (x, y); beyond its border it goes on as it ends."""
    return cv2.remap(image, places, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
