"""Carrying what an adapter is told, and which rows are grounded on which, inside the host's CONDITIONING.

Both travel as model conditions, a few numbers per row of the latent batch: the host repeats them to the batch,
joins them over the chunks of classifier-free guidance and hands them to the model's forward as keywords.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from comfy.conds import CONDRegular
from torch import Tensor

from ...adapter.conditions import Conditions, K
from ...errors import BokehError

TOLD_KEY = "bokeh"
PIVOT_KEY = "bokeh_pivot"
SUBJECT_KEY = "bokeh_subject"
SUBJECT_TOLD_KEY = "bokeh_in_subject"

PER_ROW_KEY = "bokeh_per_row"
"""In the settings of a CONDITIONING: its prompts are one for each row of a sweep, the pivots' first, and not one for
each picture. For comparisons with sweeps by words."""

NEGATIVE_MODES = ("released (-30)", "same K", "none")
"""What the negative branch is told: the released code's K = -30, the same K, or no bokeh at all."""


class RowCondition(CONDRegular):
    """A few numbers, or one mask, per row of the latent batch.

    The host would cycle or cut a list that does not fit the batch; this raises instead.
    """

    what = "values"

    def process_cond(self, batch_size: int, *args: Any, **kwargs: Any) -> RowCondition:
        count = self.cond.shape[0]
        if batch_size % count:
            raise BokehError(
                f"There are {count} {self.what} for a latent batch of {batch_size}. "
                f"Give one for all, or one per picture ({batch_size})."
            )
        return self.__class__(self.cond.repeat(batch_size // count, *[1] * (self.cond.ndim - 1)))


class ToldCondition(RowCondition):
    """What an adapter is told per row: :meth:`.Conditions.pack`, fp32 ``[R, fields + 1]``.

    Args:
        conditions: of the rows, packed or not.
        follows: whether its branch is told what the positive one is, in a sweep the K of each row. What does not follow
            (the released negative, no bokeh at all) stays as it is.
    """

    what = "K values"

    def __init__(self, conditions: Conditions | Tensor, follows: bool = True) -> None:
        super().__init__(conditions if isinstance(conditions, Tensor) else conditions.pack())
        self.follows = follows

    def repeated(self, rows: int) -> ToldCondition:
        """The first row's for so many rows."""
        return ToldCondition(self.cond[:1].repeat(rows, 1), self.follows)


class PivotCondition(RowCondition):
    """Per row the row of its pivot in the same chunk, or -1. Float, as the host joins it with nothing else.

    The model is given pairs ``[R, 2]``, each row's own number beside its pivot's: so a pivot is found wherever another
    extension puts the rows, and missed where it leaves it out (:func:`.patch.ground_rows`).
    """

    what = "pivot rows"

    def process_cond(self, batch_size: int, *args: Any, **kwargs: Any) -> RowCondition:
        if self.cond.ndim == 2:
            return super().process_cond(batch_size)
        pivots = super().process_cond(batch_size).cond
        return PivotCondition(torch.stack([torch.arange(batch_size).to(pivots), pivots], 1))


class PictureCondition(RowCondition):
    """Per row something for each place of the latent, ``[R, ..., h, w]``."""

    what = "pictures"

    def process_cond(
        self, batch_size: int, *args: Any, area: Sequence[int] | None = None, **kwargs: Any
    ) -> RowCondition:
        """As the host crops its own masks where a prompt acts in a part of the picture alone."""
        whole = super().process_cond(batch_size).cond
        if area is not None:
            for axis in (0, 1):
                whole = whole.narrow(axis - 2, area[axis + len(area) // 2], area[axis])
        return self.__class__(whole)


class SubjectCondition(PictureCondition):
    """Per row a mask over the latent, ``[R, h, w]``: where K is that of ``bokeh_subject_k`` instead."""

    what = "masks"


def released_negative(rows: int = 1) -> ToldCondition:
    """What the released code tells the negative branch."""
    return ToldCondition(Conditions.of_k([K.negative] * rows), follows=False)


def with_conditions(conditioning: Any, **model_conds: CONDRegular) -> list[Any]:
    """A copy of a CONDITIONING whose every entry carries ``model_conds`` too; the input is not touched."""
    result = []
    for embedding, settings, *rest in conditioning:
        settings = settings.copy()
        settings["model_conds"] = {**settings.get("model_conds", {}), **model_conds}
        result.append([embedding, settings, *rest])
    return result


def with_k(conditioning: Any, values: Sequence[float]) -> list[Any]:
    """A copy of a CONDITIONING with K attached to every entry."""
    return with_conditions(conditioning, **{TOLD_KEY: ToldCondition(Conditions.of_k(values))})


def with_negative_k(conditioning: Any, values: Sequence[float], mode: str) -> list[Any]:
    """A copy of a negative branch's CONDITIONING that is told what goes with the positive one's K.

    Args:
        values: K of the positive branch.
        mode: one of :data:`NEGATIVE_MODES`.

    Raises:
        BokehError: ``mode`` is none of them.
    """
    if mode not in NEGATIVE_MODES:
        raise BokehError(f"The negative mode is {mode!r}; expected one of {', '.join(NEGATIVE_MODES)}.")
    released, same, _none = NEGATIVE_MODES
    if mode == same:
        return with_k(conditioning, values)
    # Without the adapter it is still told something, so that both branches stay one batch.
    told = (
        released_negative()
        if mode == released
        else ToldCondition(Conditions.of_k([0.0], False), follows=False)
    )
    return with_conditions(conditioning, **{TOLD_KEY: told})


def has_k(conditioning: Any) -> bool:
    """Whether any entry of a CONDITIONING carries K."""
    return any(TOLD_KEY in entry[1].get("model_conds", {}) for entry in conditioning)
