"""The probe of speech features recovers relations that are hidden in synthetic clips."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest
import torch

from s3dnerf.models.speech_features import Moonshine

TOOLS = Path(__file__).resolve().parents[1] / "tools"


@pytest.fixture(scope="module")
def probe() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(TOOLS)
        return importlib.import_module("probe_speech")


def make_example(probe: ModuleType, person: str, late: int = 0) -> object:
    """Return 200 frames whose lips open by twice the second of three features, ``late`` frames before the audio."""
    inputs = torch.randn(200, 3, generator=torch.Generator().manual_seed(len(person)))
    inputs = torch.nn.functional.avg_pool1d(inputs.T, 5, 1, 2).T
    inputs = inputs - inputs.mean(dim=0)
    opening = 2.0 * inputs[:, 1].roll(-late)
    return probe.Example(person, person, inputs, opening - opening.mean())


def test_every_layer_of_the_speech_features_is_probed(probe: ModuleType) -> None:
    sound = torch.randn(1, 16_000, generator=torch.Generator().manual_seed(0))
    moonshine, functions = Moonshine(), list(probe.list_features().values())
    assert len(functions) == 2 + len(moonshine.network.layers)
    stem, *layers = (function(sound) for function in functions[1:])
    assert all(not torch.allclose(stem, layer) for layer in layers)
    # What the model hears is the last one, standardized before it is resampled, which is the same at the ends.
    last = layers[-1][..., 0]
    standardized = (last - last.mean()) / last.std(correction=0)
    torch.testing.assert_close(standardized, moonshine(sound)[..., 0], atol=1e-4, rtol=0.0)


def test_ridge_regression_finds_the_weights(probe: ModuleType) -> None:
    fit = probe.fit_ridge([make_example(probe, "a"), make_example(probe, "bb")], penalty=1e-3)
    torch.testing.assert_close(fit, torch.tensor([0.0, 2.0, 0.0]), atol=1e-3, rtol=0.0)


@pytest.mark.parametrize("late", [-3, 0, 2])
def test_the_offset_of_a_clip_is_recovered(probe: ModuleType, late: int) -> None:
    example = make_example(probe, "ccc", late)
    found, correlation = probe.recover_offset(example, torch.tensor([0.0, 1.0, 0.0]))
    assert found == late and correlation == pytest.approx(1.0, abs=0.02)
    if late:
        assert probe.correlate(example, torch.tensor([0.0, 1.0, 0.0])) < 0.8


def test_people_are_predicted_by_fits_that_left_them_out(probe: ModuleType) -> None:
    examples = [make_example(probe, "p" * count) for count in range(1, 9)]
    # One person moves in the opposite direction, which fits to other people predict wrongly and an own fit would not.
    odd = probe.replace(examples[2], opening=-examples[2].opening)
    scores = probe.measure_left_out([*examples[:2], odd, *examples[3:]], penalty=1.0)
    assert scores[2] < -0.9 and scores[[0, 1, 3, 4, 5, 6, 7]].min() > 0.9
