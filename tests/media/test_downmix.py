"""Downmixing by the role of each channel."""

from __future__ import annotations

import numpy as np
import pytest

from s3dnerf.media.downmix import StereoStatistics, downmix_matrix


def test_five_one_by_hand() -> None:
    names = ("FL", "FR", "FC", "LFE", "BL", "BR")
    half = np.sqrt(0.5)
    np.testing.assert_allclose(downmix_matrix(names, 1), [[0.5, 0.5, 1, 0, 0.25, 0.25]])
    np.testing.assert_allclose(
        downmix_matrix(names, 2), [[1, 0, half, 0, half, 0], [0, 1, half, 0, 0, half]], rtol=1e-6
    )


def test_unknown_layouts_are_averaged() -> None:
    np.testing.assert_allclose(downmix_matrix(("NONE",) * 4, 1), np.full((1, 4), 0.25))
    np.testing.assert_allclose(downmix_matrix(("FL", "FR"), 2), np.eye(2))


@pytest.mark.parametrize(
    ("mix", "expected"),
    [
        ([[1, 0], [1, 0]], (0.5, 0.5)),
        ([[1, 0], [-1, 0]], (0.5, -0.5)),
        ([[1, 0], [-0.8, 0.1]], (0.5, -0.5)),
        ([[1, 0], [0, 1]], (0.5, 0.5)),
        ([[1, 0], [0.001, 0]], (1.0, 0.0)),
        ([[0, 0], [1, 0]], (0.0, 1.0)),
        ([[0, 0], [0, 0]], (0.5, 0.5)),
    ],
)
def test_weights_of_two_channels(mix: list[list[float]], expected: tuple[float, float]) -> None:
    sources = np.random.default_rng(0).standard_normal((2, 20000)).astype(np.float32)
    statistics = StereoStatistics()
    for block in np.split(np.array(mix, np.float32) @ sources, 10, axis=1):
        statistics.add(block)
    np.testing.assert_array_equal(statistics.choose_weights(), [expected])
