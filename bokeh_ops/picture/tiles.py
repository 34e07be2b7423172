"""Pictures in tiles that overlap, and put together again without seams."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import BokehError


class Tile(NamedTuple):
    """A part of a picture."""

    top: int
    left: int
    height: int
    width: int

    def of(self, picture: Tensor, scale: int = 1) -> Tensor:
        """The part ``[..., h, w]`` of a picture that has ``scale`` places along each of the tiles'."""
        top, left, height, width = (scale * each for each in self)
        return picture[..., top : top + height, left : left + width]


def tiled(height: int, width: int, side: int, overlap: float = 0.25) -> list[Tile]:
    """Tiles that cover a picture.

    A picture of less than one and a half tiles is one tile. Otherwise tiles are squares, where the picture is large
    enough, that lie evenly.

    Args:
        height, width: of the picture.
        side: of a tile.
        overlap: neighbours share at least this part of a side.

    Raises:
        BokehError: sizes below 1, or an overlap outside 0 up to below 1.
    """
    if min(height, width, side) < 1 or not 0 <= overlap < 1:
        raise BokehError(
            f"Tiles of {side} with an overlap of {overlap} were asked for in a picture of {width} x {height}; sizes "
            "must be at least 1 and the overlap 0 up to below 1."
        )
    if height * width < 1.5 * side * side and max(height, width) < 2 * side:
        return [Tile(0, 0, height, width)]
    return [
        Tile(top, left, min(side, height), min(side, width))
        for top in _starts(height, side, overlap)
        for left in _starts(width, side, overlap)
    ]


def _starts(length: int, side: int, overlap: float) -> list[int]:
    if length <= side:
        return [0]
    steps = math.ceil((length - side) / max(1.0, side * (1 - overlap)))
    return [round(step * (length - side) / steps) for step in range(steps + 1)]


def from_tiles(like: Tensor, tiles: list[Tile], make: Callable[[Tile], Tensor]) -> Tensor:
    """Put a picture together from its tiles, each of which counts the less the nearer its edge is.

    A tile's weight falls to nothing at those of its edges that lie inside the picture, so nothing changes by a jump
    where it ends.

    Args:
        like: ``[R, ..., H, W]``, of the picture to make.
        tiles: that cover it.
        make: gives a tile's part ``[R, ..., h, w]``.
    """
    if len(tiles) == 1:
        return make(tiles[0])
    total = torch.zeros_like(like)
    weight = torch.zeros(like.shape[-2:], dtype=like.dtype, device=like.device)
    for tile in tiles:
        share = _share(tile, like)
        tile.of(total).add_(make(tile) * share)
        tile.of(weight).add_(share)
    return total / weight


def _share(tile: Tile, like: Tensor) -> Tensor:
    height, width = like.shape[-2:]
    rows, columns = (
        _ramp(start, size, whole, like)
        for start, size, whole in ((tile.top, tile.height, height), (tile.left, tile.width, width))
    )
    return rows[:, None] * columns


def _ramp(start: int, size: int, whole: int, like: Tensor) -> Tensor:
    """Weights along a side, Vorbis' window over the half of the tile next to an edge inside the picture."""
    at = (torch.arange(size, device=like.device, dtype=like.dtype) + 0.5) / size
    rise = torch.sin(math.pi / 2 * torch.sin(math.pi * at).square()).square()
    ones = torch.ones_like(rise)
    before = rise if start > 0 else ones
    after = rise if start + size < whole else ones
    return torch.where(at < 0.5, before, after)


def fitted(length: int, multiple: int) -> int:
    """The least multiple that is at least ``length``."""
    return -(-length // multiple) * multiple
