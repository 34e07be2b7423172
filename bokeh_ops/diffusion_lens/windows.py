"""Which tokens can light of which others get to: blocks of keys, and windows of queries about them.

Shapes: ``N = h * w`` tokens, row by row, ``D`` features.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

Grid = tuple[int, int]
"""Rows and columns of tokens."""

_BLOCKS = (4, 8)
"""Tokens along a block of keys whose light is computed together."""
_DEARER = 3
"""How much more a pair in windows costs, as seen by ``python -m tests.benchmark_lens --attention``."""


@dataclass(frozen=True)
class Windows:
    """``B`` blocks of tokens as keys, and the tokens about each that their light can get to as queries.

    A block is ``block`` x ``block`` tokens, of which there are ``K``, and its window ``Q``, ``reach`` tokens more on
    each side. Where that is more work than all with all, the one block and its window are the whole grid.

    Attributes:
        grid: rows and columns of tokens.
        block: rows and columns of a block.
        reach: tokens that light gets from where it came from, along an axis.
    """

    grid: Grid
    block: Grid
    reach: int

    @classmethod
    def of(cls, grid: Grid, reach: int) -> Windows:
        """The cheapest."""
        sides = [(side, side) for side in _BLOCKS if side < max(grid)]
        found = min((cls(grid, each, reach) for each in sides), key=lambda each: each.pairs, default=None)
        whole = cls(grid, grid, 0)
        return whole if found is None or _DEARER * found.pairs > whole.pairs else found

    @property
    def blocks(self) -> Grid:
        return -(-self.grid[0] // self.block[0]), -(-self.grid[1] // self.block[1])

    @property
    def pairs(self) -> int:
        """Pairs of keys and queries."""
        keys, queries = self._sizes(0), self._sizes(self.reach)
        return self.blocks[0] * self.blocks[1] * keys[0] * keys[1] * queries[0] * queries[1]

    def _sizes(self, reach: int) -> Grid:
        return self.block[0] + 2 * reach, self.block[1] + 2 * reach

    def keys(self, maps: Tensor, beyond: float = 0.0) -> Tensor:
        """``[..., N, D]`` as ``[..., B, K, D]``; places beyond the grid get a value of their own."""
        return self._cut(maps, 0, beyond)

    def queries(self, maps: Tensor, beyond: float = 0.0) -> Tensor:
        """``[..., N, D]`` as ``[..., B, Q, D]``."""
        return self._cut(maps, self.reach, beyond)

    def _margins(self, reach: int) -> tuple[int, int, int, int]:
        """Places that the blocks have beyond the grid: left, right, above, below."""
        down, right = (
            many * side - size for many, side, size in zip(self.blocks, self.block, self.grid, strict=True)
        )
        return reach, right + reach, reach, down + reach

    def _cut(self, maps: Tensor, reach: int, beyond: float) -> Tensor:
        rows, columns = self._sizes(reach)
        laid = maps.mT.unflatten(-1, self.grid)  # [..., D, h, w]
        if any(margins := self._margins(reach)):
            laid = F.pad(laid, margins, value=beyond)
        cut = laid.unfold(-2, rows, self.block[0]).unfold(-2, columns, self.block[1])
        return cut.flatten(-2).flatten(-3, -2).movedim(-3, -1)

    def together(self, parts: Tensor) -> Tensor:
        """Sums over blocks: ``[..., B, Q, D]`` as ``[..., N, D]``."""
        size = self._sizes(self.reach)
        left, right, above, below = self._margins(self.reach)
        height, width = self.grid
        lead, features = parts.shape[:-3], parts.shape[-1]
        columns = parts.reshape(-1, *parts.shape[-3:]).permute(0, 3, 2, 1).flatten(1, 2)
        whole = F.fold(columns, (height + above + below, width + left + right), size, stride=self.block)
        cut = whole[..., above : above + height, left : left + width]
        return cut.flatten(2).mT.reshape(*lead, height * width, features)
