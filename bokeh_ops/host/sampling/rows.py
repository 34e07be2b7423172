"""What the rows of a sweep are given: their K and pivots, and of every input per picture that of their own picture.

The host deals inputs out over the rows of a batch: prompts, masks, hints and references are repeated or cut to it,
pictures to inpaint are stretched to it. The rows of a sweep are several of one picture. So each input is first fitted
to the pictures, by the host's own rule, and then given to all rows of a picture alike.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.utils
import torch
from comfy.conds import CONDConstant
from torch import Tensor

from ...adapter.conditions import Conditions
from ...adapter.rows import SweepRows
from .conditioning import (
    PER_ROW_KEY,
    PIVOT_KEY,
    SUBJECT_KEY,
    SUBJECT_TOLD_KEY,
    TOLD_KEY,
    PivotCondition,
    RowCondition,
    SubjectCondition,
    ToldCondition,
    released_negative,
)

Fit = Callable[[Tensor, int], Tensor]
"""One of the host's rules: a batch of inputs, and how many are wanted."""

# What a condition holds per picture, and how the host fits it to a batch.
_INPUTS: dict[str, Fit] = {
    "cross_attn": comfy.utils.repeat_to_batch_size,
    "cross_attn_controlnet": comfy.utils.repeat_to_batch_size,
    "pooled_output": comfy.utils.repeat_to_batch_size,
    "attention_mask": comfy.utils.repeat_to_batch_size,
    "reference_latents": comfy.utils.repeat_to_batch_size,
    "concat_latent_image": comfy.utils.resize_to_batch_size,
    "concat_mask": comfy.utils.resize_to_batch_size,
}


class Rows:
    """Makes the conditions of a sweep from those of its pictures.

    Args:
        rows: of the batch.
        k: per row.
        subject: mask over the latent, ``[1 or P, h, w]``, inside which K is the pivot's; None for nowhere.
    """

    def __init__(self, rows: SweepRows, k: list[float], subject: Tensor | None = None) -> None:
        self.rows, self.k, self.subject = rows, k, subject
        self._controls: dict[int, Any] = {}

    def condition(self, cond: dict[str, Any], name: str, grounded: bool) -> dict[str, Any]:
        """A copy of a condition with one K and one pivot per row, and with every picture's inputs for its rows.

        A branch that is not the positive keeps the K it was given where that does not follow the positive's; a negative
        one gets the released K where it was given none.

        Args:
            cond: as guiders hold it.
            name: of its branch.
            grounded: whether that branch is.
        """
        made = dict(cond)
        per_row = made.pop(PER_ROW_KEY, False)
        for key, fit in _INPUTS.items():
            if key in made and not per_row:
                made[key] = self._spread(made[key], fit)
        if isinstance(made.get("mask"), Tensor):
            made["mask"] = self._mask(made["mask"])
        if made.get("control") is not None:
            made["control"] = self._control(made["control"])
        conds = {key: self._other(value) for key, value in cond.get("model_conds", {}).items()}
        conds.update(self._bokeh(conds.get(TOLD_KEY), name, grounded))
        return {**made, "model_conds": conds}

    def _bokeh(self, given: Any, name: str, grounded: bool) -> dict[str, RowCondition]:
        rows = self.rows
        if given is None and "negative" in name:
            told = released_negative(rows.total)
        elif given is None or name == "positive" or given.follows:
            told = ToldCondition(Conditions.of_k(self.k))
        else:
            told = given.repeated(rows.total)
        pivots = rows.pivots() if grounded else [-1] * rows.total
        made: dict[str, RowCondition] = {
            TOLD_KEY: told,
            PIVOT_KEY: PivotCondition(torch.tensor(pivots, dtype=torch.float32)),
        }
        if self.subject is not None:
            made[SUBJECT_TOLD_KEY] = ToldCondition(rows.tile(told.cond[: rows.pictures]))
            made[SUBJECT_KEY] = SubjectCondition(rows.tile(self.subject.expand(rows.pictures, -1, -1)))
        return made

    def _spread(self, value: Any, fit: Fit) -> Any:
        """Inputs for all rows, where there are several; a list holds several kinds of them."""
        if isinstance(value, (list, tuple)):
            return [self._spread(part, fit) for part in value]
        if not isinstance(value, Tensor) or value.ndim == 0 or value.shape[0] <= 1:
            return value
        return self.rows.tile(fit(value, self.rows.pictures))

    def _mask(self, mask: Tensor) -> Tensor:
        """Masks for all rows; behind them those that no picture gets, as the host bounds an area by all of them."""
        if mask.ndim < 3 or mask.shape[0] == 1:
            return mask
        return torch.cat([self._spread(mask, comfy.utils.repeat_to_batch_size), mask[self.rows.pictures :]])

    def _control(self, control: Any) -> Any:
        """A ControlNet's like whose hints are per row. One for all branches, or the host would not batch them."""
        if id(control) in self._controls:
            return self._controls[id(control)]
        previous = getattr(control, "previous_controlnet", None)
        before = None if previous is None else self._control(previous)
        hint = getattr(control, "cond_hint_original", None)
        made = control
        uneven = isinstance(hint, Tensor) and hint.shape[0] not in (1, self.rows.pictures)
        if uneven or before is not previous:
            made = control.copy()
            made.set_previous_controlnet(before)
        if isinstance(hint, Tensor) and uneven:
            made.cond_hint_original = self._spread(hint, comfy.utils.repeat_to_batch_size)
            made.extra_concat_orig = [
                self._spread(
                    comfy.utils.repeat_to_batch_size(extra, len(hint)), comfy.utils.repeat_to_batch_size
                )
                for extra in getattr(control, "extra_concat_orig", ())
            ]
        self._controls[id(control)] = made
        return made

    def _other(self, value: Any) -> Any:
        """Another extension's condition for the model, per row."""
        inner = getattr(value, "cond", None)
        if isinstance(value, (RowCondition, CONDConstant)) or not hasattr(value, "_copy_with"):
            return value
        spread = self._spread(inner, comfy.utils.repeat_to_batch_size)
        return value if spread is inner else value._copy_with(spread)
