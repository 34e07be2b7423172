"""Results that took long, kept in memory by the content of what they were made from."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock

from torch import Tensor


@dataclass
class _Entry:
    value: Tensor
    used: int  # number of the last run that asked for it


class Kept:
    """Tensors by name (:func:`.content_key`), on the CPU, up to so many bytes. Several threads may use it at once.

    Where there is no room, what was not used for longest goes first; but nothing that the same run has asked for, or a
    video that is larger than the room would push out its first frames for its last, and find none of them next time.
    So of such a video as much is kept as there is room for, and the rest is made again each time.

    Args:
        room: bytes.
    """

    def __init__(self, room: int) -> None:
        self.room = room
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._runs = 0
        self._lock = Lock()

    @property
    def bytes(self) -> int:
        """How much is kept now."""
        with self._lock:
            return self._size()

    def run(self) -> Run:
        """To be asked for once by whatever looks several things up for one purpose, such as the frames of a video."""
        with self._lock:
            self._runs += 1
            return Run(self, self._runs)

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._entries.clear()

    def _size(self) -> int:
        return sum(entry.value.nbytes for entry in self._entries.values())

    def _find(self, key: str, run: int) -> Tensor | None:
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                return None
            entry.used = run
            self._entries.move_to_end(key)
            return entry.value

    def _keep(self, key: str, value: Tensor, run: int) -> None:
        with self._lock:
            free = self.room - self._size()
            leaving = []
            for other, entry in self._entries.items():
                if free >= value.nbytes or entry.used == run:
                    break
                leaving.append(other)
                free += entry.value.nbytes
            if free >= value.nbytes:
                for other in leaving:
                    del self._entries[other]
                self._entries[key] = _Entry(value, run)


class Run:
    """One use of what is kept; from :meth:`Kept.run`."""

    def __init__(self, kept: Kept, number: int) -> None:
        self._kept, self._number = kept, number

    def of(self, key: str, make: Callable[[], Tensor]) -> Tensor:
        """What is kept under a name, or else what ``make`` makes, which is then kept.

        The tensor is shared with every later use: it may be read, never written to.
        """
        found = self._kept._find(key, self._number)
        if found is None:
            found = make()
            self._kept._keep(key, found, self._number)
        return found
