"""Plots of head poses over time."""

from __future__ import annotations

from collections.abc import Mapping

import cv2
import numpy as np

WIDTH, STRIP, HEADER, FOOTER = 1200, 120, 34, 34
LEFT, RIGHT = 170, 40
"""Margins in pixels; names of rows stand in the left one."""
AXES = {"pitch": (190, 60, 30), "yaw": (30, 100, 190), "roll": (40, 140, 60)}
INK, GRID, FILL = (40, 40, 40), (226, 226, 226), (200, 200, 200)
MIN_SPAN_DEGREES = 5.0
FPS = 25
TICKS = (1, 2, 5, 10, 20, 60, 120, 300)
"""Seconds between lines of the grid."""


def draw_pose_curves(poses: Mapping[str, np.ndarray], level: np.ndarray | None = None) -> np.ndarray:
    """Draw the rotation of each row over time, one strip each, in degrees from the mean.

    All strips have the same scale.

    Args:
        poses: ``[T, 6]`` by row, at 25 frames per second.
        level: ``[T]`` level of the speech in decibels, drawn in a last strip.

    Returns:
        ``uint8 [H, 1200, 3]`` RGB.
    """
    degrees = {row: np.degrees(pose[:, :3].astype(np.float64)) for row, pose in poses.items()}
    degrees = {row: curve - curve.mean(axis=0) for row, curve in degrees.items()}
    span = max(MIN_SPAN_DEGREES, *(float(np.abs(curve).max()) for curve in degrees.values()))
    frames = max(len(curve) for curve in degrees.values())
    strips = len(degrees) + (level is not None)
    image = np.full((HEADER + strips * STRIP + FOOTER, WIDTH, 3), 255, np.uint8)
    _draw_grid(image, frames, len(degrees), strips)
    place = LEFT
    for name, color in AXES.items():
        cv2.line(image, (place, 18), (place + 26, 18), color, 2, cv2.LINE_AA)
        _write(image, name, (place + 34, 23))
        place += 110
    _write(image, f"degrees from the mean, strips span +-{span:.0f}", (place, 23))
    for number, (row, curve) in enumerate(degrees.items()):
        middle = HEADER + number * STRIP + STRIP // 2
        _write(image, row, (10, middle + 5))
        for axis, color in zip(curve.T, AXES.values(), strict=True):
            points = _place(axis / span, frames, middle)
            cv2.polylines(image, [points], False, color, 1, cv2.LINE_AA)
    if level is not None:
        _draw_level(image, level, frames, HEADER + len(degrees) * STRIP)
    return image


def _draw_grid(image: np.ndarray, frames: int, curves: int, strips: int) -> None:
    """Draw frames around the strips, middle lines of those with curves, and seconds below them."""
    bottom = HEADER + strips * STRIP
    seconds = (frames - 1) / FPS
    tick = next((tick for tick in TICKS if seconds / tick <= 15), TICKS[-1])
    for second in range(0, int(seconds) + 1, tick):
        across = int(_find_columns(np.array([second * FPS]), frames)[0])
        cv2.line(image, (across, HEADER), (across, bottom), GRID, 1)
        _write(image, f"{second} s", (across - 8, bottom + 20))
    for number in range(strips + 1):
        top = HEADER + number * STRIP
        cv2.line(image, (LEFT, top), (WIDTH - RIGHT, top), INK, 1)
        if number < curves:
            cv2.line(image, (LEFT, top + STRIP // 2), (WIDTH - RIGHT, top + STRIP // 2), GRID, 1)


def _draw_level(image: np.ndarray, level: np.ndarray, frames: int, top: int) -> None:
    """Fill a strip below the level, from the lowest to the highest."""
    share = (level - level.min()) / max(float(np.ptp(level)), 1e-6)
    bottom = top + STRIP - 4
    down = bottom - share * (STRIP - 12)
    across = _find_columns(np.arange(len(level)), frames)
    edge = np.stack([across, down], axis=1)
    shape = np.concatenate([[[across[0], bottom]], edge, [[across[-1], bottom]]]).round().astype(np.int32)
    cv2.fillPoly(image, [shape], FILL, cv2.LINE_AA)
    _write(image, "speech level", (10, top + STRIP // 2 + 5))


def _place(share: np.ndarray, frames: int, middle: int) -> np.ndarray:
    """Return the points of a curve ``[T]`` of values from -1 to 1, up being positive, ``int32 [T, 2]``."""
    down = middle - share * (STRIP / 2 - 4)
    return np.stack([_find_columns(np.arange(len(share)), frames), down], axis=1).round().astype(np.int32)


def _find_columns(frame: np.ndarray, frames: int) -> np.ndarray:
    return LEFT + frame * (WIDTH - LEFT - RIGHT) / max(frames - 1, 1)


def _write(image: np.ndarray, text: str, place: tuple[int, int]) -> None:
    cv2.putText(image, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.45, INK, 1, cv2.LINE_AA)
