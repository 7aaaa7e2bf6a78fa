"""Training of the interior of the eyes from tracked frames, without rendering."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from s3dnerf.data.dataset import TalkingFaceDataset
from s3dnerf.errors import UserError
from s3dnerf.models.s3dnerf.eye_interior import EyeInterior
from s3dnerf.rendering.opening import Opening
from s3dnerf.training.config import S3DNeRFConfig
from s3dnerf.training.eye_interior import (
    INSIDE,
    PIXELS,
    EyeSamples,
    choose_type,
    collect_eye_samples,
    measure_errors,
    train_eye_interior,
)

FRAMES = 6
"""Frames of each of the three people."""
DARK, BLUE = torch.tensor([0.1, 0.05, 0.05]), torch.tensor([0.2, 0.3, 0.6])


def make_eyes(*irises: Tensor) -> EyeSamples:
    """Return samples of people with irises of these colors, 0.04 head units wide, in white eyes."""
    count = len(irises) * FRAMES
    beside = torch.linspace(-0.1, 0.1, PIXELS).expand(count, -1)
    zeros, distances = torch.zeros(count, PIXELS), torch.full((count, PIXELS), 0.03)
    opening = Opening(
        coverage=torch.ones(count, PIXELS),
        across=8.0 * beside,
        below_upper=distances,
        above_lower=distances,
        below_anchor=zeros,
        beside_anchor=beside,
        width=torch.full((count,), 0.25),
        height=torch.full((count,), 0.06),
    )
    person = torch.arange(len(irises)).repeat_interleave(FRAMES)
    iris = torch.stack(irises)[person][..., None]
    colors = torch.where(beside[:, None].abs() < 0.04, iris, torch.tensor(0.8))
    gaze = torch.tensor([[0.1, 0.0, 0.0], [0.3, 0.0, 0.2], [0.2, 0.3, 0.1]])[person]
    return EyeSamples(opening, torch.full((count, 3), 0.5), colors, gaze, person)


def test_strangers_get_the_eyes_that_are_wrong_by_least() -> None:
    torch.manual_seed(0)
    interior, eyes = EyeInterior(), make_eyes(DARK, BLUE, DARK)
    train_eye_interior(interior, eyes, steps=200, seed=0)
    assert measure_errors(interior, eyes).amin(0).mean() < 0.2
    with torch.no_grad():
        shown = interior(eyes.opening, eyes.skin)
    middle = shown[0, :, PIXELS // 2]
    assert (middle - DARK).abs().max() < 0.15 and (shown[0, :, 3] - 0.8).abs().max() < 0.15
    assert choose_type(interior, eyes) == interior.shown
    # Everyone counts alike, whatever the number of frames.
    torch.testing.assert_close(interior.gaze, torch.tensor([0.2, 0.1, 0.1]))
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in interior.parameters())


def test_errors_by_hand() -> None:
    torch.manual_seed(0)
    interior, eyes = EyeInterior(3), make_eyes(DARK, BLUE, DARK)
    errors = measure_errors(interior, eyes)
    assert errors.shape == (3, 3 * FRAMES)
    painted = interior(eyes.opening, eyes.skin, interior.types[2])
    torch.testing.assert_close(errors[2, 7], (painted[7] - eyes.colors[7]).abs().mean() / 0.5)


@pytest.fixture
def drawn_data(load_smoke: Callable[..., S3DNeRFConfig], drawn_clips: Path) -> TalkingFaceDataset:
    config = load_smoke("--data.root", str(drawn_clips), "--data.augment", "false")
    shape = (config.model.image_size, config.model.audio.samples, config.train.batch_size)
    return TalkingFaceDataset(config.data, "train", *shape, seed=0)


def test_the_eyes_of_cartoons_are_seen(drawn_data: TalkingFaceDataset) -> None:
    eyes = collect_eye_samples(drawn_data, seed=0)
    assert len(eyes.person) > 10 and eyes.colors.shape[1:] == (3, PIXELS)
    assert eyes.person.unique().tolist() == list(range(len(drawn_data.people)))
    assert eyes.person.diff().min() >= 0
    assert eyes.opening.coverage.min() > INSIDE
    # They are black, apart from what video compression blurs.
    assert eyes.colors.mean() < 0.2 < eyes.skin.mean()
    again, other = (collect_eye_samples(drawn_data, seed).colors for seed in (0, 1))
    assert torch.equal(eyes.colors, again) and not torch.equal(eyes.colors, other)


def test_people_who_never_open_their_eyes_teach_nothing(
    drawn_data: TalkingFaceDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("s3dnerf.training.eye_interior.OPEN", 10.0)
    with pytest.raises(UserError, match="eye_steps 0"):
        collect_eye_samples(drawn_data, seed=0)
