"""A cache in memory with a bound in bytes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

T = TypeVar("T")


class MemoryCache:
    """Keeps the values that were used last, up to a number of bytes."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.bytes = 0
        self.values: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()

    def get(self, key: Hashable, load: Callable[[], T], measure: Callable[[T], int]) -> T:
        """Return the value of a key, loaded first if it is not there.

        Args:
            key: the key.
            load: returns the value.
            measure: returns the size of a value in bytes. A value that is larger than the cache is not kept.
        """
        if key in self.values:
            self.values.move_to_end(key)
            return self.values[key][0]
        value = load()
        self.put(key, value, measure(value))
        return value

    def peek(self, key: Hashable) -> Any | None:
        """Return the value of a key, or None."""
        if key not in self.values:
            return None
        self.values.move_to_end(key)
        return self.values[key][0]

    def put(self, key: Hashable, value: Any, size: int) -> None:
        """Store a new value of ``size`` bytes and drop those that were not used for longest."""
        if size > self.max_bytes:
            return
        self.values[key] = (value, size)
        self.bytes += size
        while self.bytes > self.max_bytes:
            self.bytes -= self.values.popitem(last=False)[1][1]
