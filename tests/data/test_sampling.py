"""Sampling of clips: balanced by person, in one way for all numbers of clips."""

from __future__ import annotations

import numpy as np
import pytest

from s3dnerf.data.sampling import ClipSampler, WeightedSampler, spread_rows

PEOPLE = np.array([b"eve", b"ann", b"ben", b"ann", b"eve", b"eve"])
FRAMES = np.array([10, 40, 30, 12, 7, 1])


def sample_by_lists(rng: np.random.Generator, power: float) -> int:
    """Sample from lists that are built for each sample: a person, then a clip."""
    names = sorted(set(PEOPLE.tolist()))
    rows = [np.flatnonzero(name == PEOPLE) for name in names]
    weights = np.array([FRAMES[some].sum() for some in rows], float) ** power
    person = rows[rng.choice(len(rows), p=weights / weights.sum())]
    lengths = FRAMES[person].astype(float)
    return int(person[rng.choice(len(person), p=lengths / lengths.sum())])


@pytest.mark.parametrize("power", [0.0, 0.6, 1.0])
def test_samples_are_those_of_numpy(power: float) -> None:
    sampler = ClipSampler(np.arange(6), PEOPLE, FRAMES, power)
    one, other = np.random.default_rng(5), np.random.default_rng(5)
    for _ in range(2000):
        assert sampler.sample(one) == sample_by_lists(other, power)
    assert one.random() == other.random()


def test_people_are_sampled_by_a_power_of_their_frames() -> None:
    sampler = ClipSampler(np.arange(10, 16), PEOPLE, FRAMES, 0.6)
    rng = np.random.default_rng(0)
    counts = np.bincount([sampler.sample(rng) for _ in range(20_000)], minlength=16)
    # Ann has 52 frames, Ben 30 and Eve 18.
    people = np.array([52, 30, 18]) ** 0.6 / (np.array([52, 30, 18]) ** 0.6).sum()
    expected = people[[2, 0, 1, 0, 2, 2]] * FRAMES / np.array([18, 52, 30, 52, 18, 18])
    assert counts[:10].sum() == 0
    np.testing.assert_allclose(counts[10:] / 20_000, expected, atol=0.015)
    np.testing.assert_allclose(sampler.spread_weights(16)[10:], expected, atol=1e-12)
    assert sampler.spread_weights(16)[:10].sum() == 0


def test_clips_are_grouped_by_person() -> None:
    sampler = ClipSampler(np.arange(6), PEOPLE, FRAMES, 0.6)
    assert sampler.people.tolist() == [b"ann", b"ben", b"eve"]
    assert [rows.tolist() for rows in sampler.group_rows()] == [[1, 3], [2], [0, 4, 5]]


def test_weights_are_probabilities() -> None:
    sampler = WeightedSampler(np.array([7, 3, 5]), np.array([1.0, 0.0, 3.0]))
    rng = np.random.default_rng(0)
    drawn = [sampler.sample(rng) for _ in range(4000)]
    assert set(drawn) == {7, 5} and np.mean(np.array(drawn) == 7) == pytest.approx(0.25, abs=0.03)


def test_clips_are_spread_over_people() -> None:
    groups = [np.arange(first, first + 10) for first in range(0, 100, 10)]
    assert spread_rows(groups, 100) is groups
    some = spread_rows(groups, 25)
    assert len(some) == 10 and {len(rows) for rows in some} == {2}
    few = spread_rows(groups, 4)
    assert [rows.tolist() for rows in few] == [[0], [30], [60], [90]]
