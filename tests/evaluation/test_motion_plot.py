"""Plots of head poses."""

from __future__ import annotations

import numpy as np

from s3dnerf.evaluation.motion_plot import FOOTER, HEADER, LEFT, RIGHT, STRIP, WIDTH, draw_pose_curves


def find_changed_rows(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the lines of pixels in which two plots differ."""
    return np.flatnonzero((first != second).any(axis=(1, 2)))


def test_each_row_has_a_strip() -> None:
    time = np.arange(100)[:, None] / 25
    pose = np.radians(4.0) * np.sin(time * np.arange(1, 7))
    still = pose * 0
    plot = draw_pose_curves({"real": still, "ours": pose})
    assert plot.shape == (HEADER + 2 * STRIP + FOOTER, WIDTH, 3) and plot.dtype == np.uint8
    changed = find_changed_rows(plot, draw_pose_curves({"real": still, "ours": still}))
    assert changed.min() > HEADER + STRIP and changed.max() < HEADER + 2 * STRIP
    assert draw_pose_curves({"real": still}, np.zeros(100)).shape[0] == plot.shape[0]


def test_strips_share_a_scale_that_holds_the_largest_turn() -> None:
    large = np.zeros((50, 6))
    large[:, 1] = np.radians(np.linspace(-20, 20, 50))
    plots = [draw_pose_curves({"real": large, "ours": large * share}) for share in (0.0, 0.5, 1.0)]
    heights = [np.ptp(find_changed_rows(plots[0], plot)) for plot in plots[1:]]
    assert heights[1] > 0.85 * STRIP
    assert abs(heights[0] - heights[1] / 2) <= 3


def test_loud_speech_fills_the_last_strip() -> None:
    pose, level = np.zeros((100, 6)), np.full(100, -60.0)
    level[50:] = 0.0
    strip = draw_pose_curves({"real": pose}, level)[HEADER + STRIP + 20 : HEADER + 2 * STRIP - 8, :, 0]
    half = LEFT + (WIDTH - LEFT - RIGHT) // 2
    assert (strip[:, half + 10 : WIDTH - RIGHT] < 230).mean() > 0.99
    assert (strip[:, LEFT : half - 10] < 230).mean() < 0.05
