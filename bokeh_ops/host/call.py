"""What the attention of one model call needs, prepared once before the model runs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..attention import Grounding


@dataclass(frozen=True)
class Call:
    """One model call.

    Attributes:
        terms: by layer path, the bokeh terms to add: ``(K_b, V_b)`` pairs ``[R, T, C]`` on the model's device,
            ``V_b`` already times lambda.
        grounding: the plan for these rows, or None where no row is grounded.
    """

    terms: dict[str, list[tuple[Tensor, Tensor]]]
    grounding: Grounding | None


def add_term(out: Tensor, term: Tensor) -> Tensor:
    """``out + term``, in place where no gradient is wanted."""
    term = term.to(out.dtype)
    if torch.is_grad_enabled() and (out.requires_grad or term.requires_grad):
        return out + term
    return out.add_(term)
