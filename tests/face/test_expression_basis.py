"""The file of an expression basis: round trip, a 3DMM basis in its place, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from scipy.spatial.transform import Rotation

from s3dnerf.errors import UserError
from s3dnerf.face.camera import load_canonical_face
from s3dnerf.face.expression_basis import (
    BASIS_FILE,
    SHAPES,
    ExpressionBasis,
    load_basis,
    load_shipped_basis,
    read_3dmm_basis,
    save_basis,
    weigh_coordinates,
)
from s3dnerf.face.points import KEPT_POINTS


def read_arrays() -> dict[str, np.ndarray]:
    return {name: getattr(load_shipped_basis(), name).copy() for name in SHAPES}


def test_shipped_basis_is_small_and_orthonormal_in_its_weights() -> None:
    assert BASIS_FILE.stat().st_size < 200_000
    basis = load_shipped_basis()
    weighted = basis.components.reshape(24, -1) * weigh_coordinates()
    np.testing.assert_allclose(weighted @ weighted.T, np.eye(24), atol=1e-5)
    assert (np.diff(basis.std[:24]) <= 1e-6).all()


def test_statistics_agree_with_mirrored_motion() -> None:
    basis = load_shipped_basis()
    np.testing.assert_allclose(basis.mean[:24], 0, atol=1e-6)
    # Yaw, roll, shift to the right and gaze to the right have no side.
    np.testing.assert_allclose(basis.mean[[25, 26, 27, 32]], 0, atol=1e-6)
    assert basis.std[30] == pytest.approx(basis.std[31], rel=1e-5)


def test_file_is_a_round_trip(tmp_path: Path) -> None:
    save_basis(tmp_path / "basis.safetensors", load_shipped_basis())
    again = load_basis(tmp_path / "basis.safetensors")
    for name in SHAPES:
        np.testing.assert_array_equal(getattr(again, name), getattr(load_shipped_basis(), name))


def write_broken(path: Path, fault: str) -> None:
    arrays = read_arrays()
    if fault == "garbage":
        path.write_bytes(b"no tensors\n" * 20)
        return
    if fault == "empty":
        path.write_bytes(b"")
        return
    if fault == "cut":
        path.write_bytes(BASIS_FILE.read_bytes()[:5000])
        return
    if fault == "missing array":
        del arrays["eye_motion"]
    elif fault == "shape":
        arrays["components"] = arrays["components"][:20]
    elif fault == "NaN":
        arrays["components"][3, 4, 1] = np.nan
    elif fault == "whole numbers":
        arrays["mean"] = arrays["mean"].astype(np.int32)
    elif fault == "std":
        arrays["std"][7] = 0.0
    elif fault == "rank":
        arrays["components"][5] = arrays["components"][4]
    save_file(arrays, path)


@pytest.mark.parametrize(
    "fault", ["garbage", "empty", "cut", "missing array", "shape", "NaN", "whole numbers", "std", "rank"]
)
def test_broken_basis_is_refused_in_one_line(tmp_path: Path, fault: str) -> None:
    path = tmp_path / "basis.safetensors"
    write_broken(path, fault)
    with pytest.raises(UserError) as caught:
        load_basis(path)
    assert "\n" not in str(caught.value) and "basis.safetensors" in str(caught.value)


def test_missing_basis_and_folder_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.safetensors", tmp_path, tmp_path / "none.npz"):
        with pytest.raises(UserError) as caught:
            load_basis(path)
        assert "\n" not in str(caught.value)


def make_3dmm(rotation: Rotation, scale: float, count: int = 30) -> dict[str, np.ndarray]:
    """Components like the shipped ones in other axes and another unit, as many as ``count``, of all mesh points."""
    rng = np.random.default_rng(0)
    components = 0.01 * rng.standard_normal((count, 478, 3))
    components[:24, KEPT_POINTS] = load_shipped_basis().components
    return {
        "components": (components @ rotation.as_matrix().T * scale).astype(np.float32),
        "mean": (load_canonical_face() @ rotation.as_matrix().T * scale + 3.0).astype(np.float32),
    }


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_3dmm_is_converted_to_head_space(tmp_path: Path, suffix: str) -> None:
    arrays = make_3dmm(Rotation.from_euler("xy", [np.pi, 0.3]), 140.0)
    path = tmp_path / f"3dmm{suffix}"
    np.savez(path, **arrays) if suffix == ".npz" else save_file(arrays, path)
    components = read_3dmm_basis(path)
    np.testing.assert_allclose(components, load_shipped_basis().components, atol=1e-5)


def test_basis_without_symmetry_is_mirrored_by_least_squares() -> None:
    shipped = load_shipped_basis()
    mix = np.linalg.qr(np.random.default_rng(1).standard_normal((24, 24)))[0]
    mixed = ExpressionBasis(
        np.tensordot(mix, shipped.components, 1).astype(np.float32), shipped.eye_motion, shipped.mean, shipped.std
    )
    expression = np.random.default_rng(2).standard_normal((4, 24)).astype(np.float32)
    still = np.zeros((4, 4), np.float32)
    np.testing.assert_allclose(mixed.project(mixed.displace(expression, still), still), expression, atol=1e-4)
    np.testing.assert_allclose(
        mixed.displace(expression @ mixed.mirror, still),
        shipped.displace(expression @ mix.astype(np.float32) @ shipped.mirror, still),
        atol=1e-4,
    )


@pytest.mark.parametrize("fault", ["names", "too few", "points", "NaN", "rank", "dimensions"])
def test_broken_3dmm_is_refused_in_one_line(tmp_path: Path, fault: str) -> None:
    arrays = make_3dmm(Rotation.identity(), 1.0)
    if fault == "names":
        arrays = {"basis": arrays["components"]}
    elif fault == "too few":
        arrays["components"] = arrays["components"][:23]
    elif fault == "points":
        arrays = {"components": arrays["components"][:, :400], "mean": arrays["mean"][:400]}
    elif fault == "NaN":
        arrays["mean"][0] = np.inf
    elif fault == "rank":
        arrays["components"][1] = 0.0
    else:
        arrays["components"] = arrays["components"].reshape(30, -1)
    np.savez(tmp_path / "3dmm.npz", **arrays)
    with pytest.raises(UserError) as caught:
        read_3dmm_basis(tmp_path / "3dmm.npz")
    assert "\n" not in str(caught.value)
