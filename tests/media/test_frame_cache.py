"""The frame cache: frames within the limit are made once, longer videos again, and nothing is lost in between."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import numpy as np
import pytest

from s3dnerf.media.video import FrameCache

FRAME_BYTES = 12


class Source:
    """Five frames of 12 bytes, with a count of how often they were opened and made."""

    def __init__(self) -> None:
        self.opened = self.made = 0

    def __call__(self) -> Iterator[np.ndarray]:
        self.opened += 1
        for value in range(5):
            self.made += 1
            yield np.full((2, 2, 3), value, np.uint8)


def read_values(cache: FrameCache) -> list[int]:
    return [int(frame[0, 0, 0]) for frame in cache]


@pytest.mark.parametrize(("limit", "opened", "made"), [(5, 1, 5), (4, 3, 15), (0, 3, 15)])
def test_frames_are_made_once_within_the_limit(limit: int, opened: int, made: int) -> None:
    source = Source()
    cache = FrameCache(source, limit * FRAME_BYTES)
    assert [read_values(cache) for _ in range(3)] == [[0, 1, 2, 3, 4]] * 3
    assert (source.opened, source.made) == (opened, made) and cache.is_too_large == (limit < 5)


@pytest.mark.parametrize(("limit", "made"), [(5, 5), (1, 8)])
def test_an_iteration_that_stops_early_is_continued(limit: int, made: int) -> None:
    source = Source()
    cache = FrameCache(source, limit * FRAME_BYTES)
    assert len(list(islice(cache, 3))) == 3
    assert read_values(cache) == [0, 1, 2, 3, 4] and source.made == made


def test_errors_of_the_source_are_raised_by_every_iteration() -> None:
    def fail() -> Iterator[np.ndarray]:
        yield np.zeros((2, 2, 3), np.uint8)
        raise ValueError("damaged")

    cache = FrameCache(fail, 100)
    for _ in range(2):
        with pytest.raises(ValueError, match="damaged"):
            list(cache)
