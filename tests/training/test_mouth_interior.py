"""Training of the interior of the mouth from tracked frames, without rendering."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from s3dnerf.data.dataset import TalkingFaceDataset
from s3dnerf.errors import UserError
from s3dnerf.models.s3dnerf.mouth_interior import MouthColors, MouthInterior
from s3dnerf.rendering.opening import Opening, SourceInterior
from s3dnerf.rendering.rays import project_points
from s3dnerf.structures import Camera
from s3dnerf.training.config import S3DNeRFConfig
from s3dnerf.training.mouth_interior import (
    FRAMES_PER_STEP,
    INSIDE,
    PIXELS,
    MouthSamples,
    choose_types,
    collect_mouth_samples,
    describe_contrast,
    measure_contrast,
    measure_errors,
    train_mouth_interior,
)

FRAMES = 6
"""Frames of each of the two people."""


def make_mouths(colors: Tensor) -> MouthSamples:
    """Return samples of two people; ``colors [2, PIXELS]`` are gray levels from the upper to the lower lip."""
    count = 2 * FRAMES
    down = torch.linspace(0.0, 0.1, PIXELS).expand(count, -1)
    opening = Opening(
        coverage=torch.ones(count, PIXELS),
        across=torch.zeros(count, PIXELS),
        below_upper=down,
        above_lower=0.1 - down,
        below_anchor=down,
        beside_anchor=torch.zeros(count, PIXELS),
        width=torch.full((count,), 0.6),
        height=torch.full((count,), 0.1),
    )
    skin, lips, inside = (torch.full((count, 3), level) for level in (0.5, 0.4, 0.2))
    tones = MouthColors(skin, lips, inside, torch.zeros(count))
    person = torch.tensor([0, 1]).repeat_interleave(FRAMES)
    return MouthSamples(opening, tones, colors[person][:, None].expand(-1, 3, -1), person)


def make_interior(types: int) -> MouthInterior:
    torch.manual_seed(0)
    return MouthInterior(types)


TEETH = torch.where(torch.arange(PIXELS) < PIXELS // 2, 0.7, 0.1)
DARK = torch.full((PIXELS,), 0.15)


def test_people_teach_the_type_that_fits_them() -> None:
    mouths = make_mouths(torch.stack([TEETH, DARK]))
    left = []
    for types in (1, 4):
        interior = make_interior(types)
        train_mouth_interior(interior, mouths, steps=150, seed=0)
        errors = measure_errors(interior, mouths)
        left.append(errors.amin(0).mean().item())
    # One type outputs a value between the two: half of the pixels differ by 0.55, which is 1.1 times the skin's 0.5.
    assert left[0] > 0.25
    assert left[1] < 0.08


def test_the_type_shown_has_the_contrast_of_real_mouths() -> None:
    mouths = make_mouths(torch.stack([TEETH, TEETH]))
    interior = make_interior(4)
    train_mouth_interior(interior, mouths, steps=150, seed=0)
    shown = interior(mouths.opening, mouths.source)
    wanted = measure_contrast(mouths.colors, mouths)
    assert measure_contrast(shown, mouths) == pytest.approx(wanted, rel=0.2)
    assert choose_types(interior, mouths) == tuple(interior.shown.tolist())
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in interior.parameters())


def test_contrast_is_described_for_sources_without_teeth() -> None:
    interior = make_interior(1)
    interior.forward = lambda opening, source, code: (0.5 * TEETH).expand(len(opening.width), 3, -1)
    mouths = make_mouths(torch.stack([TEETH, TEETH]))
    # Half of the pixels are 0.7 and half 0.1, the skin is 0.5: 0.6 apart, then half of it, then 0.35² / 0.5 and 0.05².
    halves = [0.6, 0.3, (0.35**2 - 0.05**2) / 0.5]
    levels = [half / 2 / 0.5 * (PIXELS / (PIXELS - 1)) ** 0.5 for half in halves]
    expected = "contrast of mouths: real {:.3f}, painted {:.3f}, shown {:.3f}".format(*levels)
    assert describe_contrast(interior, mouths) == expected


def test_strangers_are_shown_upper_teeth_and_below_teeth_the_dark() -> None:
    class Painter:
        types = (TEETH.flip(0), 0.8 * TEETH, DARK)

        def __call__(self, opening: Opening, tones: MouthColors, code: Tensor) -> Tensor:
            return code.expand(len(opening.width), 3, -1)

    # The first type has the contrast of these mouths but is bright along the lower lip.
    mouths = make_mouths(torch.stack([TEETH, TEETH]))
    assert choose_types(Painter(), mouths) == (1, 2)


def test_contrast_by_hand() -> None:
    # One person has the levels 0.2 and 0.6 in equal parts and skin 0.5; the other has a single level.
    levels = torch.where(torch.arange(PIXELS) % 2 == 0, 0.2, 0.6)
    mouths = make_mouths(torch.stack([levels, DARK]))
    deviation = 0.2 * (PIXELS / (PIXELS - 1)) ** 0.5
    assert measure_contrast(mouths.colors, mouths) == pytest.approx(0.5 * deviation / 0.5)


def test_errors_by_hand() -> None:
    mouths = make_mouths(torch.stack([TEETH, DARK]))
    interior = make_interior(3)
    errors = measure_errors(interior, mouths)
    assert errors.shape == (3, 2 * FRAMES)
    painted = interior(mouths.opening, mouths.source, interior.types[2])
    torch.testing.assert_close(errors[2, 7], (painted[7] - mouths.colors[7]).abs().mean() / 0.5)


def test_the_same_seed_learns_the_same() -> None:
    mouths = make_mouths(torch.stack([TEETH, DARK]))
    states = []
    for seed in (0, 0, 1):
        interior = make_interior(2)
        train_mouth_interior(interior, mouths, steps=5, seed=seed)
        states.append(torch.cat([value.flatten().float() for value in interior.state_dict().values()]))
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


@pytest.fixture
def drawn_data(load_smoke: Callable[..., S3DNeRFConfig], drawn_clips: Path) -> TalkingFaceDataset:
    config = load_smoke("--data.root", str(drawn_clips), "--data.augment", "false")
    shape = (config.model.image_size, config.model.audio.samples, config.train.batch_size)
    return TalkingFaceDataset(config.data, "train", *shape, seed=0)


def test_the_mouths_of_cartoons_are_black(drawn_data: TalkingFaceDataset) -> None:
    mouths = collect_mouth_samples(drawn_data, seed=0, steps=1000)
    assert len(mouths.person) > 20 and mouths.colors.shape[1:] == (3, PIXELS)
    assert mouths.person.unique().tolist() == list(range(len(drawn_data.people)))
    assert mouths.opening.coverage.min() > INSIDE
    assert mouths.opening.below_upper.min() > 0 and mouths.opening.above_lower.min() > 0
    # Video compression blurs them slightly.
    assert mouths.colors.mean() < 0.2 < mouths.source.skin.mean()


def test_the_same_seed_sees_the_same_pixels(drawn_data: TalkingFaceDataset) -> None:
    first, again, other = (collect_mouth_samples(drawn_data, seed, steps=1000).colors for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert first.shape != other.shape or not torch.equal(first, other)


def test_nothing_is_learned_of_what_the_portrait_shows(
    drawn_data: TalkingFaceDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def keep_left_half(outline: Tensor, lips: Tensor, frame: Camera, *given: object) -> SourceInterior:
        places = given[1]
        middle = project_points(outline.mean(dim=1, keepdim=True), frame)[..., 0]
        return SourceInterior(places, (places[..., 0] < middle).float())

    assert collect_mouth_samples(drawn_data, seed=0, steps=1000).opening.across.min() < -0.2
    monkeypatch.setattr("s3dnerf.training.mouth_interior.find_source_interior", keep_left_half)
    assert collect_mouth_samples(drawn_data, seed=0, steps=1000).opening.across.min() > -0.1


@pytest.mark.parametrize(("frames", "people"), [(10**6, 3), (9, 3), (6, 2), (3, 1)])
def test_large_sets_are_looked_at_in_part(
    drawn_data: TalkingFaceDataset, monkeypatch: pytest.MonkeyPatch, frames: int, people: int
) -> None:
    monkeypatch.setattr(drawn_data, "list_clips", lambda limit: [np.array([0])] * 3)
    monkeypatch.setattr("s3dnerf.training.mouth_interior.FRAMES", frames)
    mouths = collect_mouth_samples(drawn_data, seed=0, steps=1000)
    assert len(mouths.person.unique()) == people
    assert len(mouths.person) <= frames


def test_few_steps_look_at_few_frames(drawn_data: TalkingFaceDataset) -> None:
    few, many = (len(collect_mouth_samples(drawn_data, 0, steps).person) for steps in (1, 1000))
    assert few <= FRAMES_PER_STEP < many


def test_people_who_never_open_their_lips_teach_nothing(
    drawn_data: TalkingFaceDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("s3dnerf.training.mouth_interior.PARTED", 10.0)
    with pytest.raises(UserError, match="mouth_steps 0"):
        collect_mouth_samples(drawn_data, seed=0, steps=1000)
