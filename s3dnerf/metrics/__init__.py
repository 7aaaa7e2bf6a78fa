"""Measures of quality as pure functions on numpy arrays. Imports nothing else of the package."""

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

__all__ = [
    "FACE_POINT_COUNT",
    "MOUTH_POINTS",
    "correlate_openings",
    "count_blinks",
    "measure_blink_rate",
    "measure_cpbd",
    "measure_detail",
    "measure_f_lmd",
    "measure_jitter",
    "measure_m_lmd",
    "measure_opening_gain",
    "measure_opening_slope",
    "measure_psnr",
    "measure_ssim",
]
