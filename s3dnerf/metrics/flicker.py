"""Changes of pixels from frame to frame: the temporal gradient, and flicker.

The first frame of a video has no gradient, the first and the last no flicker. Only adjacent frames are used, so a long
video may be measured in overlapping pieces. A region limits a measure to part of the picture.
"""

from __future__ import annotations

import numpy as np

from .image import scale_to_gray


def measure_temporal_gradient(frames: np.ndarray, region: np.ndarray | None = None) -> np.ndarray:
    """Compute the mean absolute change of gray levels to the next frame.

    Args:
        frames: ``[T, H, W, 3]``; uint8, or float in [0, 1].
        region: ``bool [T, H, W]``; a pixel counts if it is in the region in both frames. All by default.

    Returns:
        ``float64 [T - 1]`` in gray levels of 255; NaN where no pixel counts. Empty for fewer than two frames.
    """
    return _average(np.abs(np.diff(_to_gray(frames), axis=0)), region)


def measure_gradient_error(target: np.ndarray, generated: np.ndarray, region: np.ndarray | None = None) -> np.ndarray:
    """Compute the mean absolute difference of the changes of two videos: is the same motion in the same places?

    A constant difference between the videos does not count, as of color or background.

    Args:
        target: as for :func:`measure_temporal_gradient`.
        generated: of the same shape.
        region: as for :func:`measure_temporal_gradient`.

    Returns:
        As of :func:`measure_temporal_gradient`; 0 for equal changes.
    """
    if target.shape != generated.shape:
        raise ValueError(f"frames of unequal shapes: {target.shape} and {generated.shape}")
    changes = [np.diff(_to_gray(frames), axis=0) for frames in (target, generated)]
    return _average(np.abs(changes[1] - changes[0]), region)


def measure_flicker(frames: np.ndarray, region: np.ndarray | None = None) -> np.ndarray:
    """Compute how far gray levels are from the mean of the frames before and after, averaged over pixels.

    Fades and slow motion hardly count; noise and pixels that jump back and forth do. So does fast motion of sharp
    edges: compare with the real video, as by :func:`~s3dnerf.metrics.measure_ratio_of_means` of both.

    Args:
        frames: as for :func:`measure_temporal_gradient`.
        region: ``bool [T, H, W]``; a pixel counts if it is in the region in all three frames. All by default.

    Returns:
        ``float64 [T - 2]`` in gray levels of 255; NaN where no pixel counts. Empty for fewer than three frames.
    """
    return _average(np.abs(np.diff(_to_gray(frames), n=2, axis=0)) / 2.0, region, span=2)


def _to_gray(frames: np.ndarray) -> np.ndarray:
    if frames.ndim != 4 or frames.shape[-1] != 3:
        raise ValueError(f"expected frames [T, H, W, 3], got {frames.shape}")
    return scale_to_gray(frames)


def _average(changes: np.ndarray, region: np.ndarray | None, span: int = 1) -> np.ndarray:
    """Average ``[N, H, W]`` over the pixels that are in the region in all ``span`` + 1 frames of a change."""
    if region is None:
        return changes.mean(axis=(1, 2))
    count = max(len(region) - span, 0)
    if region.dtype != bool or (count, *region.shape[1:]) != changes.shape:
        raise ValueError(f"expected a region bool [T, H, W] as large as the frames, got {region.dtype} {region.shape}")
    counted = np.logical_and.reduce([region[start : start + count] for start in range(span + 1)])
    counts = counted.sum(axis=(1, 2))
    sums = np.where(counted, changes, 0.0).sum(axis=(1, 2))
    return np.where(counts > 0, sums / counts.clip(min=1), np.nan)
