"""The order in which training goes through a data set: random, but known at every position."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bokeh_ops.errors import BokehError


class Order:
    """An endless sequence of indices: pass after pass over all of them, every pass shuffled anew.

    ``order[position]`` depends on nothing but seed and position, so the position, one number, is all that has to
    be kept to go on where a run stopped, and several processes that share the positions out share the data out.

    Args:
        indices: what to go through, or how many: 0 to ``indices - 1``.
        seed: 0 or more.

    Raises:
        BokehError: nothing to go through.
    """

    def __init__(self, indices: int | Sequence[int] | np.ndarray, seed: int = 0) -> None:
        self.indices = np.arange(indices) if isinstance(indices, int) else np.asarray(indices, dtype=np.int64)
        if len(self.indices) == 0:
            raise BokehError("There is nothing to go through: the data set, or the part asked for, is empty.")
        self.seed = seed
        self._pass = -1
        self._shuffled = self.indices

    def __getitem__(self, position: int) -> int:
        """The index at a position, 0 or more."""
        if position < 0:
            raise BokehError(f"The position is {position}; it must be 0 or more.")
        number, place = divmod(position, len(self.indices))
        if number != self._pass:
            self._shuffled = np.random.default_rng([self.seed, number]).permutation(self.indices)
            self._pass = number
        return int(self._shuffled[place])
