"""Which clips each step of a run takes from shards that are streamed.

Each process and each of its workers is a *stream*. In each epoch, the shards are shuffled and dealt to the streams, so
that no two streams read the same one. A stream goes through its shards in order and samples from the two that it read
last; it stays with them for a number of steps in proportion to the sampling weights of their clips. So each clip is
sampled as often as in random access, balanced by person, although each shard is read only once or twice in an epoch.

All of this is a function of the index, the seed and the step. A run that is resumed in the middle of an epoch, with the
same number of processes and workers, begins with the shards of its step.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from s3dnerf.data.index import ClipIndex
from s3dnerf.data.sampling import Pool, WeightedSampler
from s3dnerf.errors import UserError

POOL_SHARDS = 2
"""Shards that a stream samples from at a time."""
REPEATS = 8
"""Samples of each clip in an epoch, on average."""


@dataclass(frozen=True)
class Stages:
    """The shards of a stream in an epoch: in each stage, it samples from some of them."""

    pools: list[np.ndarray]
    """Shards of each stage."""
    ends: np.ndarray
    """Step in the epoch at which each stage ends."""


class StreamPlan:
    """The clips that each step samples from."""

    def __init__(
        self,
        index: ClipIndex,
        weights: np.ndarray,
        speech_weights: np.ndarray,
        streams: int,
        samples: int,
        seed: int,
    ) -> None:
        """Plan the steps.

        Args:
            index: N clips in shards.
            weights: ``float [N]`` sampling weights.
            speech_weights: ``float [N]`` sampling weights for speech; 0 for clips that do not teach it.
            streams: number of streams. Step n belongs to stream n modulo this number.
            samples: clips that a step samples.
            seed: seed of the order of the shards.

        Raises:
            UserError: there are fewer shards than streams.
        """
        self.index, self.weights, self.speech_weights = index, weights, speech_weights
        self.streams, self.seed = streams, seed
        self.shards = np.unique(index.shard)
        if len(self.shards) < streams:
            reason = f"{len(self.shards)} shards cannot be dealt to {streams} workers of all processes"
            raise UserError("data.workers", reason, "use fewer workers, or write smaller shards")
        self.shard_weights = np.bincount(index.shard, weights, len(index.shards))
        self.has_speech = np.bincount(index.shard, speech_weights, len(index.shards)) > 0
        self.length = max(
            -(-REPEATS * len(index) // (samples * streams)),
            -(-len(self.shards) // streams),
        )
        """Steps of each stream in an epoch."""
        self.find_stages = lru_cache(maxsize=2)(self.make_stages)
        self.make_pool = lru_cache(maxsize=2)(self.gather_pool)

    def find_pool(self, step: int) -> Pool:
        """Return what a step samples from."""
        local, stream = divmod(step, self.streams)
        epoch, position = divmod(local, self.length)
        stages = self.find_stages(epoch, stream)
        stage = int(np.searchsorted(stages.ends, position, side="right"))
        if stage + 1 < len(stages.pools):
            following = stages.pools[stage + 1]
        else:
            following = self.find_stages(epoch + 1, stream).pools[0]
        upcoming = [number for number in following if number not in stages.pools[stage]]
        return self.make_pool(tuple(stages.pools[stage].tolist()), int(upcoming[0] if upcoming else following[-1]))

    def make_stages(self, epoch: int, stream: int) -> Stages:
        """Deal the shards of an epoch and divide its steps among those of a stream."""
        order = np.random.default_rng((self.seed, epoch)).permutation(self.shards)[stream :: self.streams]
        pools = []
        for first in range(len(order)):
            around = np.roll(order, -first)
            # A pool without speech cannot serve every step, so it is extended.
            count = next((n for n in range(POOL_SHARDS, len(order)) if self.has_speech[around[:n]].any()), len(order))
            pools.append(around[:count])
        totals = np.cumsum([self.shard_weights[pool].sum() for pool in pools])
        ends = np.round(self.length * totals / totals[-1]).astype(np.int64)
        return Stages(pools, ends)

    def gather_pool(self, shards: tuple[int, ...], upcoming: int) -> Pool:
        """Return the pool of some shards."""
        rows = np.flatnonzero(np.isin(self.index.shard, shards))
        if not self.speech_weights[rows].any():
            names = ", ".join(self.index.get_shard(number) for number in shards)
            reason = f"no clip with speech in step is in {names}, all shards of a worker"
            raise UserError("data.root", reason, "use fewer workers, or write larger shards")
        speaking = rows[self.speech_weights[rows] > 0]
        return Pool(
            WeightedSampler(rows, self.weights[rows]),
            WeightedSampler(speaking, self.speech_weights[speaking]),
            upcoming,
        )


def count_streams(workers: int) -> int:
    """Return the number of streams of a run with ``workers`` worker processes in each of its processes."""
    return int(os.environ.get("WORLD_SIZE", "1")) * max(1, workers)
