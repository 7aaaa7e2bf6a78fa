"""Measures of quality as pure functions on numpy arrays. Imports nothing else of the package but its errors.

What needs PyTorch, and weights read from a file that the user names, is in modules of its own: `lpips`, `inception`
(the features of FID), `identity` (CSIM) and `syncnet` (the embeddings of LSE-C and LSE-D).
"""

from .frechet import FeatureStatistics, measure_frechet_distance
from .image import measure_psnr, measure_ssim
from .lips import (
    FACE_POINT_COUNT,
    MOUTH_POINTS,
    correlate_openings,
    measure_f_lmd,
    measure_m_lmd,
    measure_opening_gain,
    measure_opening_slope,
)
from .motion import count_blinks, measure_blink_rate, measure_jitter
from .sharpness import measure_cpbd, measure_detail
from .sync import SyncScores, compute_mfcc, measure_sync

__all__ = [
    "FACE_POINT_COUNT",
    "FeatureStatistics",
    "MOUTH_POINTS",
    "SyncScores",
    "compute_mfcc",
    "correlate_openings",
    "count_blinks",
    "measure_blink_rate",
    "measure_cpbd",
    "measure_detail",
    "measure_f_lmd",
    "measure_frechet_distance",
    "measure_jitter",
    "measure_m_lmd",
    "measure_opening_gain",
    "measure_opening_slope",
    "measure_psnr",
    "measure_ssim",
    "measure_sync",
]
