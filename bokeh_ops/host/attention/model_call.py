"""What the attention of one model call needs, prepared once before the model runs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ...adapter.attention import Grounding
from ...errors import BokehError

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

    def share(self, size: Sequence[int], tokens: int) -> Tensor:
        """The mask for the tokens of a layer, ``[R, tokens, 1]``.

        The text's tokens get the picture's mean, so that a mask that is 1 everywhere leaves nothing outside. What
        comes after the picture's tokens is of other pictures (FLUX: references), and outside.

        Args:
            size: height and width of the picture in that layer, in tokens.
            tokens: of the layer, text and other pictures included.

        Raises:
            BokehError: the layer has other tokens.
        """
        places = functional.adaptive_avg_pool2d(self.mask[:, None], (size[0], size[1])).flatten(1)
        after = tokens - self.before - places.shape[1]
        if after < 0 or (after and not self.before):
            raise BokehError(
                f"A layer has {tokens} tokens for {size[0]} x {size[1]} places"
                + (f" and {self.before} tokens of text" if self.before else "")
                + ", so the subject's mask does not fit. Another extension merges or adds tokens; remove it, or give "
                "no subject."
            )
        text = places.mean(1, keepdim=True).expand(-1, self.before)
        return torch.cat([text, functional.pad(places, (0, after))], 1)[..., None]


@dataclass(frozen=True)
class ModelCall:
    """One model call.

    Attributes:
        terms: the bokeh terms.
        grounding: the plan for these rows, or None where no row is grounded.
        region: where other terms act, or None.
        blocks: those that are grounded where the architecture leaves it to the adapter (FLUX); None is all.
    """

    terms: Terms
    grounding: Grounding | None
    region: Region | None = None
    blocks: frozenset[str] | None = None


def bokeh_terms(
    call: ModelCall, path: str, size: Sequence[int], tokens: int, attend: Callable[[Tensor, Tensor], Tensor]
) -> Iterator[Tensor]:
    """The terms of a layer, one for each adapter, ``[R, 1 or tokens, C]``.

    Args:
        call: the model call.
        path: of the layer.
        size: height and width of the picture in that layer, in tokens.
        tokens: of the layer.
        attend: the term of ``(K_b, V_b)``.
    """
    for index, pair in enumerate(call.terms.get(path, ())):
        term = attend(*pair)
        if call.region is not None:
            inside = attend(*call.region.terms[path][index])
            term = torch.lerp(term, inside, call.region.share(size, tokens).to(term))
        yield term


def of_this_call(hook: Callable[..., Any]) -> Callable[..., Any]:
    """A hook for a module that acts in the model call that made it, and in no other.

    Clones of a MODEL share their network, and may be called in several threads at once. In compiled models, which run
    their modules by themselves, it does nothing.
    """
    own = threading.get_ident()

    def guarded(*args: Any) -> Any:
        if torch.compiler.is_compiling() or threading.get_ident() != own:
            return None
        return hook(*args)

    return guarded


def add_term(out: Tensor, term: Tensor) -> Tensor:
    """``out + term``, in place where no gradient is wanted."""
    term = term.to(out.dtype)
    if torch.is_grad_enabled() and (out.requires_grad or term.requires_grad):
        return out + term
    return out.add_(term)


def check_attention(planned: int, rows: int) -> None:
    """Raise unless a layer has the rows that its terms were made for.

    Raises:
        BokehError: it has others.
    """
    if planned != rows:
        raise BokehError(
            f"Bokeh attention was prepared for {planned} rows but the model's attention has {rows}. Another extension "
            "splits or merges the batch inside the model; remove it."
        )
