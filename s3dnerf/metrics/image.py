"""Image similarity: PSNR and SSIM, per frame."""

from __future__ import annotations

import numpy as np

from s3dnerf.constants import LUMA_WEIGHTS

WHITE = 255.0
SSIM_WINDOW, GAUSSIAN_WINDOW = 7, 11
GAUSSIAN_SIGMA = 1.5
LUMINANCE_CONSTANT, CONTRAST_CONSTANT = (0.01 * WHITE) ** 2, (0.03 * WHITE) ** 2


def measure_psnr(target: np.ndarray, generated: np.ndarray) -> np.ndarray:
    """Compute the peak signal-to-noise ratio of each frame in decibels, 10 log10(255^2 / mean squared error).

    The error is averaged over pixels and color channels. The PSNR of a clip is the mean of decibels over its frames.

    Args:
        target: frames ``[T, H, W, 3]`` or one image ``[H, W, 3]``; uint8, or float in [0, 1].
        generated: the same.

    Returns:
        ``float64 [T]``; infinity for equal frames.

    Raises:
        ValueError: the shapes differ, or the type is another.
    """
    target, generated = _pair_frames(target, generated)
    error = ((target - generated) ** 2).mean(axis=(1, 2, 3))
    with np.errstate(divide="ignore"):
        return 10.0 * np.log10(WHITE**2 / error)


def measure_ssim(target: np.ndarray, generated: np.ndarray, gaussian: bool = False) -> np.ndarray:
    """Compute the structural similarity of each frame (Wang et al., 2004), averaged over pixels and channels.

    The data range is 255, K1 = 0.01, K2 = 0.03.

    Args:
        target: as for ``measure_psnr``, at least 11 pixels wide and high.
        generated: the same.
        gaussian: use the window of the paper (Gaussian with sigma 1.5, 11 x 11, population covariance) instead of a
            uniform 7 x 7 window with sample covariance. Scores of talking heads are about 0.01 higher with it.

    Returns:
        ``float64 [T]``, at most 1.
    """
    import cv2  # measures of landmarks alone do without it

    target, generated = _pair_frames(target, generated)
    size = GAUSSIAN_WINDOW if gaussian else SSIM_WINDOW
    sample = 1.0 if gaussian else size**2 / (size**2 - 1)
    inner = slice(size // 2, -(size // 2))

    def average(values: np.ndarray) -> np.ndarray:
        if gaussian:
            return cv2.GaussianBlur(values, (size, size), GAUSSIAN_SIGMA)[inner, inner]
        return cv2.blur(values, (size, size))[inner, inner]

    scores = []
    for a, b in zip(target, generated, strict=True):
        mean_a, mean_b = average(a), average(b)
        product, squares = mean_a * mean_b, mean_a**2 + mean_b**2
        covariance, variances = sample * (average(a * b) - product), sample * (average(a * a + b * b) - squares)
        numerator = (2.0 * product + LUMINANCE_CONSTANT) * (2.0 * covariance + CONTRAST_CONSTANT)
        scores.append((numerator / ((squares + LUMINANCE_CONSTANT) * (variances + CONTRAST_CONSTANT))).mean())
    return np.array(scores, np.float64)


def _pair_frames(target: np.ndarray, generated: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if target.shape != generated.shape:
        raise ValueError(f"frames of unequal shapes: {target.shape} and {generated.shape}")
    if target.ndim not in (3, 4) or target.shape[-1] != 3:
        raise ValueError(f"expected frames [T, H, W, 3] or [H, W, 3], got {target.shape}")
    return scale_to_white(target), scale_to_white(generated)


def scale_to_white(frames: np.ndarray) -> np.ndarray:
    """Return frames as ``float64 [T, H, W, 3]`` in [0, 255], from uint8 or from float in [0, 1]."""
    frames = frames if frames.ndim == 4 else frames[None]
    if frames.dtype == np.uint8:
        return frames.astype(np.float64)
    if np.issubdtype(frames.dtype, np.floating):
        return frames.astype(np.float64) * WHITE
    raise ValueError(f"expected uint8 or float frames, got {frames.dtype}")


def scale_to_gray(frames: np.ndarray) -> np.ndarray:
    """Return frames as gray levels ``float64 [T, H, W]`` in [0, 255], from uint8 or from float in [0, 1]."""
    import cv2

    weights = np.array([LUMA_WEIGHTS])
    return np.stack([cv2.transform(frame, weights) for frame in scale_to_white(frames)])
