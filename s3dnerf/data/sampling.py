"""Sampling of clips: a person by a power of their number of frames, then one of their clips by its length."""

from __future__ import annotations

import numpy as np


class ClipSampler:
    """Samples clips in a time that grows with the logarithm of their number."""

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

    @property
    def weights(self) -> np.ndarray:
        """``float [N]`` probability of each clip in the order of ``rows``."""
        people = np.diff(self.cumulative, prepend=0.0)
        counts = np.diff(self.bounds)
        lengths = np.diff(self.ends, prepend=0)
        totals = np.add.reduceat(lengths, self.bounds[:-1])
        return np.repeat(people / totals, counts) * lengths
