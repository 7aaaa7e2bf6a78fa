"""Windows of images: equal at every level of a pyramid, black beyond the image, rotated."""

from __future__ import annotations

import cv2
import numpy as np

from s3dnerf.face.pyramid import Window, build_pyramid, crop_from_pyramid


def test_crop_does_not_depend_on_the_pyramid_level() -> None:
    rng = np.random.default_rng(0)
    image = cv2.GaussianBlur(rng.integers(0, 256, (3200, 4000, 3), dtype=np.uint8), (0, 0), 12)
    image = cv2.normalize(image, None, 0, 255, cv2.NORM_MINMAX)
    window = Window(np.array([300.0, 200.0]) + 192 * 8.0, 384 * 8.0)
    levels = build_pyramid(image)
    assert [level.shape[:2] for level in levels] == [(3200, 4000), (1600, 2000), (800, 1000), (400, 500)]
    direct, reduced = (crop_from_pyramid(pyramid, window, 384).astype(int) for pyramid in ([image], levels))
    assert np.abs(direct - reduced).mean() < 0.5 and np.abs(direct - reduced).max() <= 6


def test_window_is_black_beyond_the_image() -> None:
    image = np.full((100, 100, 3), 200, np.uint8)
    cut = crop_from_pyramid(build_pyramid(image), Window(np.array([50.0, 50.0]), 300.0), 96)
    assert cut[:30].max() == 0 and cut[-30:].max() == 0 and cut[48, 48].min() > 195


def test_window_rolled_by_a_quarter_is_the_rotated_crop() -> None:
    image = np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)
    cut = crop_from_pyramid([image], Window(np.array([48.0, 48.0]), 96.0, np.pi / 2), 96)
    assert np.abs(cut.astype(int) - np.rot90(image)).max() <= 1
