"""Frechet distance of two sets of features, each modeled as a Gaussian; with Inception features this is FID."""

from __future__ import annotations

import numpy as np
from scipy.linalg import eigh, eigvalsh


class FeatureStatistics:
    """Accumulates mean and covariance of features without keeping them."""

    def __init__(self, channels: int) -> None:
        self.count = 0
        self._mean = np.zeros(channels)
        self._scatter = np.zeros((channels, channels))

    def add(self, features: np.ndarray) -> None:
        """Add features ``[N, C]``. The sums are merged as by Chan et al. (1983), which is accurate far from zero."""
        if features.ndim != 2 or features.shape[1] != len(self._mean):
            raise ValueError(f"expected features [N, {len(self._mean)}], got {features.shape}")
        if not len(features):
            return
        features = features.astype(np.float64)
        mean = features.mean(axis=0)
        centered, delta = features - mean, mean - self._mean
        total = self.count + len(features)
        self._scatter += centered.T @ centered + np.outer(delta, delta) * (self.count * len(features) / total)
        self._mean += delta * (len(features) / total)
        self.count = total

    @property
    def mean(self) -> np.ndarray:
        """Mean, ``float64 [C]``."""
        return self._mean.copy()

    @property
    def covariance(self) -> np.ndarray:
        """Sample covariance, ``float64 [C, C]``, divided by N - 1. Raises ValueError for fewer than two features."""
        if self.count < 2:
            raise ValueError(f"a covariance needs two features or more, got {self.count}")
        return self._scatter / (self.count - 1)


def measure_frechet_distance(target: FeatureStatistics, generated: FeatureStatistics) -> float:
    """Compute the squared Frechet distance of two Gaussians (Heusel et al., 2017, eq. 6), at least 0.

    It is |m1 - m2|^2 + Tr(C1 + C2 - 2 (C1 C2)^(1/2)). The trace of the root equals that of the root of the symmetric
    C1^(1/2) C2 C1^(1/2), which is also exact for singular covariances, as those of sets smaller than the number of
    channels are. The distance grows for small sets; compare only sets of equal size.
    """
    return measure_gaussian_distance(target.mean, target.covariance, generated.mean, generated.covariance)


def measure_gaussian_distance(mean1: np.ndarray, cov1: np.ndarray, mean2: np.ndarray, cov2: np.ndarray) -> float:
    """Compute the squared Frechet distance of two Gaussians of means ``[C]`` and covariances ``[C, C]``."""
    values, vectors = eigh(cov1)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    shared = np.sqrt(eigvalsh(root @ cov2 @ root).clip(min=0)).sum()
    delta = mean1 - mean2
    return max(0.0, float(delta @ delta + np.trace(cov1) + np.trace(cov2) - 2.0 * shared))
