"""Plans of streamed shards: disjoint, balanced by person, and a function of the step."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from s3dnerf.data.index import ClipIndex, make_index
from s3dnerf.data.sampling import ClipSampler
from s3dnerf.data.streams import POOL_SHARDS, StreamPlan, count_streams
from s3dnerf.errors import UserError

CLIPS, SHARDS, PEOPLE = 240, 12, 15


@pytest.fixture(scope="module")
def index() -> ClipIndex:
    """Clips of people who have very different numbers of them, dealt to shards; one clip in ten is silent."""
    rng = np.random.default_rng(0)
    rows = []
    for number in range(CLIPS):
        frames = int(rng.integers(30, 300))
        person = f"person {int(PEOPLE * rng.random() ** 2)}"
        row = {"id": f"clip {number:03d}", "person": person, "split": "train", "sync": "ok", "frames": frames}
        rows.append({**row, "valid": frames, "size": 256, "has_speech": number % 10 > 0, "shard": number % SHARDS})
    return make_index(rows, {f"train-{number:06d}.tar": 1 for number in range(SHARDS)})


def make_plan(index: ClipIndex, streams: int, samples: int = 4, seed: int = 0) -> StreamPlan:
    speaking = np.flatnonzero(index.teaches_speech(24))
    samplers = (
        ClipSampler(rows, index.person[rows], index.valid[rows], 0.6) for rows in (np.arange(len(index)), speaking)
    )
    return StreamPlan(index, *(one.spread_weights(len(index)) for one in samplers), streams, samples, seed)


def list_shards(plan: StreamPlan, step: int) -> set[int]:
    return set(plan.index.shard[plan.find_pool(step).everyone.rows].tolist())


@pytest.mark.parametrize("streams", [1, 2, 3, 5, 12])
def test_streams_read_different_shards(index: ClipIndex, streams: int) -> None:
    plan = make_plan(index, streams)
    for epoch in range(3):
        steps = range(epoch * plan.length * streams, (epoch + 1) * plan.length * streams)
        read = [set().union(*(list_shards(plan, step) for step in steps[stream::streams])) for stream in range(streams)]
        assert sorted(number for one in read for number in one) == list(range(SHARDS))


def test_a_stream_samples_from_few_shards_and_reads_each_about_once(index: ClipIndex) -> None:
    plan = make_plan(index, 2)
    reads, held = 0, set[int]()
    for step in range(0, 2 * plan.length, 2):
        now = list_shards(plan, step)
        assert len(now) == POOL_SHARDS
        reads += len(now - held)
        held = now
    assert reads <= SHARDS / 2 + POOL_SHARDS


def test_the_next_shard_is_known_before_it_is_needed(index: ClipIndex) -> None:
    plan = make_plan(index, 2)
    for step in range(1, 6 * plan.length, 2):
        now, following = list_shards(plan, step), list_shards(plan, step + 2)
        if following != now:
            assert plan.find_pool(step).upcoming in following - now


@pytest.mark.slow
@pytest.mark.parametrize("streams", [1, 4])
def test_clips_are_sampled_as_in_random_access(index: ClipIndex, streams: int) -> None:
    plan = make_plan(index, streams)
    rng = np.random.default_rng(1)
    counts, speech = np.zeros(CLIPS), np.zeros(CLIPS)
    epochs = 12
    for step in range(epochs * plan.length * streams):
        pool = plan.find_pool(step)
        for _ in range(4):
            counts[pool.everyone.sample(rng)] += 1
            speech[pool.speakers.sample(rng)] += 1
    people = np.unique(index.person, return_inverse=True)[1]
    for drawn, weights in ((counts, plan.weights), (speech, plan.speech_weights)):
        by_person, expected = np.bincount(people, drawn / drawn.sum()), np.bincount(people, weights)
        np.testing.assert_allclose(by_person, expected, atol=0.015)
        assert not drawn[weights == 0].any()
    assert np.corrcoef(counts, plan.weights)[0, 1] > 0.95


def test_a_plan_is_a_function_of_the_step(index: ClipIndex) -> None:
    one, other = make_plan(index, 3), make_plan(index, 3)
    shards = [list_shards(one, step) for step in range(4 * one.length)]
    for step in reversed(range(4 * one.length)):
        assert list_shards(other, step) == shards[step]
    different = make_plan(index, 3, seed=1)
    assert [list_shards(different, step) for step in range(4 * one.length)] != shards


def test_an_epoch_samples_each_clip_several_times(index: ClipIndex) -> None:
    for streams, samples in ((1, 4), (3, 8)):
        plan = make_plan(index, streams, samples)
        assert 8 * CLIPS <= plan.length * streams * samples < 8 * CLIPS + samples * streams


def test_more_streams_than_shards_are_an_error(index: ClipIndex) -> None:
    with pytest.raises(UserError, match=r"12 shards cannot be dealt to 13"):
        make_plan(index, 13)


def test_a_stream_with_a_silent_shard_samples_from_more(index: ClipIndex) -> None:
    quiet = index.take(np.arange(CLIPS))
    quiet.has_speech[np.isin(quiet.shard, [1, 2, 3])] = False
    plan = make_plan(quiet, 1)
    sizes = Counter(len(list_shards(plan, step)) for step in range(8 * plan.length))
    assert sizes[POOL_SHARDS] > 0
    for step in range(plan.length):
        assert len(plan.find_pool(step).speakers.rows)
    quiet.has_speech[np.isin(quiet.shard, range(1, SHARDS))] = False
    silent = make_plan(quiet, 12)
    with pytest.raises(UserError, match="no clip with speech in step"):
        for step in range(12):
            silent.find_pool(step)


def test_streams_are_counted_over_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert [count_streams(workers) for workers in (0, 1, 4)] == [1, 1, 4]
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert [count_streams(workers) for workers in (0, 1, 4)] == [8, 8, 32]
