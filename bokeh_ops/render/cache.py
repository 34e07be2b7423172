"""What was made before and may be needed again, no more of it than a number of bytes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import Lock
from typing import Generic, Protocol, TypeVar


class Sized(Protocol):
    """An array, a tensor, or anything else that says how large it is."""

    @property
    def nbytes(self) -> int: ...


V = TypeVar("V", bound=Sized)


class ByteCache(Generic[V]):
    """Values by key; the ones longest not asked for are dropped first.

    Args:
        limit: bytes that are kept at most. What is larger than a quarter of this is not kept at all.

    Attributes:
        held: bytes that are kept.
        found, made: how often a value was there, and how often not.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.held, self.found, self.made = limit, 0, 0, 0
        self._values: OrderedDict[Hashable, V] = OrderedDict()
        self._lock = Lock()

    def get(self, key: Hashable, make: Callable[[], V]) -> V:
        """The value of a key, made if it is not there. Whoever gets it must not change it."""
        with self._lock:
            value = self._values.get(key)
            if value is not None:
                self.found += 1
                self._values.move_to_end(key)
                return value
        value = make()
        with self._lock:
            self.made += 1
            if value.nbytes <= self.limit // 4 and key not in self._values:
                self._values[key] = value
                self.held += value.nbytes
                while self.held > self.limit:
                    self.held -= self._values.popitem(last=False)[1].nbytes
        return value
