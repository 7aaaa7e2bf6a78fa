"""Plots of head poses over time."""

from __future__ import annotations

from collections.abc import Mapping

import cv2
import numpy as np

WIDTH, PANEL_HEIGHT, MARGIN = 1000, 200, 30
COLORS = (
    (0, 0, 0),
    (160, 160, 160),
    (0, 150, 0),
    (200, 0, 0),
    (0, 0, 200),
    (200, 120, 0),
    (120, 0, 160),
    (0, 150, 150),
)
MIN_SPAN_DEGREES = 5.0


def draw_pose_curves(poses: Mapping[str, np.ndarray]) -> np.ndarray:
    """Draw pitch, yaw and roll in degrees over time, one panel each and one color for each row.

    Args:
        poses: ``[T, 6]`` by row; the first is drawn in black.

    Returns:
        ``uint8 [600, 1000, 3]``.
    """
    image = np.full((3 * PANEL_HEIGHT, WIDTH, 3), 255, np.uint8)
    degrees = {row: np.degrees(pose[:, :3].astype(np.float64)) for row, pose in poses.items()}
    longest = max(len(curve) for curve in degrees.values())
    for axis, name in enumerate(("pitch", "yaw", "roll")):
        largest = max(MIN_SPAN_DEGREES, *(np.abs(curve[:, axis]).max() for curve in degrees.values()))
        middle = axis * PANEL_HEIGHT + PANEL_HEIGHT // 2
        cv2.line(image, (MARGIN, middle), (WIDTH - MARGIN, middle), (220, 220, 220), 1)
        _write(image, f"{name}, +-{largest:.0f} degrees", (MARGIN, axis * PANEL_HEIGHT + 18), (0, 0, 0))
        for curve, color in zip(degrees.values(), _cycle(len(degrees)), strict=True):
            across = MARGIN + np.arange(len(curve)) * (WIDTH - 2 * MARGIN) / max(longest - 1, 1)
            down = middle - curve[:, axis] / largest * (PANEL_HEIGHT / 2 - 24)
            points = np.stack([across, down], axis=1).round().astype(np.int32)
            cv2.polylines(image, [points], False, color, 1, cv2.LINE_AA)
    place = 250
    for row, color in zip(degrees, _cycle(len(degrees)), strict=True):
        _write(image, row, (place, 18), color)
        place += 20 + 9 * len(row)
    return image


def _cycle(count: int) -> list[tuple[int, int, int]]:
    return [COLORS[index % len(COLORS)] for index in range(count)]


def _write(image: np.ndarray, text: str, place: tuple[int, int], color: tuple[int, int, int]) -> None:
    cv2.putText(image, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.45, color, 1, cv2.LINE_AA)
