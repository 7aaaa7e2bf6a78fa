"""The learning rate over a run."""

from __future__ import annotations

import pytest

from s3dnerf.optimization import schedule


def test_learning_rate_rises_then_falls_along_a_cosine() -> None:
    assert [schedule(step, 110, 10) for step in (0, 4, 9)] == [0.1, 0.5, 1.0]
    assert schedule(10, 110, 10) == 1.0
    assert schedule(60, 110, 10) == pytest.approx(0.02 + 0.98 / 2)
    assert schedule(110, 110, 10) == pytest.approx(0.02)
    assert schedule(500, 110, 10) == pytest.approx(0.02)
    falling = [schedule(step, 110, 10) for step in range(10, 111)]
    assert falling == sorted(falling, reverse=True)


def test_without_warm_up_it_starts_at_its_peak() -> None:
    assert schedule(0, 100) == 1.0
    assert schedule(25, 100) == pytest.approx(0.02 + 0.98 * (2 + 2**0.5) / 4)
