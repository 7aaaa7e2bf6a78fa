"""The stages of a run: what each step trains, and what a short run leaves out."""

from __future__ import annotations

import pytest

from s3dnerf.training.config import TrainConfig
from s3dnerf.training.curriculum import Curriculum, find_missing_stage


def test_the_curriculum_goes_from_motion_to_coarse_to_fine_images() -> None:
    config = TrainConfig(motion_steps=2, coarse_steps=2, steps=6)
    content = [Curriculum(config, 64, motion_interval=2)(step) for step in range(6)]
    assert [one.image_size for one in content] == [32, 32, 32, 32, 64, 64]
    assert [one.images for one in content] == [False, False, True, True, True, True]
    assert [one.speech for one in content] == [True, True, True, False, True, False]
    config.coarse_steps = 0
    assert [Curriculum(config, 64, 2)(step).image_size for step in range(6)] == [64] * 6


@pytest.mark.parametrize(
    ("steps", "motion", "coarse", "named"),
    [
        (12, 12, 0, ("no images are", "train.motion_steps (12)", "train.steps (12)")),
        (12, 50, 5, ("no images are", "train.motion_steps (50)", "train.steps (12)")),
        (12, 6, 6, ("full size", "train.coarse_steps (12)", "train.steps (12)")),
        (13, 6, 6, ()),
        (12, 6, 0, ()),
        (0, 6, 6, ()),
    ],
)
def test_a_stage_that_is_not_reached_is_named(steps: int, motion: int, coarse: int, named: tuple[str, ...]) -> None:
    config = TrainConfig(steps=steps, motion_steps=motion, coarse_steps=coarse)
    line, curriculum = find_missing_stage(config), Curriculum(config, 64)
    assert bool(line) == bool(named) and all(word in line for word in named) and len(line.splitlines()) <= 1
    if steps:
        last = curriculum(steps - 1)
        assert bool(named) == (not last.images or last.image_size < 64)
