"""Sampling of clips, balanced by person."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np


class Sampler(Protocol):
    """Samples clips."""

    def sample(self, rng: np.random.Generator) -> int:
        """Return the number of a clip."""


@dataclass(frozen=True)
class Pool:
    """Clips to sample from."""

    everyone: Sampler
    """Samples from all of them."""
    speakers: Sampler
    """Samples from those that teach speech."""
    upcoming: int | None = None
    """Shard that will be needed next, if shards are streamed."""


class WeightedSampler:
    """Samples clips by weight."""

    def __init__(self, rows: np.ndarray, weights: np.ndarray) -> None:
        self.rows = rows
        self.cumulative = np.cumsum(weights)

    def sample(self, rng: np.random.Generator) -> int:
        """Return the number of a clip."""
        target = rng.random() * self.cumulative[-1]
        return int(self.rows[np.searchsorted(self.cumulative[:-1], target, side="right")])


class ClipSampler:
    """Samples a person by a power of their number of frames, then one of their clips by its length.

    A sample takes a time that grows with the logarithm of the number of clips.
    """

    def __init__(self, rows: np.ndarray, people: np.ndarray, frames: np.ndarray, power: float) -> None:
        """Prepare sampling.

        Args:
            rows: ``int [N]`` numbers of the clips, at least one.
            people: ``[N]`` their people.
            frames: ``int [N]`` their lengths, at least one frame each in total.
            power: a person with n frames is sampled in proportion to n to this power.
        """
        order = np.argsort(people, kind="stable")
        self.rows = rows[order]
        self.people, first = np.unique(people[order], return_index=True)
        self.bounds = np.append(first, len(rows))
        """``int [people + 1]`` positions in ``rows`` at which each person begins."""
        self.ends = np.cumsum(frames[order], dtype=np.int64)
        totals = np.add.reduceat(frames[order].astype(np.int64), first)
        weights = totals.astype(float) ** power
        self.cumulative = np.cumsum(weights / weights.sum())
        self.cumulative /= self.cumulative[-1]

    def sample(self, rng: np.random.Generator) -> int:
        """Return the number of a clip."""
        person = np.searchsorted(self.cumulative, rng.random(), side="right")
        first, end = self.bounds[person], self.bounds[person + 1]
        before = self.ends[first - 1] if first else 0
        target = before + rng.random() * (self.ends[end - 1] - before)
        return int(self.rows[first + np.searchsorted(self.ends[first:end], target, side="right")])

    def group_rows(self) -> list[np.ndarray]:
        """Return the numbers of the clips of each person, sorted."""
        return np.split(self.rows, self.bounds[1:-1])

    def spread_weights(self, count: int) -> np.ndarray:
        """Return the probability of each of ``count`` clips by its number, ``float [count]``."""
        people, clips = np.diff(self.cumulative, prepend=0.0), np.diff(self.bounds)
        lengths = np.diff(self.ends, prepend=0)
        totals = np.add.reduceat(lengths, self.bounds[:-1])
        weights = np.zeros(count)
        weights[self.rows] = np.repeat(people / totals, clips) * lengths
        return weights


def spread_rows(groups: list[np.ndarray], limit: int) -> list[np.ndarray]:
    """Return some clips of each person, about ``limit`` in total; of some people only, if there are more of them.

    Args:
        groups: numbers of the clips of each person.
        limit: number of clips. If there are no more, all are returned.
    """
    if sum(map(len, groups)) <= limit:
        return groups
    people = groups[:: -(-len(groups) // limit)]
    each = max(1, limit // len(people))
    return [rows[:: -(-len(rows) // each)] for rows in people]
