"""Rotations against scipy, at all angles and near those at which formulas break down."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from s3dnerf.face.rotation import average_rotations, matrix_to_rotvec, rotvec_to_matrix

ANGLES = (0.0, 1e-300, 1e-12, 1e-7, 1e-3, 0.5, 1.5, 3.0, np.pi - 1e-7, np.pi)


def draw_rotvecs(angle: float) -> np.ndarray:
    """Return vectors ``[9, 3]`` of one length, among them the axes."""
    directions = np.random.default_rng(0).standard_normal((6, 3))
    directions = np.concatenate([directions / np.linalg.norm(directions, axis=1, keepdims=True), np.eye(3)])
    return angle * directions


@pytest.mark.parametrize("angle", [*ANGLES, 4.0, 7.0])
def test_matrices_are_those_of_scipy(angle: float) -> None:
    rotvecs = draw_rotvecs(angle)
    matrices = rotvec_to_matrix(rotvecs)
    assert matrices.dtype == np.float64
    np.testing.assert_allclose(matrices, Rotation.from_rotvec(rotvecs).as_matrix(), atol=1e-15)
    np.testing.assert_array_equal(rotvec_to_matrix(rotvecs[3]), matrices[3])
    np.testing.assert_array_equal(rotvec_to_matrix(rotvecs.reshape(3, 3, 3)), matrices.reshape(3, 3, 3, 3))


@pytest.mark.parametrize("angle", ANGLES)
def test_vectors_come_back(angle: float) -> None:
    rotvecs = draw_rotvecs(angle)
    found = matrix_to_rotvec(rotvec_to_matrix(rotvecs))
    # At a half turn, both directions are right.
    sign = np.sign(np.sum(found * rotvecs, axis=1, keepdims=True)) if angle == np.pi else 1.0
    np.testing.assert_allclose(sign * found, rotvecs, rtol=1e-9, atol=1e-15)


def test_vectors_of_any_matrix_are_those_of_scipy() -> None:
    matrices = Rotation.random(500, rng=np.random.default_rng(1)).as_matrix()
    np.testing.assert_allclose(matrix_to_rotvec(matrices), Rotation.from_matrix(matrices).as_rotvec(), atol=1e-12)
    # Stored poses are rounded to float32.
    rounded = matrix_to_rotvec(matrices.astype(np.float32))
    np.testing.assert_allclose(rotvec_to_matrix(rounded), matrices, atol=1e-6)
    np.testing.assert_array_equal(matrix_to_rotvec(matrices[7]), matrix_to_rotvec(matrices)[7])
    assert matrix_to_rotvec(matrices[:0]).shape == (0, 3)


def test_the_mean_is_that_of_scipy() -> None:
    rng = np.random.default_rng(2)
    rotations = Rotation.from_rotvec([0.3, 2.0, -0.4]) * Rotation.from_rotvec(0.5 * rng.standard_normal((20, 3)))
    mean = average_rotations(rotations.as_matrix())
    np.testing.assert_allclose(mean, rotations.mean().as_matrix(), atol=1e-12)
    one = rotvec_to_matrix(np.array([3.1, 0.0, 0.2]))
    np.testing.assert_allclose(average_rotations(one[None]), one, atol=1e-14)
