"""What the attention of one model call needs, prepared once before the model runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ..attention import Grounding
from ..errors import BokehError

Terms = dict[str, list[tuple[Tensor, Tensor]]]
"""By layer path, the bokeh terms to add: ``(K_b, V_b)`` pairs ``[R, T, C]`` on the model's device, ``V_b`` already
times lambda."""


@dataclass(frozen=True)
class Region:
    """A part of the picture where other terms act.

    Attributes:
        terms: inside; of the same layers and adapters as the call's.
        mask: how far inside each place of the latent is, ``[R, h, w]``, 0..1.
        before: tokens that come before those of the picture (FLUX: the text's).
    """

    terms: Terms
    mask: Tensor
    before: int = 0

    def share(self, tokens: int) -> Tensor:
        """The mask for a layer of so many tokens, ``[R, tokens, 1]``.

        The text's tokens get the picture's mean, so that a mask that is 1 everywhere leaves nothing outside.

        Raises:
            BokehError: no halving of the latent has so many places.
        """
        height, width = self.mask.shape[-2:]
        for scale in (1, 2, 4, 8, 16):
            rows, columns = -(-height // scale), -(-width // scale)
            # FLUX has patches of 2 x 2, and what comes after them is of other pictures.
            if (scale == 2 and self.before) or (not self.before and rows * columns == tokens):
                places = functional.adaptive_avg_pool2d(self.mask[:, None], (rows, columns)).flatten(1)
                after = tokens - self.before - places.shape[1]
                if after >= 0:
                    text = places.mean(1, keepdim=True).expand(-1, self.before)
                    return torch.cat([text, functional.pad(places, (0, after))], 1)[..., None]
        raise BokehError(
            f"A layer has {tokens} tokens, which fit no halving of a latent of {height} x {width}, so the subject's "
            "mask does not fit. Another extension merges tokens (ToMe does); remove it, or give no subject."
        )


@dataclass(frozen=True)
class Call:
    """One model call.

    Attributes:
        terms: the bokeh terms.
        grounding: the plan for these rows, or None where no row is grounded.
        region: where other terms act, or None.
    """

    terms: Terms
    grounding: Grounding | None
    region: Region | None = None


def bokeh_terms(
    call: Call, path: str, tokens: int, attend: Callable[[Tensor, Tensor], Tensor]
) -> Iterator[Tensor]:
    """The terms of a layer, one for each adapter, ``[R, 1 or tokens, C]``.

    Args:
        call: the model call.
        path: of the layer.
        tokens: of the layer.
        attend: the term of ``(K_b, V_b)``.
    """
    for index, pair in enumerate(call.terms.get(path, ())):
        term = attend(*pair)
        if call.region is not None:
            inside = attend(*call.region.terms[path][index])
            term = torch.lerp(term, inside, call.region.share(tokens).to(term))
        yield term


def add_term(out: Tensor, term: Tensor) -> Tensor:
    """``out + term``, in place where no gradient is wanted."""
    term = term.to(out.dtype)
    if torch.is_grad_enabled() and (out.requires_grad or term.requires_grad):
        return out + term
    return out.add_(term)
