"""The head crop: one square for a whole clip, so that the head keeps its scale."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from s3dnerf.face.camera import HeadPose

HEAD_SCALE = 0.75
"""Crop-normalized length of one head unit at the clip's median scale."""
CENTER_HEIGHT = 0.1
"""Head-space y of the crop's center: hair above and chin with some neck below."""
WHOLE_FRAME = 0.9
"""From this share of the frame's shorter side on, all of it is taken: a square video keeps its own pixels."""
HEAD_REACH = 1.0
"""Half the side of the box around the head, in head units, that stays inside the crop in every frame."""


@dataclass(frozen=True)
class CropBox:
    """A square in source pixels: x, y of its top-left corner (0, 0 is the image's corner), side length."""

    x: float
    y: float
    side: float


def choose_crop(pose: HeadPose, frame_size: tuple[int, int]) -> CropBox:
    """Choose one square for a clip.

    pose: head pose of the valid frames in source pixels (pixel centers are whole numbers); frame_size
    (height, width). The side is 2 / HEAD_SCALE head units at the median scale, grown until the head's box
    fits in every frame; near the frame's shorter side or beyond, it is that side. The square is then moved
    inside the frame.
    Raises ValueError without frames.
    """
    if len(pose) == 0:
        raise ValueError("a crop needs at least one frame with a face")
    height, width = frame_size
    middle = pose.center + 0.5
    middle = middle + pose.scale[:, None] * CENTER_HEIGHT * pose.rotation[:, :2, 1] * np.array([1.0, -1.0])
    reach = HEAD_REACH * pose.scale[:, None]
    low, high = (middle - reach).min(0), (middle + reach).max(0)
    side = max(2 / HEAD_SCALE * float(np.median(pose.scale)), float((high - low).max()))
    if side >= WHOLE_FRAME * min(height, width):
        side = float(min(height, width))
    corner = np.clip((low + high) / 2 - side / 2, 0, np.array([width, height]) - side)
    return CropBox(float(corner[0]), float(corner[1]), side)


def apply_crop(image: np.ndarray, box: CropBox, size: int) -> np.ndarray:
    """Cut the square out of image uint8 [H, W, 3] and resize it. Returns uint8 [size, size, 3].

    The side may be fractional; shrinking averages (no aliasing), growing is cubic.
    """
    ratio = box.side / size
    if ratio == 1 and box.x == int(box.x) and box.y == int(box.y):
        x, y = int(box.x), int(box.y)
        return np.ascontiguousarray(image[y : y + size, x : x + size])
    part, (left, top) = _cut_around(image, box, margin=int(np.ceil(3 * ratio)) + 2)
    start = (box.x - left + ratio / 2 - 0.5, box.y - top + ratio / 2 - 0.5)
    matrix = np.array([[ratio, 0, start[0]], [0, ratio, start[1]]])
    return _warp(_blur_for(part, ratio), matrix, (size, size))


def _cut_around(image: np.ndarray, box: CropBox, margin: int) -> tuple[np.ndarray, tuple[int, int]]:
    """The part of the image that the square and a margin cover, and its left, top corner."""
    left, top = (max(0, int(start) - margin) for start in (box.x, box.y))
    right, bottom = (int(np.ceil(start + box.side)) + margin for start in (box.x, box.y))
    return image[top:bottom, left:right], (left, top)


def _blur_for(image: np.ndarray, ratio: float) -> np.ndarray:
    """Blur before shrinking by a ratio above 1: a Gaussian stands in for area averaging at any fraction."""
    if ratio <= 1:
        return image
    return cv2.GaussianBlur(image, (0, 0), 0.5 * np.sqrt(ratio**2 - 1), borderType=cv2.BORDER_REPLICATE)


def _warp(image: np.ndarray, matrix: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resample (cubic) to size (width, height); the matrix takes new pixels to old ones."""
    flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(image, matrix, size, flags=flags, borderMode=cv2.BORDER_REPLICATE)


def crop_landmarks(points: np.ndarray, box: CropBox) -> np.ndarray:
    """Take pixel landmarks (x, y, depth) [..., 3] (see to_pixels) to crop-normalized (u, v, d)."""
    corner = np.array([box.x - 0.5, box.y - 0.5, 0])
    return ((points - corner) * (2 / box.side) - np.array([1.0, 1.0, 0.0])).astype(np.float32)


def crop_pose(pose: HeadPose, box: CropBox) -> HeadPose:
    """Take a head pose in source pixels to crop-normalized coordinates."""
    center = (pose.center - np.array([box.x - 0.5, box.y - 0.5])) * (2 / box.side) - 1
    return HeadPose(pose.rotation, pose.scale * np.float32(2 / box.side), center.astype(np.float32))


def paste_crop(frame: np.ndarray, crop: np.ndarray, box: CropBox, feather: float = 0.06) -> np.ndarray:
    """Put a crop uint8 [S, S, 3] back into frame uint8 [H, W, 3]. Returns a new frame.

    The crop fades in over `feather` of its side, except along the frame's own edges.
    """
    height, width = frame.shape[:2]
    ratio = crop.shape[0] / box.side
    # All else stays as it is, so that only the square costs, however large the frame.
    left, top = (int(np.clip(np.floor(start), 0, size)) for start, size in ((box.x, width), (box.y, height)))
    right, bottom = (
        int(np.clip(np.ceil(start + box.side), 0, size)) for start, size in ((box.x, width), (box.y, height))
    )
    pasted = frame.copy()
    if right <= left or bottom <= top:
        return pasted
    # Pixel i of the frame is at position (i + 0.5 - x) * ratio - 0.5 of the crop.
    start = [(0.5 + left - box.x) * ratio - 0.5, (0.5 + top - box.y) * ratio - 0.5]
    matrix = np.array([[ratio, 0, start[0]], [0, ratio, start[1]]], np.float64)
    back = _warp(_blur_for(crop, ratio), matrix, (right - left, bottom - top))
    rows, columns = (
        _fade(height, box.y, box.side, feather)[top:bottom],
        _fade(width, box.x, box.side, feather)[left:right],
    )
    square = frame[top:bottom, left:right]
    mixed = square + (rows[:, None] * columns)[..., None] * (back.astype(np.float32) - square)
    pasted[top:bottom, left:right] = np.clip(np.round(mixed), 0, 255)
    return pasted


def fit_picture(picture: np.ndarray, box: CropBox, side: int, pixels: int) -> tuple[np.ndarray, CropBox]:
    """Shrink a picture uint8 [H, W, 3] with the square in it to at most `side` pixels a side and `pixels` in all.

    A picture that is small enough is returned as it is.
    """
    height, width = picture.shape[:2]
    ratio = min(1.0, side / max(height, width), np.sqrt(pixels / (height * width)))
    if ratio == 1.0:
        return picture, box
    size = max(1, int(height * ratio)), max(1, int(width * ratio))
    shrunk = cv2.resize(picture, size[::-1], interpolation=cv2.INTER_AREA)
    return shrunk, CropBox(box.x * ratio, box.y * ratio, box.side * ratio)


def _fade(count: int, start: float, side: float, feather: float) -> np.ndarray:
    """Weight of the crop along one axis of the frame, float32 [count]."""
    position = np.arange(count) + 0.5
    near = (position - start) / (feather * side)
    far = (start + side - position) / (feather * side)
    if start <= 0.5:
        near = np.where(position >= start, 1.0, 0.0)
    if start + side >= count - 0.5:
        far = np.where(position <= start + side, 1.0, 0.0)
    ramp = np.clip(np.minimum(near, far), 0, 1)
    return (ramp * ramp * (3 - 2 * ramp)).astype(np.float32)
