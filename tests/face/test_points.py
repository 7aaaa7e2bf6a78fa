"""The landmark groups, and selection of points from full and kept landmarks."""

from __future__ import annotations

import numpy as np
import pytest

from s3dnerf.face import points
from s3dnerf.face.points import KEPT_POINTS, POINT_COUNT, RIGID_POINTS, select_points, spread_points


def test_kept_points_contain_every_outline() -> None:
    assert np.array_equal(KEPT_POINTS, np.unique(KEPT_POINTS))
    assert KEPT_POINTS.min() >= 0 and KEPT_POINTS.max() < POINT_COUNT
    assert 150 <= len(KEPT_POINTS) <= 230
    names = ("LIPS_OUTER", "LIPS_INNER", "EYE_LEFT", "EYE_RIGHT", "BROW_LEFT", "BROW_RIGHT", "FACE_OVAL")
    for name in (*names, "IRIS_LEFT", "IRIS_RIGHT", "NOSE_RIDGE", "RIGID_POINTS"):
        assert np.isin(getattr(points, name), KEPT_POINTS).all(), name


@pytest.mark.parametrize(
    ("names", "count"),
    [
        (("LIPS_OUTER", "LIPS_INNER"), 40),
        (("EYE_LEFT", "EYE_RIGHT"), 32),
        (("IRIS_LEFT", "IRIS_RIGHT"), 10),
        (("BROW_LEFT", "BROW_RIGHT"), 20),
        (("FACE_OVAL",), 36),
    ],
)
def test_outlines_have_each_point_once(names: tuple[str, ...], count: int) -> None:
    numbers = np.concatenate([getattr(points, name) for name in names])
    assert len(numbers) == len(np.unique(numbers)) == count


def test_rigid_points_are_not_on_moving_parts() -> None:
    moving = (*points.LIPS_OUTER, *points.LIPS_INNER, *points.BROW_LEFT, *points.BROW_RIGHT, 152, 148, 377)
    assert not np.isin(RIGID_POINTS, moving).any()
    assert len(RIGID_POINTS) == len(np.unique(RIGID_POINTS))


def test_select_points_agrees_on_full_and_kept_landmarks() -> None:
    full = np.random.default_rng(0).normal(size=(3, POINT_COUNT, 3))
    numbers = (291, 0, 477, 33)
    assert np.array_equal(select_points(full, numbers), full[:, [291, 0, 477, 33]])
    assert np.array_equal(select_points(full[:, KEPT_POINTS], numbers), full[:, [291, 0, 477, 33]])


def test_select_points_raises_for_missing_points() -> None:
    absent = int(np.setdiff1d(np.arange(POINT_COUNT), KEPT_POINTS)[0])
    with pytest.raises(ValueError, match=str(absent)):
        select_points(np.zeros((len(KEPT_POINTS), 3)), (0, absent))
    with pytest.raises(ValueError, match="got 100"):
        select_points(np.zeros((100, 3)), (0,))


def test_kept_points_are_spread_to_their_numbers() -> None:
    kept = np.random.default_rng(0).normal(size=(2, len(KEPT_POINTS), 3)).astype(np.float32)
    mesh = spread_points(kept)
    assert mesh.shape == (2, POINT_COUNT, 3) and mesh.dtype == np.float32
    np.testing.assert_array_equal(select_points(mesh, KEPT_POINTS), kept)
    assert np.isnan(mesh).all(axis=2).sum() == 2 * (POINT_COUNT - len(KEPT_POINTS))
    with pytest.raises(ValueError, match="landmarks"):
        spread_points(mesh)
