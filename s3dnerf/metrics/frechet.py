"""Distance of two sets of features, each taken as a Gaussian: FID when the features are Inception's."""

from __future__ import annotations

import numpy as np
from scipy.linalg import eigh, eigvalsh


class FeatureStatistics:
    """Mean and covariance of features that come in parts; keeps two sums, not the features."""

    def __init__(self, channels: int) -> None:
        self.count = 0
        self._mean = np.zeros(channels)
        self._scatter = np.zeros((channels, channels))

    def add(self, features: np.ndarray) -> None:
        """Take in features [N, C]; sums are joined as by Chan et al. (1983), which stays exact far from zero."""
        if features.ndim != 2 or features.shape[1] != len(self._mean):
            raise ValueError(f"expected features [N, {len(self._mean)}], got {features.shape}")
        if not len(features):
            return
        features = features.astype(np.float64)
        mean = features.mean(axis=0)
        centered, apart = features - mean, mean - self._mean
        total = self.count + len(features)
        self._scatter += centered.T @ centered + np.outer(apart, apart) * (self.count * len(features) / total)
        self._mean += apart * (len(features) / total)
        self.count = total

    @property
    def mean(self) -> np.ndarray:
        """Mean, float64 [C]."""
        return self._mean.copy()

    @property
    def covariance(self) -> np.ndarray:
        """Sample covariance (divided by N - 1), float64 [C, C]. Raises ValueError for fewer than two features."""
        if self.count < 2:
            raise ValueError(f"a covariance needs two features or more, got {self.count}")
        return self._scatter / (self.count - 1)


def measure_frechet_distance(real: FeatureStatistics, made: FeatureStatistics) -> float:
    """Squared Frechet distance of two Gaussians (Heusel et al., 2017, eq. 6), at least 0.

    |m1 - m2|^2 + Tr(C1 + C2 - 2 (C1 C2)^(1/2)). The trace of the root is that of the root of the symmetric
    C1^(1/2) C2 C1^(1/2), which is exact also where covariances are singular: sets smaller than the number of
    channels always are. Such small sets make the distance larger; compare only sets of equal size.
    """
    first, second = real.covariance, made.covariance
    values, vectors = eigh(first)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    shared = np.sqrt(eigvalsh(root @ second @ root).clip(min=0)).sum()
    apart = real.mean - made.mean
    return max(0.0, float(apart @ apart + np.trace(first) + np.trace(second) - 2.0 * shared))
