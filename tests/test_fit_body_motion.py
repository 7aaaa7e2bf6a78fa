"""The fit of the body's motion recovers what is hidden in synthetic motions."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

TOOLS = Path(__file__).resolve().parents[1] / "tools"


@pytest.fixture(scope="module")
def fit() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(TOOLS)
        return importlib.import_module("fit_body_motion")


@pytest.mark.parametrize(("weights", "expected"), [([1, 1, 1], 2.0), ([1, 1, 5], 7.0), ([3, 1, 1], -1.0)])
def test_the_median_is_weighted(fit: ModuleType, weights: list[int], expected: float) -> None:
    assert fit.find_median(np.array([2.0, -1.0, 7.0])[[1, 0, 2]], np.array(weights)) == expected


def test_shares_are_found_despite_bodies_that_move_on_their_own(fit: ModuleType) -> None:
    rng = np.random.default_rng(0)
    motions = []
    for number in range(400):
        neck = rng.normal(size=2)
        flow = neck * (0.8, 0.6) + 0.05 * rng.normal(size=2)
        if number % 5 == 0:
            flow = rng.normal(size=2)
        motions.append(fit.Motion(number % 2, fit.BODY + number % 3, flow, neck, neck))
    # What lies above the body does not count.
    motions += [fit.Motion(0, fit.BODY - 1, -neck, neck, neck)] * 400
    assert fit.fit_shares(motions) == pytest.approx([0.8, 0.6], abs=0.03)
