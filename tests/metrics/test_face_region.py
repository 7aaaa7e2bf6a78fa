"""The face region: a hull of known area, and frames without a face."""

import numpy as np
import pytest

from s3dnerf.metrics import draw_face_region


def test_the_region_is_the_hull_of_the_points() -> None:
    points = np.array([[[3.0, 2.0], [9.0, 2.0], [9.0, 12.0], [3.0, 12.0], [6.0, 7.0]]])
    region = draw_face_region(points, (20, 16))
    expected = np.zeros((1, 20, 16), bool)
    expected[0, 2:13, 3:10] = True
    np.testing.assert_array_equal(region, expected)


def test_a_face_may_reach_beyond_the_frame() -> None:
    region = draw_face_region(np.array([[[-50.0, -50.0], [100.0, -50.0], [-50.0, 100.0]]]), (10, 12))
    assert region[0].sum() == 120
    region = draw_face_region(np.array([[[-50.0, -50.0], [5.0, -50.0], [5.0, 100.0], [-50.0, 100.0]]]), (10, 12))
    np.testing.assert_array_equal(region[0].any(axis=0), np.arange(12) <= 5)


def test_frames_without_a_face_have_no_region() -> None:
    points = np.full((3, 5, 2), np.nan)
    points[1, :3] = [[2, 2], [8, 2], [2, 8]]
    points[2, :2] = [[2, 2], [8, 2]]
    assert draw_face_region(points, (10, 10)).any(axis=(1, 2)).tolist() == [False, True, False]
    with pytest.raises(ValueError, match="landmarks"):
        draw_face_region(points[0], (10, 10))
