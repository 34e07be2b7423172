"""Laying a :class:`~bokeh_ops.host.call.Call` onto a UNet (SD1.5).

Grounding (eq. 11) goes into every self-attention, the bokeh term (eq. 10) into the adapted cross-attentions,
both in the host's replacement slots: after the projections of q, k and v, before the output projection.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from comfy.ldm.modules.attention import optimized_attention
from torch import Tensor

from ..attention import (
    Grounding,
    bokeh_attention,
    concatenated_attention,
    grounded_attention,
    merge_heads,
    split_heads,
)
from ..errors import BokehError
from .call import Call, add_term, bokeh_terms
from .models import HostModel

Replacement = Callable[[Tensor, Tensor, Tensor, dict[str, Any]], Tensor]


def install(options: dict[str, Any], call: Call, model: HostModel) -> dict[str, Any]:
    """A copy of ``transformer_options`` with ``call`` on it; what others put into a slot is chained."""
    options = options.copy()
    replacements = {name: dict(table) for name, table in options.get("patches_replace", {}).items()}
    for path, slot in model.slots().items():
        if call.grounding is not None and f"{path}.attn1" in model.widths:
            table = replacements.setdefault("attn1", {})
            table[slot] = _self_attention(call, _previous(table, slot))
        if f"{path}.attn2" in call.terms:
            table = replacements.setdefault("attn2", {})
            table[slot] = _cross_attention(call, f"{path}.attn2", _previous(table, slot))
    options["patches_replace"] = replacements
    return options


def _previous(table: dict[Any, Replacement], slot: tuple[str, int, int]) -> Replacement | None:
    # The host looks for (block, number, index) first and then for (block, number): a slot of ours hides both.
    return table.get(slot, table.get(slot[:2]))


def host_attention(
    q: Tensor, k: Tensor, v: Tensor, extra: dict[str, Any], mask: Tensor | None = None
) -> Tensor:
    """The host's own attention as its block would have called it: ``[R, L, C]`` in and out."""
    return optimized_attention(
        q,
        k,
        v,
        extra["n_heads"],
        mask=mask,
        attn_precision=extra.get("attn_precision"),
        transformer_options=extra,
    )


def _self_attention(call: Call, previous: Replacement | None) -> Replacement:
    def attention(q: Tensor, k: Tensor, v: Tensor, extra: dict[str, Any]) -> Tensor:
        grounding = call.grounding
        assert grounding is not None
        grounding.check(q.shape[0])
        _check_tokens(q, extra)
        if previous is not None:
            return _chained_self_attention(q, k, v, extra, grounding, previous)
        heads = extra["n_heads"]

        def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
            return host_attention(merge_heads(q), merge_heads(k), merge_heads(v), extra, mask)

        shared = False if "optimized_attention_override" in extra else None
        q, k, v = split_heads(q, heads), split_heads(k, heads), split_heads(v, heads)
        return grounded_attention(q, k, v, grounding, attend, shared=shared)

    return attention


def _check_tokens(q: Tensor, extra: dict[str, Any]) -> None:
    shape = extra.get("activations_shape")
    if shape is not None and q.shape[1] != shape[-1] * shape[-2]:
        raise BokehError(
            f"Self-attention has {q.shape[1]} queries for {shape[-2]} x {shape[-1]} places. Another extension merges "
            "tokens, in every picture others (ToMe does), so a pivot's queries fit no target; remove it, or set "
            "grounding_steps to 0."
        )


def _chained_self_attention(
    q: Tensor, k: Tensor, v: Tensor, extra: dict[str, Any], grounding: Grounding, previous: Replacement
) -> Tensor:
    """Grounded attention through another extension's replacement.

    It is called with the whole batch first, as it would be without grounding, since some of them read the batch
    (self-attention guidance records the negative branch), and then for the targets of each pivot, told the one
    branch that they belong to.
    """
    out = previous(q, k, v, extra)
    heads, tokens = extra["n_heads"], q.shape[1]
    branches = extra.get("cond_or_uncond") or [0]
    per_branch = q.shape[0] // len(branches)
    by_heads = split_heads(q, heads), split_heads(k, heads), split_heads(v, heads)
    for pivot, targets in grounding.groups:
        told = {**extra, "cond_or_uncond": [branches[pivot // per_branch]]}

        def attend(
            q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, told: dict[str, Any] = told
        ) -> Tensor:
            # Perturbed-attention guidance gives back the values, and a target's come twice, one after the other.
            return previous(merge_heads(q), merge_heads(k), merge_heads(v), told)[:, :tokens]

        grounded = concatenated_attention(*by_heads, pivot, targets, attend)
        rows = torch.tensor(targets, device=out.device)
        grounded = torch.lerp(out[rows], grounded.to(out.dtype), grounding.weight)
        out = out.index_copy(0, rows, grounded)
    return out


def _cross_attention(call: Call, path: str, previous: Replacement | None) -> Replacement:
    def attention(q: Tensor, k: Tensor, v: Tensor, extra: dict[str, Any]) -> Tensor:
        out = previous(q, k, v, extra) if previous is not None else host_attention(q, k, v, extra)

        def attend(keys: Tensor, values: Tensor) -> Tensor:
            if values.shape[0] != out.shape[0]:
                raise BokehError(
                    f"Bokeh cross-attention was prepared for {values.shape[0]} rows but the model's attention has "
                    f"{out.shape[0]}. Another extension splits or merges the batch inside the model; remove it."
                )
            return bokeh_attention(split_heads(q, extra["n_heads"]), keys, values)

        for term in bokeh_terms(call, path, q.shape[1], attend):
            out = add_term(out, term)
        return out

    return attention
