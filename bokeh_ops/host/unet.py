"""Laying a :class:`~bokeh_ops.host.call.Call` onto a UNet (SD1.5).

Grounding (eq. 11) goes into every self-attention, the bokeh term (eq. 10) into the adapted cross-attentions,
both in the host's replacement slots: after the projections of q, k and v, before the output projection.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from comfy.ldm.modules.attention import optimized_attention
from torch import Tensor

from ..attention import bokeh_attention, grounded_attention, merge_heads, split_heads
from ..errors import BokehError
from .call import Call, add_term
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
            table[slot] = _cross_attention(call.terms[f"{path}.attn2"], _previous(table, slot))
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
        heads = extra["n_heads"]

        def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
            q, k, v = merge_heads(q), merge_heads(k), merge_heads(v)
            if previous is None:
                return host_attention(q, k, v, extra, mask)
            # Perturbed-attention guidance gives back the values; a target's come twice, one after the other.
            return previous(q, k, v, extra)[:, : q.shape[1]]

        chained = previous is not None or "optimized_attention_override" in extra
        q, k, v = split_heads(q, heads), split_heads(k, heads), split_heads(v, heads)
        return grounded_attention(q, k, v, grounding, attend, shared=False if chained else None)

    return attention


def _cross_attention(terms: list[tuple[Tensor, Tensor]], previous: Replacement | None) -> Replacement:
    def attention(q: Tensor, k: Tensor, v: Tensor, extra: dict[str, Any]) -> Tensor:
        out = previous(q, k, v, extra) if previous is not None else host_attention(q, k, v, extra)
        for keys, values in terms:
            if values.shape[0] != out.shape[0]:
                raise BokehError(
                    f"Bokeh cross-attention was prepared for {values.shape[0]} rows but the model's attention has "
                    f"{out.shape[0]}. Another extension splits or merges the batch inside the model; remove it."
                )
            out = add_term(out, bokeh_attention(split_heads(q, extra["n_heads"]), keys, values))
        return out

    return attention
