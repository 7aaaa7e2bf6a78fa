"""Batches in threads of their own: order, bounds, errors and the number of PyTorch's threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from itertools import count, islice

import pytest
import torch

from s3dnerf.rendering.threads import MOST_THREADS, delay_by_one, map_in_threads


@pytest.fixture(params=[1, 2, 9])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    assert torch.get_num_threads() == request.param
    torch.set_num_threads(before)


def test_results_come_in_order_from_threads_that_share_those_of_torch(threads: int) -> None:
    def work(number: int) -> tuple[int, int]:
        time.sleep(0.01 * (number % 3 == 0))
        return number, torch.get_num_threads()

    expected = threads // min(threads, MOST_THREADS)
    assert list(map_in_threads(work, range(10))) == [(number, expected) for number in range(10)]
    assert list(map_in_threads(work, [])) == []


def test_items_are_taken_as_they_are_needed(threads: int) -> None:
    taken = []
    results = map_in_threads(lambda item: item, (taken.append(item) or item for item in count()))
    assert list(islice(results, 3)) == [0, 1, 2]
    assert len(taken) <= 3 + min(threads, MOST_THREADS)
    results.close()


def test_items_are_made_in_as_many_threads_as_results(threads: int) -> None:
    def make() -> Iterator[int]:
        for _ in range(5):
            yield torch.get_num_threads()

    expected = threads // min(threads, MOST_THREADS)
    for made in map_in_threads(lambda made: made, make()):
        assert (made, torch.get_num_threads()) == (expected, threads)


def test_threads_that_begin_meanwhile_have_all_of_torch(threads: int) -> None:
    seen = []

    def make() -> Iterator[int]:
        for number in range(5):
            beginner = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
            beginner.start()
            beginner.join()
            yield number

    assert list(map_in_threads(lambda number: number, make())) == list(range(5))
    assert seen == [threads] * 5


def test_nested_iterations_that_end_early_leave_the_number_of_threads(threads: int) -> None:
    inner = map_in_threads(lambda number: number, range(10))
    outer = map_in_threads(lambda number: number, inner)
    assert next(outer) == 0
    outer.close()
    inner.close()
    assert torch.get_num_threads() == threads


def test_an_error_ends_the_iteration_at_its_item(threads: int) -> None:
    def work(number: int) -> int:
        if number == 2:
            raise RuntimeError("two")
        return number

    results = map_in_threads(work, range(100))
    assert list(islice(results, 2)) == [0, 1]
    with pytest.raises(RuntimeError, match="two"):
        next(results)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("render")]


def test_a_delay_by_one_takes_the_next_item_first() -> None:
    taken = []
    late = delay_by_one(taken.append(item) or item for item in range(3))
    assert next(late) == 0 and taken == [0, 1]
    assert list(late) == [1, 2] and taken == [0, 1, 2]
    assert list(delay_by_one([])) == []
