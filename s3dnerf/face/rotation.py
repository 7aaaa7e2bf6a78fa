"""Rotation matrices and rotation vectors in float64.

``scipy.spatial.transform`` has the same, but importing it would delay the first frame, which needs nothing else of it.
"""

from __future__ import annotations

import numpy as np


def rotvec_to_matrix(rotvec: np.ndarray) -> np.ndarray:
    """Return the matrices ``float64 [..., 3, 3]`` of rotation vectors ``[..., 3]`` in radians (Rodrigues' formula).

    >>> rotvec_to_matrix(np.array([0.0, 0.0, np.pi / 2])).round(6) + 0.0
    array([[ 0., -1.,  0.],
           [ 1.,  0.,  0.],
           [ 0.,  0.,  1.]])
    """
    rotvec = np.asarray(rotvec, np.float64)
    # np.sinc(x) is sin(pi x) / (pi x), also at 0.
    turns = np.linalg.norm(rotvec, axis=-1)[..., None, None] / np.pi
    x, y, z = np.moveaxis(rotvec, -1, 0)
    zero = np.zeros_like(x)
    cross = np.stack([zero, -z, y, z, zero, -x, -y, x, zero], axis=-1).reshape(*rotvec.shape, 3)
    return np.eye(3) + np.sinc(turns) * cross + 0.5 * np.sinc(turns / 2) ** 2 * (cross @ cross)


def matrix_to_rotvec(matrix: np.ndarray) -> np.ndarray:
    """Return the rotation vectors ``float64 [..., 3]`` of matrices ``[..., 3, 3]``, with angles of at most pi.

    Matrices are not checked: those of reflections have no such vector.

    >>> matrix_to_rotvec(np.diag([-1.0, 1.0, -1.0])).round(6)
    array([0.      , 3.141593, 0.      ])
    """
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = np.moveaxis(np.asarray(matrix, np.float64), (-2, -1), (0, 1))
    # Four times the products of the components of the quaternion (w, x, y, z), see Diebel (2006), "Representing
    # attitude". Each row is a multiple of the quaternion, and the one with the largest diagonal is the most accurate.
    rows = (
        (1 + xx + yy + zz, zy - yz, xz - zx, yx - xy),
        (zy - yz, 1 + xx - yy - zz, xy + yx, xz + zx),
        (xz - zx, xy + yx, 1 - xx + yy - zz, yz + zy),
        (yx - xy, xz + zx, yz + zy, 1 - xx - yy + zz),
    )
    products = np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)
    largest = products.diagonal(axis1=-2, axis2=-1).argmax(axis=-1)
    quaternion = np.take_along_axis(products, largest[..., None, None], axis=-2)[..., 0, :]
    # Both signs are the same rotation; a positive w is the shorter one.
    quaternion = quaternion * np.where(quaternion[..., :1] < 0.0, -1.0, 1.0)
    vector = quaternion[..., 1:]
    half_angle = np.arctan2(np.linalg.norm(vector, axis=-1, keepdims=True), quaternion[..., :1])
    length = np.linalg.norm(quaternion, axis=-1, keepdims=True)
    # The vector is the axis times sin(half_angle).
    return 2.0 * vector / (length * np.sinc(half_angle / np.pi))


def average_rotations(matrices: np.ndarray) -> np.ndarray:
    """Return the mean ``float64 [3, 3]`` of rotation matrices ``[T, 3, 3]``: the one nearest to all in the L2 norm.

    It is the rotation that the sum of the matrices projects to, see Hartley et al. (2013), "Rotation averaging".
    """
    left, _, right = np.linalg.svd(np.asarray(matrices, np.float64).sum(axis=0))
    sign = np.sign(np.linalg.det(left @ right))
    return left @ np.diag([1.0, 1.0, sign]) @ right
