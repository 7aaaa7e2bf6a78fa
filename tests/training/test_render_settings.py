"""Fitting of the inference settings: gains by hand, and the choice on drawn people."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from copy import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tqdm import tqdm

from s3dnerf.data.dataset import TalkingFaceDataset
from s3dnerf.face.face_mesh import FaceMesh
from s3dnerf.face.points import LIP_PAIRS
from s3dnerf.models.s3dnerf.config import RenderConfig
from s3dnerf.models.s3dnerf.s3dnerf import S3DNeRF
from s3dnerf.precision import mixed_precision
from s3dnerf.training import render_settings
from s3dnerf.training.config import S3DNeRFConfig
from s3dnerf.training.render_settings import (
    CLIPS_PER_PERSON,
    DETAIL_SCALES,
    EXPRESSION_SCALES,
    LIP_SIDES,
    MAX_KNOWN_PEOPLE,
    MOTION_SMOOTHING,
    STRIDE,
    FitClip,
    Measurement,
    fit_render_config,
    list_clips,
    load_clip,
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


def load_all(data: TalkingFaceDataset) -> Iterator[FitClip]:
    return load_clips(data, list_clips(data, 1), tqdm(disable=True))


@pytest.fixture(scope="module")
def data(load_smoke: Callable[..., S3DNeRFConfig], drawn_clips: Path) -> TalkingFaceDataset:
    config = load_smoke("--data.root", str(drawn_clips), "--data.augment", "false")
    shape = (config.model.image_size, config.model.audio.samples, config.train.batch_size)
    return TalkingFaceDataset(config.data, "train", *shape, seed=0)


def test_an_untrained_model_shows_the_source(model: S3DNeRF, data: TalkingFaceDataset, mesh: FaceMesh) -> None:
    clips = [load_clip(data, row) for row in list_clips(data, 2)]
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
    measured = measure_settings(model, RenderConfig(), load_all(data), mesh, AUTOCAST)
    assert measured.psnr > 90 and measured.m_lmd == 0
    assert (measured.lip_gain, measured.eye_gain) == pytest.approx((1.0, 1.0), abs=1e-4)


def test_the_longest_clips_of_each_person_are_taken(data: TalkingFaceDataset) -> None:
    length, person = data.clips.index.frames, data.clips.index.person
    chosen = list_clips(data, 1)
    assert len({person[row] for row in chosen}) == len(chosen) == len(data.speakers.people)
    for row in chosen:
        others = data.speakers.rows[person[data.speakers.rows] == person[row]]
        assert length[row] == length[others].max()


def test_each_setting_is_chosen_by_its_measure(
    model: S3DNeRF, data: TalkingFaceDataset, mesh: FaceMesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[RenderConfig, int]] = []

    def measure(model: S3DNeRF, config: RenderConfig, clips: Iterable[str], *given: object) -> Measurement:
        names = list(clips)
        asked.append((config, len(names)))
        # Lips and lids of the people left out would give other scales.
        known = names[0] != "left out"
        return Measurement(
            psnr=30.0 - 0.3 * (config.source_detail_scale == 1.0) - 0.04 * (config.source_detail_scale == 0.9) + known,
            m_lmd=abs(config.source_expression_scale - (0.4 if known else 0.75)),
            lip_gain=(0.8 if known else 0.5) * config.motion_scale,
            eye_gain=(0.5 if known else 0.4) * config.eye_motion_scale,
        )

    monkeypatch.setattr(render_settings, "measure_settings", measure)
    monkeypatch.setattr(
        render_settings, "list_clips", lambda data, count: list(range(count if data is left_out else 90))
    )
    monkeypatch.setattr(
        render_settings,
        "load_clips",
        lambda data, rows, bar: ["left out" if data is left_out else "known" for _ in rows],
    )
    left_out = copy(data)
    fitted = fit_render_config(model, left_out, data, mesh, AUTOCAST)
    assert fitted == RenderConfig(1.19, 2.0, MOTION_SMOOTHING, 0.8, 0.9)
    few, many = CLIPS_PER_PERSON, MAX_KNOWN_PEOPLE
    assert [count for _, count in asked] == [few] * len(EXPRESSION_SCALES) + [many] * 2 + [few] * len(DETAIL_SCALES)
    # Settings are fitted one after the other: the last scan has all the others.
    assert asked[-1][0] == replace(fitted, source_detail_scale=1.0)
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

    def fit(model: S3DNeRF, held_out: TalkingFaceDataset, known: TalkingFaceDataset, *given: object) -> RenderConfig:
        people.append((held_out.people, known.people))
        return fitted

    monkeypatch.setattr("s3dnerf.training.s3dnerf.fit_render_config", fit)
    words = ("--data.root", str(drawn_clips), "--train.steps", "2", "--train.mouth_steps", "0")
    checkpoint = train(load_smoke(*words, "--data.held_out_people", "1"), tmp_path / "run")
    assert S3DNeRF.load(checkpoint / "model").render_config == fitted
    ((left_out, known),) = people
    assert len(left_out) == 1 and known and not set(left_out) & set(known)
    checkpoint = train(load_smoke(*words, "--data.held_out_people", "0"), tmp_path / "other")
    assert S3DNeRF.load(checkpoint / "model").render_config == RenderConfig()
    assert "no inference settings are fitted" in capsys.readouterr().out
