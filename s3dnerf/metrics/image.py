"""Image similarity: PSNR and SSIM, per frame."""

from __future__ import annotations

import numpy as np

WHITE = 255.0
SSIM_WINDOW = 7
GAUSSIAN_SIGMA = 1.5


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
    from skimage.metrics import structural_similarity

    target, generated = _pair_frames(target, generated)
    if gaussian:
        window = {"gaussian_weights": True, "sigma": GAUSSIAN_SIGMA, "use_sample_covariance": False}
    else:
        window = {"win_size": SSIM_WINDOW, "use_sample_covariance": True}
    compare = [
        structural_similarity(a, b, channel_axis=-1, data_range=WHITE, **window)
        for a, b in zip(target, generated, strict=True)
    ]
    return np.array(compare, np.float64)


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
