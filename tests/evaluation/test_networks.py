import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from s3dnerf import cli
from s3dnerf.errors import UserError
from s3dnerf.evaluation import EvaluationReport, evaluate_clips
from s3dnerf.evaluation.score import RealClips, score_videos
from s3dnerf.evaluation.score_jobs import ScoreSettings
from s3dnerf.evaluation.weights_folder import NEEDED_FILES, WEIGHTS_FILES, find_weights
from s3dnerf.metrics.identity import DEPTHS, IResNet
from s3dnerf.metrics.inception import FIDInception
from s3dnerf.metrics.lpips import LPIPS
from s3dnerf.metrics.syncnet import SyncNet

FRAMES = 6


@pytest.fixture(scope="module")
def weights_folder(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Path:
    """Networks of random weights in the public layouts, without VGG-16."""
    folder = tmp_path_factory.mktemp("weights")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        lpips = LPIPS("alex")
        heads = {f"lin{n}.model.1.weight": head.weight.abs() for n, head in enumerate(lpips.heads)}
        save(folder / "lpips_alex.pth", heads)
        save(folder / "alexnet.pth", lpips.features, "features.")
        save(folder / "arcface.safetensors", IResNet(DEPTHS["iresnet50"]))
        save(folder / "inception.safetensors", FIDInception())
        save(folder / "syncnet_v2.model", SyncNet())
    return folder


def save(path: Path, network: nn.Module | dict[str, Tensor], prefix: str = "") -> None:
    state = network.state_dict() if isinstance(network, nn.Module) else network
    # Half precision, for the sake of the disk.
    state = {prefix + name: value.detach().half() for name, value in state.items() if "num_batches" not in name}
    save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)


ROWS = ("ground_truth", "unmoved_portrait")


@pytest.fixture(scope="module")
def evaluated(
    astronaut_clips: Path, weights_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[EvaluationReport, Path]:
    out = tmp_path_factory.mktemp("compared")
    return evaluate_clips(astronaut_clips, out, max_frames=FRAMES, rows=ROWS, weights_folder=weights_folder), out


@pytest.fixture(scope="module")
def report(evaluated: tuple[EvaluationReport, Path]) -> EvaluationReport:
    return evaluated[0]


def test_a_resumed_evaluation_has_the_features_of_what_was_finished(
    evaluated: tuple[EvaluationReport, Path],
    astronaut_clips: Path,
    weights_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("s3dnerf.evaluation.evaluate.ClipJob", None)
    options = {"max_frames": FRAMES, "weights_folder": weights_folder, "resume": True}
    again = evaluate_clips(astronaut_clips, evaluated[1], rows=ROWS[::-1], **options)
    assert again.fid == evaluated[0].fid
    for row in ROWS:
        scores = (report.clips[row]["astronaut"].as_dict() for report in (again, evaluated[0]))
        np.testing.assert_equal(*scores)


def test_scores_of_networks_are_in_the_table(report):
    real, still = (report.means[row] for row in ("ground_truth", "unmoved_portrait"))
    assert 0 < real.lpips < 0.5 * still.lpips
    assert 0 <= real.fid < still.fid
    assert still.csim < real.csim <= 1.0
    for scores in (real, still):
        assert np.isfinite([scores.lse_c, scores.lse_d]).all()
        assert scores.lse_d > 0
    assert real.lse_d != still.lse_d
    assert report.clips["ground_truth"]["astronaut"].fid is None


def test_scores_without_weights_are_not_measured(report):
    assert report.means["ground_truth"].lpips_vgg is None
    assert report.missing == {"lpips_vgg": "vgg16.pth and lpips_vgg.pth not in the weights folder"}
    assert not [line for line in report.format_table().splitlines() if "LPIPS-VGG" in line]
    assert report.format_missing().startswith("not measured: LPIPS-VGG")


def test_weights_are_found_by_their_names(tmp_path):
    found = find_weights(None)
    assert found.paths == {}
    assert found.missing["lse_d"] == "no weights folder named; needs syncnet_v2.model"
    for name in ("alexnet.safetensors", "lpips_alex.pth", "vgg16.pth"):
        (tmp_path / name).touch()
    found = find_weights(tmp_path)
    assert found.paths == {"lpips": (tmp_path / "alexnet.safetensors", tmp_path / "lpips_alex.pth")}
    assert found.missing["lpips_vgg"] == "lpips_vgg.pth not in the weights folder"
    with pytest.raises(UserError, match="no such folder"):
        find_weights(tmp_path / "missing")


def test_a_wrong_file_is_an_error_before_anything_is_measured(astronaut_clips, weights_folder, tmp_path):
    (tmp_path / "arcface.pth").write_bytes((weights_folder / "lpips_alex.pth").read_bytes())
    with pytest.raises(UserError, match=r"arcface\.pth: is neither iresnet50 nor iresnet100"):
        evaluate_clips(astronaut_clips, tmp_path / "out", rows=("ground_truth",), weights_folder=tmp_path)
    assert not (tmp_path / "out").exists()


def test_help_lists_every_file(capsys):
    with pytest.raises(SystemExit):
        cli.main(["evaluate", "--help"])
    text = capsys.readouterr().out
    assert all(name in text for name in WEIGHTS_FILES)
    assert set(WEIGHTS_FILES) == {name for names in NEEDED_FILES.values() for name in names}


def test_score_measures_by_networks_and_keeps_their_features(
    astronaut_clips: Path, weights_folder: Path, tmp_path: Path
) -> None:
    clips = tmp_path / "clips"
    clips.mkdir()
    shutil.copy(astronaut_clips / "astronaut.mp4", clips)
    settings = ScoreSettings(max_frames=FRAMES, weights_folder=str(weights_folder))
    arguments = clips, RealClips(astronaut_clips), tmp_path / "out", (), settings, 1
    report = score_videos(*arguments)
    scores = report.scores["clips"]["astronaut"]
    assert scores["lpips"] == pytest.approx(0.0, abs=1e-4) and scores["csim"] == pytest.approx(1.0, abs=1e-4)
    assert scores["lpips_vgg"] is None and "vgg16.pth" in report.missing["lpips_vgg"]
    assert np.isfinite([scores["lse_c"], report.scores["real"]["astronaut"]["lse_d"]]).all()
    assert report.estimate("clips")["fid"][0] == pytest.approx(0.0, abs=1e-3)
    assert score_videos(*arguments).estimate("clips")["fid"] == report.estimate("clips")["fid"]
