"""How close two pictures are: PSNR and SSIM, a value per frame."""

from __future__ import annotations

import numpy as np
from skimage.metrics import structural_similarity

WHITE = 255.0
SSIM_WINDOW = 7
GAUSSIAN_SIGMA = 1.5


def measure_psnr(real: np.ndarray, made: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio of each frame in decibels, 10 log10(255^2 / mean squared error).

    real, made: frames [T, H, W, 3] or one picture [H, W, 3]; uint8, or float in [0, 1]. The error is
    averaged over pixels and the three color channels. Returns float64 [T]; equal frames give infinity.
    Average decibels over frames, not errors, to get a clip's PSNR. Raises ValueError for unequal shapes or
    other value types.
    """
    real, made = _pair_frames(real, made)
    error = ((real - made) ** 2).mean(axis=(1, 2, 3))
    with np.errstate(divide="ignore"):
        return 10.0 * np.log10(WHITE**2 / error)


def measure_ssim(real: np.ndarray, made: np.ndarray, gaussian: bool = False) -> np.ndarray:
    """Structural similarity of each frame (Wang et al., 2004), mean over pixels and colors, at most 1.

    real, made: as for `measure_psnr`, at least 11 pixels wide and high. The data range is 255, K1 = 0.01,
    K2 = 0.03, channels are compared one by one. By default local moments come from a uniform 7 x 7 window
    with sample covariance; `gaussian` takes the weights of the original paper instead (sigma 1.5, 11 x 11,
    population covariance), which come out about 0.01 higher on talking heads. Returns float64 [T].
    """
    real, made = _pair_frames(real, made)
    if gaussian:
        window = {"gaussian_weights": True, "sigma": GAUSSIAN_SIGMA, "use_sample_covariance": False}
    else:
        window = {"win_size": SSIM_WINDOW, "use_sample_covariance": True}
    compare = [
        structural_similarity(a, b, channel_axis=-1, data_range=WHITE, **window)
        for a, b in zip(real, made, strict=True)
    ]
    return np.array(compare, np.float64)


def _pair_frames(real: np.ndarray, made: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if real.shape != made.shape:
        raise ValueError(f"frames of unequal shapes: {real.shape} and {made.shape}")
    if real.ndim not in (3, 4) or real.shape[-1] != 3:
        raise ValueError(f"expected frames [T, H, W, 3] or [H, W, 3], got {real.shape}")
    return scale_to_white(real), scale_to_white(made)


def scale_to_white(frames: np.ndarray) -> np.ndarray:
    frames = frames if frames.ndim == 4 else frames[None]
    if frames.dtype == np.uint8:
        return frames.astype(np.float64)
    if np.issubdtype(frames.dtype, np.floating):
        return frames.astype(np.float64) * WHITE
    raise ValueError(f"expected uint8 or float frames, got {frames.dtype}")
