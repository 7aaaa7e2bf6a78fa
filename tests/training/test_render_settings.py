"""Fitting of the inference settings: gains by hand, and the choice on drawn people."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from s3dnerf.data.dataset import TalkingFaceDataset
from s3dnerf.face.face_mesh import FaceMesh
from s3dnerf.face.points import LIP_PAIRS
from s3dnerf.models.s3dnerf.config import RenderConfig
from s3dnerf.models.s3dnerf.s3dnerf import S3DNeRF
from s3dnerf.precision import mixed_precision
from s3dnerf.training import render_settings
from s3dnerf.training.config import S3DNeRFConfig
from s3dnerf.training.render_settings import (
    DETAIL_SCALES,
    EXPRESSION_SCALES,
    LIP_SIDES,
    SMOOTHINGS,
    STRIDE,
    Measurement,
    fit_render_config,
    load_clips,
    measure_gaps,
    measure_settings,
    reenact,
    solve_gain,
)

AUTOCAST = mixed_precision(torch.device("cpu"), "float32")


@pytest.mark.parametrize(
    ("gains", "expected"),
    [
        ((0.8, 0.95), 1.3),
        ((0.8, 1.1), 1.15),
        ((1.2, 1.5), 1.0),
        ((0.2, 0.3), 1.6),
        ((0.8, 0.8), 1.0),
        ((0.9, 0.5), 1.0),
    ],
)
def test_a_gain_is_solved_on_a_line_and_within_its_range(gains: tuple[float, float], expected: float) -> None:
    assert solve_gain((1.0, 1.3), gains, 0.95, (1.0, 1.6)) == pytest.approx(expected)


def test_gaps_by_hand() -> None:
    points = torch.zeros(2, 468, 2)
    for upper, lower in LIP_PAIRS:
        points[:, upper] = torch.tensor([0.3, 0.1])
        points[0, lower], points[1, lower] = torch.tensor([0.3, 0.2]), torch.tensor([0.0, 0.5])
    gaps = measure_gaps(points, LIP_SIDES, torch.tensor([[0.5], [0.25]]))
    np.testing.assert_allclose(gaps, [0.1 / 0.5, 0.5 / 0.25], rtol=1e-5)


@pytest.fixture(scope="module")
def mesh() -> FaceMesh:
    return FaceMesh()


@pytest.fixture(scope="module")
def model(load_smoke: Callable[..., S3DNeRFConfig]) -> S3DNeRF:
    torch.manual_seed(0)
    return S3DNeRF(load_smoke().model).eval()


@pytest.fixture(scope="module")
def data(load_smoke: Callable[..., S3DNeRFConfig], drawn_clips: Path) -> TalkingFaceDataset:
    config = load_smoke("--data.root", str(drawn_clips), "--data.augment", "false")
    shape = (config.model.image_size, config.model.audio.samples, config.train.batch_size)
    return TalkingFaceDataset(config.data, "train", *shape, seed=0)


def test_an_untrained_model_shows_the_source(model: S3DNeRF, data: TalkingFaceDataset, mesh: FaceMesh) -> None:
    clips = load_clips(data)
    assert len(clips) == len(data.speakers.people) == 2
    for clip in clips:
        assert len(clip.frames.image) == -(-len(clip.speech) // STRIDE)
        frames = reenact(model, clip, AUTOCAST)
        assert frames.shape == clip.frames.image.shape
        # The first frame is the source itself.
        assert (frames[0] - clip.frames.image[0]).abs().mean() < 0.1
    measured = measure_settings(model, RenderConfig(), clips, mesh, AUTOCAST)
    assert 10 < measured.psnr < 50 and 0 < measured.m_lmd < 0.5
    assert measured.lip_gain < 1.0


def test_real_frames_measure_as_perfect(
    model: S3DNeRF, data: TalkingFaceDataset, mesh: FaceMesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(render_settings, "reenact", lambda model, clip, autocast: clip.frames.image)
    measured = measure_settings(model, RenderConfig(), load_clips(data), mesh, AUTOCAST)
    assert measured.psnr > 90 and measured.m_lmd == 0
    assert (measured.correlation, measured.lip_gain, measured.eye_gain) == pytest.approx((1.0, 1.0, 1.0), abs=1e-4)


def test_each_setting_is_chosen_by_its_measure(
    model: S3DNeRF, data: TalkingFaceDataset, mesh: FaceMesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def measure(model: S3DNeRF, config: RenderConfig, *given: object) -> Measurement:
        asked.append(config)
        return Measurement(
            psnr=30.0 - 0.3 * (config.source_detail_scale == 1.0) - 0.04 * (config.source_detail_scale == 0.9),
            m_lmd=abs(config.source_expression_scale - 0.75),
            correlation=0.5 + 0.1 * (config.motion_smoothing == 0.7),
            lip_gain=0.8 * config.motion_scale,
            eye_gain=0.5 * config.eye_motion_scale,
        )

    monkeypatch.setattr(render_settings, "measure_settings", measure)
    fitted = fit_render_config(model, data, mesh, AUTOCAST)
    assert fitted == RenderConfig(1.19, 2.0, 0.7, 0.8, 0.9)
    assert len(asked) == len(EXPRESSION_SCALES) + len(SMOOTHINGS) + len(DETAIL_SCALES) + 2 + 2
    # Settings are fitted one after the other: the last scan has all the others.
    assert asked[-1] == replace(fitted, source_detail_scale=1.0)
    assert model.render_config == RenderConfig()


def test_a_run_ends_with_fitted_settings(
    load_smoke: Callable[..., S3DNeRFConfig],
    drawn_clips: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from s3dnerf.training.s3dnerf import train

    fitted = RenderConfig(1.2, 1.5, 0.7, 0.6, 0.9)
    people = []

    def fit(model: S3DNeRF, data: TalkingFaceDataset, *given: object) -> RenderConfig:
        people.extend(data.people)
        return fitted

    monkeypatch.setattr("s3dnerf.training.s3dnerf.fit_render_config", fit)
    words = ("--data.root", str(drawn_clips), "--train.steps", "2", "--train.mouth_steps", "0")
    checkpoint = train(load_smoke(*words, "--data.held_out_people", "1"), tmp_path / "run")
    assert S3DNeRF.load(checkpoint / "model").render_config == fitted and len(people) == 1
    checkpoint = train(load_smoke(*words, "--data.held_out_people", "0"), tmp_path / "other")
    assert S3DNeRF.load(checkpoint / "model").render_config == RenderConfig()
    assert "no inference settings are fitted" in capsys.readouterr().out
