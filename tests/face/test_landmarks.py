"""Coordinates of landmarks."""

from __future__ import annotations

import numpy as np
import pytest

from s3dnerf.face.landmarks import from_pixels, to_pixels


def test_pixels_by_hand() -> None:
    # In an image of 200 x 100 (width x height), the center of the first pixel is half a pixel from the edge.
    points = np.array([[-1, -1, 0], [0, 0, 0.5], [1, 1, -1]], np.float32)
    pixels = to_pixels(points, (100, 200))
    assert pixels == pytest.approx(np.array([[-0.5, -0.5, 0], [99.5, 49.5, 50], [199.5, 99.5, -100]]))
    assert from_pixels(pixels, (100, 200)) == pytest.approx(points, abs=1e-6)
