"""The head crop: one square for a whole clip, so that the scale of the head is kept."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from s3dnerf.face.camera import HeadPose

HEAD_SCALE = 0.75
"""Crop-normalized length of one head unit at the clip's median scale."""
CROP_CENTER_Y = 0.1
"""Head-space y of the crop's center, which leaves room for hair above and for the chin and some neck below."""
FULL_FRAME_RATIO = 0.9
"""Ratio of the crop's side to the frame's shorter side from which on the crop takes all of it, so that a square video
keeps its own pixels."""
HEAD_HALF_SIZE = 1.0
"""Half the side, in head units, of the box around the head that stays inside the crop in every frame."""


@dataclass(frozen=True)
class CropBox:
    """A square in pixels of an image; it may reach beyond the image."""

    x: float
    """Left edge; the image's left edge is at 0."""
    y: float
    """Top edge; the image's top edge is at 0."""
    side: float


def choose_crop(pose: HeadPose, frame_size: tuple[int, int]) -> CropBox:
    """Choose one square for a clip.

    The side is ``2 / HEAD_SCALE`` head units at the median scale, enlarged until the head's box fits in every frame.
    From ``FULL_FRAME_RATIO`` of the frame's shorter side on, it is that side. The square is then moved inside the
    frame.

    Args:
        pose: head poses of the valid frames in source pixels (pixel centers are whole numbers).
        frame_size: height and width.

    Raises:
        ValueError: there are no frames.
    """
    if len(pose) == 0:
        raise ValueError("a crop needs at least one frame with a face")
    height, width = frame_size
    center = pose.center + 0.5
    center = center + pose.scale[:, None] * CROP_CENTER_Y * pose.rotation[:, :2, 1] * np.array([1.0, -1.0])
    half = HEAD_HALF_SIZE * pose.scale[:, None]
    low, high = (center - half).min(0), (center + half).max(0)
    side = max(2 / HEAD_SCALE * float(np.median(pose.scale)), float((high - low).max()))
    if side >= FULL_FRAME_RATIO * min(height, width):
        side = float(min(height, width))
    corner = np.clip((low + high) / 2 - side / 2, 0, np.array([width, height]) - side)
    return CropBox(float(corner[0]), float(corner[1]), side)


def apply_crop(image: np.ndarray, box: CropBox, size: int) -> np.ndarray:
    """Crop a square from an image ``uint8 [H, W, 3]`` and resize it to ``uint8 [size, size, 3]``.

    The side may be fractional. Downsampling averages to avoid aliasing; upsampling is cubic.
    """
    ratio = box.side / size
    if ratio == 1 and box.x == int(box.x) and box.y == int(box.y):
        x, y = int(box.x), int(box.y)
        return np.ascontiguousarray(image[y : y + size, x : x + size])
    part, (left, top) = _slice_with_margin(image, box, margin=int(np.ceil(3 * ratio)) + 2)
    start = (box.x - left + ratio / 2 - 0.5, box.y - top + ratio / 2 - 0.5)
    matrix = np.array([[ratio, 0, start[0]], [0, ratio, start[1]]])
    return _resample(_antialias(part, ratio), matrix, (size, size))


def _slice_with_margin(image: np.ndarray, box: CropBox, margin: int) -> tuple[np.ndarray, tuple[int, int]]:
    """Return the part of the image that covers the square and a margin, and its left, top corner."""
    left, top = (max(0, int(start) - margin) for start in (box.x, box.y))
    right, bottom = (int(np.ceil(start + box.side)) + margin for start in (box.x, box.y))
    return image[top:bottom, left:right], (left, top)


def _antialias(image: np.ndarray, ratio: float) -> np.ndarray:
    """Blur before downsampling by a ratio above 1; a Gaussian approximates area averaging at fractional ratios."""
    if ratio <= 1:
        return image
    return cv2.GaussianBlur(image, (0, 0), 0.5 * np.sqrt(ratio**2 - 1), borderType=cv2.BORDER_REPLICATE)


def _resample(image: np.ndarray, matrix: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resample (cubic) to size (width, height); the matrix maps new pixels to old ones."""
    flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(image, matrix, size, flags=flags, borderMode=cv2.BORDER_REPLICATE)


def crop_landmarks(points: np.ndarray, box: CropBox) -> np.ndarray:
    """Transform pixel landmarks (x, y, depth) ``[..., 3]`` (see ``to_pixels``) to crop-normalized (u, v, d)."""
    corner = np.array([box.x - 0.5, box.y - 0.5, 0])
    return ((points - corner) * (2 / box.side) - np.array([1.0, 1.0, 0.0])).astype(np.float32)


def crop_pose(pose: HeadPose, box: CropBox) -> HeadPose:
    """Transform head poses in source pixels to crop-normalized coordinates."""
    center = (pose.center - np.array([box.x - 0.5, box.y - 0.5])) * (2 / box.side) - 1
    return HeadPose(pose.rotation, pose.scale * np.float32(2 / box.side), center.astype(np.float32))


class CropPaster:
    """Pastes crops back into one frame.

    Only the square is touched, so the cost depends little on the size of the frame.

    Args:
        frame: ``uint8 [H, W, 3]``.
        box: the crop's square in the frame.
        feather: fraction of the side over which the crop fades in, except along the frame's own edges.
    """

    def __init__(self, frame: np.ndarray, box: CropBox, feather: float = 0.06) -> None:
        self.frame, self.box = frame, box
        height, width = frame.shape[:2]
        self.left, self.top = (
            int(np.clip(np.floor(start), 0, size)) for start, size in ((box.x, width), (box.y, height))
        )
        right, bottom = (
            int(np.clip(np.ceil(start + box.side), 0, size)) for start, size in ((box.x, width), (box.y, height))
        )
        self.size = right - self.left, bottom - self.top
        rows = _feather_weights(height, box.y, box.side, feather)[self.top : bottom]
        columns = _feather_weights(width, box.x, box.side, feather)[self.left : right]
        self._weights = rows[:, None] * columns

    @property
    def region(self) -> tuple[slice, slice]:
        """Rows and columns of the frame that a crop may change."""
        return slice(self.top, self.top + self.size[1]), slice(self.left, self.left + self.size[0])

    def paste(self, crop: np.ndarray) -> np.ndarray:
        """Return a new frame with a crop ``uint8 [S, S, 3]`` in it."""
        pasted = self.frame.copy()
        if min(self.size) <= 0:
            return pasted
        box, ratio = self.box, crop.shape[0] / self.box.side
        # Pixel i of the frame is at position (i + 0.5 - x) * ratio - 0.5 of the crop.
        start = [(0.5 + self.left - box.x) * ratio - 0.5, (0.5 + self.top - box.y) * ratio - 0.5]
        matrix = np.array([[ratio, 0, start[0]], [0, ratio, start[1]]], np.float64)
        resized = _resample(_antialias(crop, ratio), matrix, self.size)
        square = pasted[self.region]
        square[:] = cv2.blendLinear(resized, np.ascontiguousarray(square), self._weights, 1.0 - self._weights)
        return pasted


def paste_crop(frame: np.ndarray, crop: np.ndarray, box: CropBox, feather: float = 0.06) -> np.ndarray:
    """Return a new frame with a crop ``uint8 [S, S, 3]`` pasted into it; see :class:`CropPaster`."""
    return CropPaster(frame, box, feather).paste(crop)


def limit_image_size(image: np.ndarray, box: CropBox, max_side: int, max_pixels: int) -> tuple[np.ndarray, CropBox]:
    """Downsample an image, and the square in it, to at most ``max_side`` pixels a side and ``max_pixels`` in all.

    Args:
        image: ``uint8 [H, W, 3]``.
        box: a square in the image.
        max_side: largest height and width.
        max_pixels: largest height times width.

    Returns:
        The image and the square; the very same ones if the image is small enough.
    """
    height, width = image.shape[:2]
    ratio = min(1.0, max_side / max(height, width), np.sqrt(max_pixels / (height * width)))
    if ratio == 1.0:
        return image, box
    # Even sides, as video has.
    size = max(2, int(height * ratio) // 2 * 2), max(2, int(width * ratio) // 2 * 2)
    resized = cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA)
    return resized, CropBox(box.x * ratio, box.y * ratio, box.side * ratio)


def _feather_weights(count: int, start: float, side: float, feather: float) -> np.ndarray:
    """Return the weight of the crop along one axis of the frame, ``float32 [count]``."""
    position = np.arange(count) + 0.5
    near = (position - start) / (feather * side)
    far = (start + side - position) / (feather * side)
    if start <= 0.5:
        near = np.where(position >= start, 1.0, 0.0)
    if start + side >= count - 0.5:
        far = np.where(position <= start + side, 1.0, 0.0)
    ramp = np.clip(np.minimum(near, far), 0, 1)
    return (ramp * ramp * (3 - 2 * ramp)).astype(np.float32)
