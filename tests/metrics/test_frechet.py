import numpy as np
import pytest
from scipy.linalg import sqrtm

from s3dnerf.metrics import FeatureStatistics, measure_frechet_distance


def collect(*parts: np.ndarray) -> FeatureStatistics:
    statistics = FeatureStatistics(parts[0].shape[1])
    for part in parts:
        statistics.add(part)
    return statistics


@pytest.fixture
def features() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(400, 6)) @ np.diag([1, 2, 0.5, 1, 3, 0.1]) + 1000.0


def test_merged_statistics_equal_those_of_the_whole_set(features):
    statistics = collect(features[:1], features[1:150], features[:0], features[150:])
    assert statistics.count == 400
    np.testing.assert_allclose(statistics.mean, features.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(statistics.covariance, np.cov(features, rowvar=False), rtol=1e-9)


def test_distance_of_independent_gaussians_is_known():
    # With diagonal covariances: sum of (m1 - m2)^2 + (s1 - s2)^2. Points at mean +- s have exactly these.
    def draw(mean: list[float], spread: list[float]) -> FeatureStatistics:
        corners = np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]]) * np.sqrt(3 / 4)
        return collect(corners * spread + mean)

    first, second = draw([0.0, 1.0], [1.0, 2.0]), draw([3.0, -1.0], [4.0, 0.5])
    np.testing.assert_allclose(first.covariance, np.diag([1.0, 4.0]), atol=1e-12)
    expected = 9.0 + 4.0 + (1.0 - 4.0) ** 2 + (2.0 - 0.5) ** 2
    assert measure_frechet_distance(first, second) == pytest.approx(expected)
    assert measure_frechet_distance(second, first) == pytest.approx(expected)


def test_distance_agrees_with_the_root_of_the_product(features):
    other = np.random.default_rng(1).normal(size=(300, 6)) @ np.random.default_rng(2).normal(size=(6, 6)) + 1000.5
    first, second = collect(features), collect(other)
    apart = first.mean - second.mean
    root = sqrtm(first.covariance @ second.covariance)
    expected = apart @ apart + np.trace(first.covariance + second.covariance - 2 * root.real)
    assert measure_frechet_distance(first, second) == pytest.approx(expected, rel=1e-8)


def test_equal_sets_have_no_distance_also_if_small(features):
    assert measure_frechet_distance(collect(features), collect(features)) == pytest.approx(0.0, abs=1e-6)
    few = features[:4]
    assert measure_frechet_distance(collect(few), collect(few)) == pytest.approx(0.0, abs=1e-6)
    # Moved by (2, 0, ...): singular covariances leave the distance of the means.
    assert measure_frechet_distance(collect(few), collect(few + np.eye(6)[0] * 2)) == pytest.approx(4.0, abs=1e-6)


def test_too_few_or_other_features_are_refused(features):
    with pytest.raises(ValueError, match="two features or more, got 1"):
        measure_frechet_distance(collect(features), collect(features[:1]))
    with pytest.raises(ValueError, match="expected features"):
        collect(features).add(features[:, :3])
