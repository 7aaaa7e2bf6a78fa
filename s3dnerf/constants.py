"""Constants that several packages share. This module imports nothing."""

SAMPLE_RATE = 16_000
"""Samples per second of the speech that the models and metrics take."""
FPS = 25
"""Frames per second of all video inside the package."""
SAMPLES_PER_FRAME = SAMPLE_RATE // FPS
HEAD_CUTOFF_HZ = 4.0
"""Frequency at which head motion is halved, in training clips and in generated motion; heads hardly move faster."""
LUMA_WEIGHTS = (0.299, 0.587, 0.114)
"""Weights of R, G and B in luma (ITU-R BT.601)."""
