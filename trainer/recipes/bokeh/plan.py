"""What every step trains on, worked out from the settings and the number of the step alone.

So a resumed run, and one that is shared out over any number of processes, trains on the same pictures with the same
K, captions, noise and noise levels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from bokeh_ops.adapter.conditions import K
from bokeh_ops.errors import BokehError
from trainer.config import Fit
from trainer.data.order import Order
from trainer.data.pairs.render import Levels, draw_levels
from trainer.seeded import generator as draws

Kind = Literal["photographs", "contrastive"]
VALIDATION = 2**32 - 1
"""A step that no run reaches, whose noise is that of the validation."""


@dataclass(frozen=True)
class Picture:
    """One row of a step.

    Attributes:
        slot: its number in the step.
        index: of the photograph in the data set (or of the rendered picture in the folder of pairs).
        k: K of the picture.
        told: K that the adapter is told: ``k``, or -30 where the condition is dropped.
        caption: which caption, as a share 0 to 1 of those there are; None for the empty one.
        pivot: slot of the pivot that the row is grounded on, or -1.
        scene: number that noise and noise level are drawn by: rows of one scene share both.
    """

    slot: int
    index: int
    k: float
    told: float
    caption: float | None
    pivot: int
    scene: int


@dataclass(frozen=True)
class MicroBatch:
    """Rows that are in memory at once.

    Attributes:
        step, number: which.
        kind: in-the-wild photographs, or contrastive sets (whole ones).
        stored: whether the pictures of the sets lie in the folder of pairs; else they are rendered.
        pictures: the rows.
    """

    step: int
    number: int
    kind: Kind
    stored: bool
    pictures: tuple[Picture, ...]

    def pivots(self) -> list[int]:
        """Per row the row of its pivot in this micro-batch, or -1."""
        rows = {picture.slot: row for row, picture in enumerate(self.pictures)}
        return [rows.get(picture.pivot, -1) for picture in self.pictures]


@dataclass(frozen=True)
class Stock:
    """What there is to train on.

    Attributes:
        k: K of every photograph, NaN where unknown, float64 ``[N]``.
        all_in_focus: bool ``[N]``.
        pairs_k: K of every picture in the folder of pairs, set by set, float64 ``[sets, levels]``; or None.
    """

    k: np.ndarray
    all_in_focus: np.ndarray
    pairs_k: np.ndarray | None = None

    @property
    def scenes(self) -> int:
        """How many sets, or photographs to render sets from, there are."""
        return int(self.all_in_focus.sum()) if self.pairs_k is None else len(self.pairs_k)


class Plan:
    """All steps of a run.

    Args:
        settings: resolved (:meth:`Fit.resolved`).
        stock: the data.

    Raises:
        BokehError: the data lacks what the settings ask for.
    """

    def __init__(self, settings: Fit, stock: Stock) -> None:
        self.settings, self.stock = settings, stock
        self.total = settings.resolved_total()
        self.sets = self.total // settings.contrastive.levels
        share = settings.contrastive.share
        known = np.flatnonzero(~np.isnan(stock.k))
        scenes = (
            np.flatnonzero(stock.all_in_focus) if stock.pairs_k is None else np.arange(len(stock.pairs_k))
        )
        if share < 1 and not len(known):
            raise BokehError(
                f"None of the {len(stock.k)} photographs has a known K, so there is nothing to train on in the wild. "
                "Prepare photographs with lens data, or set contrastive.share to 1."
            )
        if share > 0 and not len(scenes):
            raise BokehError(
                f"None of the {len(stock.k)} photographs is all in focus, so no contrastive sets can be rendered. "
                "Prepare photographs taken at small apertures, or set contrastive.share to 0."
            )
        if stock.pairs_k is not None and stock.pairs_k.shape[1] < settings.contrastive.levels:
            raise BokehError(
                f"The sets in {settings.data.pairs} have {stock.pairs_k.shape[1]} pictures and contrastive.levels is "
                f"{settings.contrastive.levels}; lower it, or render sets with more."
            )
        self._coins = np.zeros(0, dtype=bool)
        self._before = np.zeros(1, dtype=np.int64)
        self._known = Order(known, settings.seed) if share < 1 else None
        self._scenes = Order(scenes, settings.seed + 1) if share > 0 else None

    def kind(self, step: int) -> Kind:
        """Which kind of step number ``step`` (from 0) is: a coin is thrown for each."""
        self._throw(step + 1)
        return "contrastive" if self._coins[step] else "photographs"

    def _throw(self, steps: int) -> None:
        """Throw the coins of the first ``steps`` steps; ``_before[s]`` counts the contrastive ones before ``s``."""
        have = len(self._coins)
        if have >= steps:
            return
        seed, share = self.settings.seed, self.settings.contrastive.share
        more = [bool(draws(seed, "kind", step).random() < share) for step in range(have, steps + 1023)]
        self._coins = np.concatenate([self._coins, np.array(more, dtype=bool)])
        self._before = np.concatenate([[0], np.cumsum(self._coins)])

    def micro_batches(self, step: int, rank: int = 0, world: int = 1) -> Iterator[MicroBatch]:
        """The micro-batches of a step that process ``rank`` of ``world`` computes: every ``world``-th."""
        for number, pictures in enumerate(self._chunks(step)):
            if number % world == rank:
                stored = self.stock.pairs_k is not None
                yield MicroBatch(step, number, self.kind(step), stored, tuple(pictures))

    def validation(self, count: int) -> Iterator[MicroBatch]:
        """A fixed part of the photographs, with noise and noise levels that never change, for :data:`VALIDATION`."""
        known = np.flatnonzero(~np.isnan(self.stock.k))
        chosen = draws(self.settings.seed, "validation").permutation(known)[:count].tolist()
        rows = [
            Picture(slot, index, float(self.stock.k[index]), float(self.stock.k[index]), 0.0, -1, slot)
            for slot, index in enumerate(chosen)
        ]
        micro = self.settings.batch.micro
        for number, start in enumerate(range(0, len(rows), micro)):
            yield MicroBatch(VALIDATION, number, "photographs", False, tuple(rows[start : start + micro]))

    def _chunks(self, step: int) -> Iterator[Sequence[Picture]]:
        micro, levels = self.settings.batch.micro, self.settings.contrastive.levels
        if self.kind(step) == "contrastive":
            together = micro // levels
            for start in range(0, self.sets, together):
                scenes = range(start, min(start + together, self.sets))
                yield [picture for scene in scenes for picture in self._set(step, scene)]
            return
        for start in range(0, self.total, micro):
            yield [self._photograph(step, slot) for slot in range(start, min(start + micro, self.total))]

    def _photograph(self, step: int, slot: int) -> Picture:
        assert self._known is not None
        done = step - int(self._before[step])
        index = self._known[done * self.total + slot]
        caption, dropped = self._dropped(step, slot)
        k = float(self.stock.k[index])
        return Picture(slot, index, k, K.negative if dropped else k, caption, -1, slot)

    def _set(self, step: int, scene: int) -> list[Picture]:
        """One scene: its K, its pivot and its caption.

        Where the condition is dropped it is dropped for the whole scene, and the rows are not grounded: that is how
        the negative branch samples (sec. 3.4 of the paper, released code), and rows that are all told the same
        could not tell what to take from the pivot.
        """
        assert self._scenes is not None
        levels = self.settings.contrastive.levels
        position = int(self._before[step]) * self.sets + scene
        number = self._scenes[position]
        source = draws(self.settings.seed, "set", step, scene)
        if self.stock.pairs_k is not None:
            available = self.stock.pairs_k.shape[1]
            chosen = sorted(source.permutation(available)[:levels].tolist())
            indices = [number * available + place for place in chosen]
            ks = [float(self.stock.pairs_k[number, place]) for place in chosen]
        else:
            indices, ks = [number] * levels, self._levels(number, position)
        first = scene * levels
        pivot = first + int(source.integers(levels))
        caption, dropped = self._dropped(step, first)
        return [
            Picture(
                slot=first + place,
                index=indices[place],
                k=ks[place],
                told=K.negative if dropped else ks[place],
                caption=caption,
                pivot=-1 if dropped or first + place == pivot else pivot,
                scene=first,
            )
            for place in range(levels)
        ]

    def _levels(self, photograph: int, position: int) -> list[float]:
        wanted = self.settings.contrastive
        levels = Levels(wanted.levels, wanted.k_least, wanted.k_most, wanted.sharp)
        visit = position // self.stock.scenes
        if wanted.variants:
            visit %= wanted.variants
        return draw_levels(draws(self.settings.seed, "levels", photograph, visit), levels)

    def _dropped(self, step: int, slot: int) -> tuple[float | None, bool]:
        """Which caption (None: the empty one), and whether the condition is dropped."""
        source = draws(self.settings.seed, "dropout", step, slot)
        place, which = source.random(), float(source.random())
        wanted = self.settings.dropout
        both = place < wanted.both
        caption = both or place < wanted.both + wanted.caption
        condition = both or (not caption and place < wanted.both + wanted.caption + wanted.condition)
        return (None if caption else which), condition
