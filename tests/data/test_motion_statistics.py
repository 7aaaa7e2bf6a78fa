"""The command `fit-coefficients`: what it fits, to whom, and what it refuses."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from s3dnerf import cli
from s3dnerf.data.clips import open_clips
from s3dnerf.data.motion_statistics import fit_motion_basis, measure_basis, weigh_clips
from s3dnerf.errors import UserError
from s3dnerf.face.camera import load_canonical_face
from s3dnerf.face.coefficients import compute_coefficients
from s3dnerf.face.expression_basis import load_basis, load_shipped_basis
from s3dnerf.face.points import KEPT_POINTS

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def clips(drawn_clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the cartoon clips, since an index is written beside them."""
    return shutil.copytree(drawn_clips, tmp_path_factory.mktemp("motion") / "clips")


def test_basis_describes_the_people_and_leaves_val_out(
    clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "basis.safetensors"
    assert cli.main(["fit-coefficients", "--clips", str(clips), "--out", str(out)]) == 0
    assert "2 people, 3 clips" in capsys.readouterr().out
    basis = load_basis(out)
    quality = measure_basis(clips, "val", basis)
    assert quality is not None and quality.people == 1
    assert quality.lip_correlation > 0.99
    assert measure_basis(clips, "test", basis) is None

    train_alone = shutil.copytree(clips, tmp_path / "train")
    shutil.rmtree(train_alone / "cid_0")
    np.testing.assert_array_equal(fit_motion_basis(train_alone).basis.components, basis.components)


def test_people_weigh_the_same(clips: Path) -> None:
    opened = open_clips(clips, "train")
    weights, frames = weigh_clips(opened), opened.index.valid
    totals = [(weights * frames)[opened.index.person == name].sum() for name in np.unique(opened.index.person)]
    np.testing.assert_allclose(totals, 0.5)


def test_statistics_are_those_of_the_coefficients(clips: Path) -> None:
    basis = fit_motion_basis(clips, load_shipped_basis().components).basis
    np.testing.assert_array_equal(basis.components, load_shipped_basis().components)
    opened = open_clips(clips, "train")
    sides, weights = [], []
    for row, weight in enumerate(weigh_clips(opened)):
        coefficients = compute_coefficients(opened.load_track(row), basis=basis)
        for side in (coefficients, coefficients.mirror(basis)):
            sides.append(side.flatten())
            weights.append(np.full(len(side), weight / 2))
    values, share = np.concatenate(sides), np.concatenate(weights)
    mean = np.average(values, axis=0, weights=share)
    std = np.sqrt(np.average(np.square(values - mean), axis=0, weights=share))
    np.testing.assert_allclose(basis.mean, mean, atol=1e-5)
    np.testing.assert_allclose(basis.std, np.maximum(std, 1e-4), rtol=0.01, atol=1e-5)


def test_3dmm_file_takes_the_place_of_learnt_components(clips: Path, tmp_path: Path) -> None:
    components = load_shipped_basis().components
    file, out = tmp_path / "3dmm.npz", tmp_path / "basis.safetensors"
    np.savez(file, components=50 * components, mean=50 * load_canonical_face()[KEPT_POINTS])
    words = ["--clips", str(clips), "--basis", str(file), "--out", str(out)]
    assert cli.main(["fit-coefficients", *words]) == 0
    np.testing.assert_allclose(load_basis(out).components, components, atol=1e-5)
    assert cli.main(["fit-coefficients", *words[:-1], str(file)]) == 2


def test_folder_without_train_clips_is_refused(clips: Path, tmp_path: Path) -> None:
    shutil.copytree(clips / "cid_0", tmp_path / "cid_0")
    with pytest.raises(UserError):
        fit_motion_basis(tmp_path)
