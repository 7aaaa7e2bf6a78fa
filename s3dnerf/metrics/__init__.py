"""Quality metrics as pure functions on NumPy arrays. They import only errors and constants of the package.

Metrics that need PyTorch and weights from the user are in separate modules: ``lpips``, ``inception`` (features of FID),
``identity`` (CSIM) and ``syncnet`` (embeddings of LSE-C and LSE-D). ``face_descriptor`` needs an optional package.
"""

from .closures import find_closures, measure_closure_chance, measure_closure_f1, measure_silent_opening
from .face_region import draw_face_region
from .flicker import measure_flicker, measure_gradient_error, measure_temporal_gradient
from .frechet import FeatureStatistics, measure_frechet_distance
from .image import measure_psnr, measure_ssim
from .lips import (
    FACE_POINT_COUNT,
    MOUTH_POINTS,
    align_openings,
    measure_f_lmd,
    measure_m_lmd,
    measure_opening_correlation,
    measure_opening_gain,
    measure_opening_slope,
)
from .motion import count_blinks, measure_blink_rate, measure_jitter
from .people import (
    bootstrap_interval,
    draw_people,
    measure_geometric_mean,
    measure_log_spread,
    measure_ratio_of_means,
    measure_weighted_mean,
)
from .sharpness import measure_cpbd, measure_rms_gradient, measure_split_cpbd, measure_split_gradient
from .sync import LSEScores, compute_mfcc, measure_lse
from .theval import (
    find_silence,
    measure_box_center,
    measure_brow_dynamics,
    measure_closeness,
    measure_head_dynamics,
    measure_lip_dynamics,
    measure_loudness,
    measure_loudness_mismatch,
    measure_mouth_height,
    measure_mouth_openness,
    measure_silent_lips,
    measure_theval,
)
from .warping import measure_lip_warping, measure_soft_dtw

__all__ = [
    "FACE_POINT_COUNT",
    "MOUTH_POINTS",
    "FeatureStatistics",
    "LSEScores",
    "align_openings",
    "bootstrap_interval",
    "compute_mfcc",
    "count_blinks",
    "draw_face_region",
    "draw_people",
    "find_closures",
    "find_silence",
    "measure_blink_rate",
    "measure_box_center",
    "measure_brow_dynamics",
    "measure_closeness",
    "measure_closure_chance",
    "measure_closure_f1",
    "measure_cpbd",
    "measure_f_lmd",
    "measure_flicker",
    "measure_frechet_distance",
    "measure_geometric_mean",
    "measure_gradient_error",
    "measure_head_dynamics",
    "measure_jitter",
    "measure_lip_dynamics",
    "measure_lip_warping",
    "measure_log_spread",
    "measure_loudness",
    "measure_loudness_mismatch",
    "measure_lse",
    "measure_m_lmd",
    "measure_mouth_height",
    "measure_mouth_openness",
    "measure_opening_correlation",
    "measure_opening_gain",
    "measure_opening_slope",
    "measure_psnr",
    "measure_ratio_of_means",
    "measure_rms_gradient",
    "measure_silent_lips",
    "measure_silent_opening",
    "measure_soft_dtw",
    "measure_split_cpbd",
    "measure_split_gradient",
    "measure_ssim",
    "measure_temporal_gradient",
    "measure_theval",
    "measure_weighted_mean",
]
