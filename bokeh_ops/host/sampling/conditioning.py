"""Carrying K, and which rows are grounded on which, inside the host's CONDITIONING.

Both travel as model conditions, one number per row of the latent batch: the host repeats them to the batch,
joins them over the chunks of classifier-free guidance and hands them to the model's forward as keywords.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from comfy.conds import CONDRegular
from torch import Tensor

from ...adapter.network import K_RELEASED_NEGATIVE
from ...errors import BokehError

K_KEY = "bokeh_k"
PIVOT_KEY = "bokeh_pivot"
SUBJECT_KEY = "bokeh_subject"
SUBJECT_K_KEY = "bokeh_subject_k"

PER_ROW_KEY = "bokeh_per_row"
"""In the settings of a CONDITIONING: its prompts are one for each row of a sweep, the pivots' first, and not one for
each picture. For comparisons with sweeps by words."""

NEGATIVE_MODES = ("released (-30)", "same K", "none")
"""What the negative branch is told: the released code's K = -30, the same K, or no bokeh at all."""

NO_BOKEH = float("nan")
"""K of a row whose branch runs without the adapter; a number, so that both branches stay one batch."""


class RowCondition(CONDRegular):
    """One number, or one mask, per row of the latent batch.

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


class KCondition(RowCondition):
    """K per row, fp32; NaN where the row runs without bokeh."""

    what = "K values"


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


class SubjectCondition(RowCondition):
    """Per row a mask over the latent, ``[R, h, w]``: where K is that of ``bokeh_subject_k`` instead."""

    what = "masks"

    def process_cond(
        self, batch_size: int, *args: Any, area: Sequence[int] | None = None, **kwargs: Any
    ) -> RowCondition:
        """As the host crops its own masks where a prompt acts in a part of the picture alone."""
        mask = super().process_cond(batch_size).cond
        if area is not None:
            for axis in (0, 1):
                mask = mask.narrow(axis + 1, area[axis + len(area) // 2], area[axis])
        return SubjectCondition(mask)


def k_tensor(values: Sequence[float]) -> Tensor:
    """K values as the fp32 tensor that conditions carry.

    Raises:
        BokehError: no value at all.
    """
    if not len(values):
        raise BokehError("The list of K values is empty; give at least one.")
    return torch.tensor(list(values), dtype=torch.float32)


def negative_k(values: Sequence[float], mode: str) -> list[float]:
    """K of the negative branch for positive ``values``.

    Raises:
        BokehError: ``mode`` is none of :data:`NEGATIVE_MODES`.
    """
    if mode == NEGATIVE_MODES[0]:
        return [K_RELEASED_NEGATIVE]
    if mode == NEGATIVE_MODES[1]:
        return list(values)
    if mode == NEGATIVE_MODES[2]:
        return [NO_BOKEH]
    raise BokehError(f"The negative mode is {mode!r}; expected one of {', '.join(NEGATIVE_MODES)}.")


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
    return with_conditions(conditioning, **{K_KEY: KCondition(k_tensor(values))})


def has_k(conditioning: Any) -> bool:
    """Whether any entry of a CONDITIONING carries K."""
    return any(K_KEY in entry[1].get("model_conds", {}) for entry in conditioning)
