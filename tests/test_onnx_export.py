"""Export to ONNX: frames of onnxruntime are those of the reference operators, for any portrait, motion and pose."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from s3dnerf import cli, onnx_export
from s3dnerf.data.batch import Batch
from s3dnerf.errors import UserError
from s3dnerf.evaluation.benchmark.timing import force_backend
from s3dnerf.models.s3dnerf.identity import Identity
from s3dnerf.models.s3dnerf.s3dnerf import S3DNeRF
from s3dnerf.rendering.background import Background
from s3dnerf.structures import map_tensors
from s3dnerf.training.config import S3DNeRFConfig


@pytest.fixture(scope="module")
def model(load_smoke: Callable[..., S3DNeRFConfig]) -> S3DNeRF:
    """Random weights, with which every output depends on every input."""
    torch.manual_seed(0)
    model = S3DNeRF(load_smoke().model).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        model.deformation_field.speech_attention.to_motion[-1].weight.mul_(20.0)
    model.render_config = replace(model.render_config, source_detail_scale=0.7)
    return model


@pytest.fixture(scope="module")
def exported(model: S3DNeRF, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("onnx")
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    onnx_export.export_renderer(model, path)
    assert list(path.parent.iterdir()) == [path]
    return path


@pytest.fixture(scope="module")
def session(exported: Path) -> object:
    runtime = pytest.importorskip("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    return runtime.InferenceSession(str(exported), options, providers=["CPUExecutionProvider"])


@pytest.mark.slow
def test_frames_of_onnxruntime_are_those_of_pytorch(model: S3DNeRF, session: object, drawn_batch: Batch) -> None:
    images = drawn_batch.images
    with torch.inference_mode(), force_backend("pytorch"):
        identities = model.encode_identity(images.sources).repeat(images.frames_per_source)
        motion = model.encode_speech(identities, images.frames.speech)
    names, shown = {entry.name for entry in session.get_inputs()}, []
    generator = torch.Generator().manual_seed(0)
    for index in range(len(motion)):
        one = slice(index, index + 1)
        identity: Identity = map_tensors(identities, lambda value, one=one: value[one].float())
        masks = torch.rand(3, 1, 1, 32, 32, generator=generator)
        background = Background(torch.rand(1, 3, 64, 64, generator=generator), *masks)
        camera = map_tensors(images.frames.camera, lambda value, one=one: value[one])
        inputs = (identity, background, motion[one], images.frames.eyes[one], camera)
        with torch.inference_mode(), force_backend("pytorch"):
            image = model(identity, *inputs[2:], background=background).image
            expected = (255.0 * image + 0.5).to(torch.uint8).permute(0, 2, 3, 1).numpy()
        feed = onnx_export.make_feed(*inputs)
        (frame,) = session.run(None, {name: value for name, value in feed.items() if name in names})
        assert frame.shape == (1, 64, 64, 3) and frame.dtype == np.uint8
        difference = np.abs(frame.astype(int) - expected)
        # In up to five pixels at the edge of the lips, both runtimes find the edge at slightly different heights.
        assert np.count_nonzero((difference > 1).any(axis=-1)) <= 8 and difference.max() <= 16
        assert difference.mean() < 0.01
        shown.append(frame.astype(int))
    # Each differs from the first by much more.
    assert all(np.abs(frame - shown[0]).max() > 50 for frame in shown[1:])


@pytest.mark.slow
def test_an_export_is_compared_with_its_model(model: S3DNeRF, exported: Path) -> None:
    pytest.importorskip("onnxruntime")
    threads = torch.get_num_threads()
    found = onnx_export.compare_export(model, exported, repeats=2)
    assert found.max_difference <= 1 and min(found.exported_ms, found.own_ms) > 0
    assert torch.get_num_threads() == threads


def test_replaced_functions_return_the_same() -> None:
    generator = torch.Generator().manual_seed(0)
    x, places = torch.randn(2, 3, 7, 2, generator=generator), torch.rand(7, generator=generator).sort().values
    (expected,) = torch.gradient(x, spacing=(places,), dim=2)
    torch.testing.assert_close(onnx_export.compute_gradient(x, spacing=(places,), dim=2)[0], expected)
    rows, values = torch.randn(2, 9, generator=generator), torch.randn(2, 50, generator=generator)
    rising = onnx_export.RunningMaximum(rows, dim=1).values
    assert torch.equal(rising, rows.cummax(dim=1).values)
    values[:, :9] = rising
    assert torch.equal(onnx_export.count_smaller(rising, values), torch.searchsorted(rising, values))


def test_a_missing_package_is_named_with_its_extra(
    model: S3DNeRF, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(UserError, match=r"s3dnerf\[export\]"):
        onnx_export.export_renderer(model, tmp_path / "a.onnx")
    assert cli.main(["export", "--out", str(tmp_path / "a.txt")]) == 2
    assert "a.txt" in capsys.readouterr().err and not list(tmp_path.iterdir())
