"""A linear basis of facial expressions, learnt from tracked people or read from a file.

A face in head space is

    landmarks = rest face + expression @ components + eye state @ eye motion.

The rest face is the person's mean face with eyes as open as usual. The eye state (openness of both eyes, gaze) moves
points of lids and irises alone; its part is fitted first, so that blinks and gaze take no expression coefficients.
Every component of a learnt basis is symmetric or antisymmetric: mirroring a face flips signs of coefficients.

The file is a safetensors file:

    components    float32 [24, P, 3], head units; see :func:`fit_components`
    eye_motion    float32 [4, P, 3]: per unit of openness of the left and right eye, gaze to the right, gaze up
    mean, std     float32 [34]: statistics of all channels of MotionCoefficients over the training people

with P = 215 points in the order of ``KEPT_POINTS``. A 3DMM basis in a file of another kind is converted by ``s3dnerf
fit-coefficients --basis``: see :func:`read_3dmm_basis`.
"""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from s3dnerf.errors import UserError
from s3dnerf.face.camera import align_similarity, load_canonical_face
from s3dnerf.face.mirror import mirror_landmarks
from s3dnerf.face.points import (
    BROW_LEFT,
    BROW_RIGHT,
    EYE_CORNERS_LEFT,
    EYE_CORNERS_RIGHT,
    EYE_LEFT,
    EYE_RIGHT,
    IRIS_LEFT,
    IRIS_RIGHT,
    KEPT_POINTS,
    LIPS_INNER,
    LIPS_OUTER,
    POINT_COUNT,
    RIGID_POINTS,
    select_points,
)
from s3dnerf.face.regions import measure_gaze
from s3dnerf.media.files import atomic_write

EXPRESSION_SIZE = 24
"""Number of expression coefficients."""
EYE_STATE_SIZE = 4
"""Openness of the left and right eye, gaze to the right, gaze up."""
CHANNEL_COUNT = EXPRESSION_SIZE + 6 + EYE_STATE_SIZE
BASIS_FILE = Path(__file__).parents[1] / "weights" / "motion" / "expression_basis.safetensors"
"""The shipped basis."""
POINTS = len(KEPT_POINTS)
SHAPES = {
    "components": (EXPRESSION_SIZE, POINTS, 3),
    "eye_motion": (EYE_STATE_SIZE, POINTS, 3),
    "mean": (CHANNEL_COUNT,),
    "std": (CHANNEL_COUNT,),
}
LIP_WEIGHT, BROW_WEIGHT, RIGID_WEIGHT = 3.0, 2.0, 0.5
"""Weights of landmarks in the least squares of expressions; 1 for all others. On the people of the split ``val``, mean
and smallest correlations with the tracked lip opening are 0.9995 and 0.998, with the height of the brows 0.9987 and
0.993. With equal weights they are 0.992 and 0.963, and 0.990 and 0.961: some components are errors of the tracker."""
MAX_CONDITION = 1e4
"""Largest condition number of components that can be told apart in float32."""
MIN_VARIANCE = 1e-12
"""Variance in squared head units that is more than rounding."""
FIT_HINT = "make one with `s3dnerf fit-coefficients`"


@dataclass(frozen=True)
class ExpressionBasis:
    """A linear basis of facial expressions with statistics of motion, all ``float32``; see the module for the model."""

    components: np.ndarray
    """``[24, P, 3]`` in head units."""
    eye_motion: np.ndarray
    """``[4, P, 3]``."""
    mean: np.ndarray
    """``[34]`` mean of each channel of ``MotionCoefficients.flatten`` over the training people."""
    std: np.ndarray
    """``[34]`` standard deviation, likewise."""

    @cached_property
    def projection(self) -> np.ndarray:
        """``float64 [P * 3, 24]`` that takes displacements to coefficients by weighted least squares."""
        weights = weigh_coordinates()
        components = self.components.reshape(EXPRESSION_SIZE, -1).astype(np.float64)
        return weights[:, None] * np.linalg.pinv(components * weights)

    @cached_property
    def mirror(self) -> np.ndarray:
        """``float32 [24, 24]`` that takes coefficients to those of the mirrored face; signs only if learnt."""
        matrix = mirror_landmarks(self.components).reshape(EXPRESSION_SIZE, -1).astype(np.float64) @ self.projection
        whole = np.round(matrix)
        return (whole if np.abs(matrix - whole).max() < 1e-4 else matrix).astype(np.float32)

    def project(self, displacements: np.ndarray, eye_state: np.ndarray) -> np.ndarray:
        """Return the coefficients ``float32 [T, 24]`` of faces.

        Args:
            displacements: ``[T, P, 3]`` from the rest face.
            eye_state: ``[T, 4]`` relative to usual eyes.
        """
        rest = displacements.reshape(len(displacements), -1) - eye_state @ self.eye_motion.reshape(EYE_STATE_SIZE, -1)
        return (rest @ self.projection).astype(np.float32)

    def displace(self, expression: np.ndarray, eye_state: np.ndarray) -> np.ndarray:
        """Return displacements ``float32 [T, P, 3]`` from the rest face; the inverse of :meth:`project`."""
        parts = np.concatenate([expression, eye_state], axis=1), np.concatenate([self.components, self.eye_motion])
        # Not by BLAS, whose threads would spin on the cores that render frames.
        return np.einsum("tk,kpc->tpc", *parts).astype(np.float32)


@cache
def load_shipped_basis() -> ExpressionBasis:
    """Return the basis of the package."""
    return load_basis(BASIS_FILE)


def load_basis(path: str | Path) -> ExpressionBasis:
    """Read a basis.

    Raises:
        UserError: the file cannot be read or holds no basis.
    """
    arrays = _read_arrays(Path(path), FIT_HINT)
    for name, shape in SHAPES.items():
        if name not in arrays:
            raise UserError(path, f"is no expression basis: it has no {name}", FIT_HINT)
        _check_array(path, name, arrays[name], shape, FIT_HINT)
    if (arrays["std"] <= 0).any():
        raise UserError(path, "has a standard deviation that is not positive", FIT_HINT)
    basis = ExpressionBasis(**{name: arrays[name].astype(np.float32) for name in SHAPES})
    _check_rank(path, basis.components, FIT_HINT)
    return basis


def save_basis(path: str | Path, basis: ExpressionBasis) -> None:
    """Write a basis; the file appears when it is complete."""
    with atomic_write(path) as part:
        part.write_bytes(save({name: np.ascontiguousarray(getattr(basis, name), np.float32) for name in SHAPES}))


def read_3dmm_basis(path: str | Path) -> np.ndarray:
    """Read the expression components of a 3DMM from an .npz or .safetensors file and convert them to head space.

    The file holds ``components`` ``[K, P, 3]`` with K of at least 24, of which the first 24 are used, and ``mean``
    ``[P, 3]``, the neutral face in the same axes and unit, with the 478 points of the face mesh (for a 3DMM, the
    vertices at their positions) or the 215 of ``KEPT_POINTS``. Rigid points of ``mean`` are aligned with the canonical
    face, and components are turned and scaled alike.

    Returns:
        ``float32 [24, 215, 3]``.

    Raises:
        UserError: the file cannot be read or has another format.
    """
    hint = f"give components [K >= {EXPRESSION_SIZE}, P, 3] and mean [P, 3] with P = {POINT_COUNT} or {POINTS}"
    arrays = _read_arrays(Path(path), hint)
    if not {"components", "mean"} <= set(arrays):
        raise UserError(path, "has no arrays named components and mean", hint)
    components, mean = arrays["components"], arrays["mean"]
    if components.ndim != 3 or len(components) < EXPRESSION_SIZE or components.shape[1] not in (POINT_COUNT, POINTS):
        raise UserError(path, f"has components of shape {list(components.shape)}", hint)
    components = components[:EXPRESSION_SIZE]
    _check_array(path, "components", components, (*components.shape[:2], 3), hint)
    _check_array(path, "mean", mean, components.shape[1:], hint)
    face = load_canonical_face()[RIGID_POINTS]
    fit = align_similarity(select_points(mean, RIGID_POINTS), face)
    moved = fit.scale * (select_points(components, KEPT_POINTS).astype(np.float64) @ fit.rotation.T)
    _check_rank(path, moved, hint)
    return moved.astype(np.float32)


def fit_eye_motion(moments: np.ndarray) -> np.ndarray:
    """Fit by least squares how lids and irises follow openness and gaze: each eye its own openness, both the gaze.

    Args:
        moments: ``float64 [P * 3 + 4, P * 3 + 4]`` second moments of displacements ``[P, 3]`` from the mean face of the
            clip and of eye states relative to its mean, over faces and their mirror images.

    Returns:
        ``float32 [4, P, 3]``.
    """
    coordinates = np.arange(POINTS * 3).reshape(POINTS, 3)
    inputs = POINTS * 3 + np.arange(EYE_STATE_SIZE)
    motion = np.zeros((EYE_STATE_SIZE, POINTS, 3))
    flat = motion.reshape(EYE_STATE_SIZE, -1)
    for numbers, states in (((*EYE_LEFT, *IRIS_LEFT), [0, 2, 3]), ((*EYE_RIGHT, *IRIS_RIGHT), [1, 2, 3])):
        moved = coordinates[np.searchsorted(KEPT_POINTS, np.array(numbers))].ravel()
        own = inputs[states]
        fitted = np.linalg.lstsq(moments[own[:, None], own], moments[own[:, None], moved], rcond=1e-9)[0]
        flat[np.array(states)[:, None], moved] = fitted
    # Gaze is unknown in blinks, so the fit falls short. Irises move exactly as the gaze says, and not with the lids.
    error = np.eye(EYE_STATE_SIZE)[:, 2:] - measure_gaze(motion)
    for iris, corners in ((IRIS_LEFT, EYE_CORNERS_LEFT), (IRIS_RIGHT, EYE_CORNERS_RIGHT)):
        width = np.linalg.norm(np.subtract(*load_canonical_face()[list(corners)]))
        motion[:, np.searchsorted(KEPT_POINTS, iris), :2] += width * error[:, None]
    mirrored = mirror_landmarks(mirror_eye_state(motion.reshape(EYE_STATE_SIZE, -1).T).T.reshape(motion.shape))
    return ((motion + mirrored) / 2).astype(np.float32)


def remove_eye_motion(moments: np.ndarray, eye_motion: np.ndarray) -> np.ndarray:
    """Return the second moments ``[P * 3, P * 3]`` of displacements without the part of the eyes.

    Args:
        moments: as for :func:`fit_eye_motion`.
        eye_motion: ``[4, P, 3]``.
    """
    size = POINTS * 3
    residual = np.concatenate([np.eye(size), -eye_motion.reshape(EYE_STATE_SIZE, size)])
    return residual.T @ moments @ residual


def fit_components(covariance: np.ndarray, eye_motion: np.ndarray) -> np.ndarray:
    """Fit the principal components of weighted displacements.

    Args:
        covariance: ``float64 [P * 3, P * 3]`` of displacements, over faces and their mirror images.
        eye_motion: ``[4, P, 3]``.

    Returns:
        Components ``float32 [24, P, 3]`` that leave the gaze unchanged, symmetric or antisymmetric, orthonormal if
        weighted by :func:`weigh_coordinates`, by decreasing variance.

    Raises:
        ValueError: expressions have fewer dimensions.
    """
    size, weights = POINTS * 3, weigh_coordinates()
    gaze = measure_gaze(np.eye(size).reshape(size, POINTS, 3))
    without_gaze = np.eye(size) - gaze @ eye_motion[2:].reshape(2, size)
    covariance = without_gaze.T @ covariance @ without_gaze
    covariance = weights[:, None] * covariance * weights
    mirror = mirror_landmarks(np.eye(size).reshape(size, POINTS, 3)).reshape(size, size)
    values, vectors = [], []
    for sign in (1.0, -1.0):
        # Faces that mirroring leaves as they are, or negates, have an orthonormal basis of their own.
        parity, space = np.linalg.eigh(sign * mirror)
        space = space[:, parity > 0]
        value, vector = np.linalg.eigh(space.T @ covariance @ space)
        vector = space @ vector
        values.append(value)
        vectors.append((vector + sign * mirror @ vector) / 2)
    variance, components = np.concatenate(values), np.concatenate(vectors, axis=1).T
    order = np.argsort(-variance, kind="stable")[:EXPRESSION_SIZE]
    if variance[order[-1]] <= MIN_VARIANCE:
        raise ValueError(f"expressions vary in fewer than {EXPRESSION_SIZE} dimensions")
    components = components[order] / weights
    largest = np.take_along_axis(components, np.abs(components).argmax(axis=1)[:, None], axis=1)
    return (components * np.sign(largest)).reshape(-1, POINTS, 3).astype(np.float32)


def weigh_coordinates() -> np.ndarray:
    """Return the weight of each coordinate of the landmarks in the least squares of expressions, ``[P * 3]``."""
    weights = np.ones(POINT_COUNT)
    weights[RIGID_POINTS] = RIGID_WEIGHT
    weights[[*BROW_LEFT, *BROW_RIGHT]] = BROW_WEIGHT
    weights[[*LIPS_OUTER, *LIPS_INNER]] = LIP_WEIGHT
    return np.repeat(weights[KEPT_POINTS], 3)


def mirror_eye_state(state: np.ndarray) -> np.ndarray:
    """Mirror eye states ``[T, 4]``: eyes change sides, and gaze to the right changes sign."""
    return state[:, [1, 0, 2, 3]] * np.array([1, 1, -1, 1], np.float32)


def _read_arrays(path: Path, hint: str) -> dict[str, np.ndarray]:
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as stored:
                return {name: stored[name] for name in stored.files}
        return load_file(path)
    except OSError as error:
        raise UserError(path, f"cannot be read ({error.strerror or error})", hint) from error
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise UserError(path, f"is no file of arrays ({reason})", hint) from error


def _check_array(path: str | Path, name: str, array: np.ndarray, shape: tuple[int, ...], hint: str) -> None:
    if array.shape != shape:
        raise UserError(path, f"has {name} of shape {list(array.shape)} instead of {list(shape)}", hint)
    if not np.issubdtype(array.dtype, np.floating) or not np.isfinite(array).all():
        raise UserError(path, f"has values in {name} that are no finite numbers", hint)


def _check_rank(path: str | Path, components: np.ndarray, hint: str) -> None:
    if np.linalg.cond(components.reshape(len(components), -1).astype(np.float64)) > MAX_CONDITION:
        raise UserError(path, "has components that depend on each other", hint)
