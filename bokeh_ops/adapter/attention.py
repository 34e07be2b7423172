"""Bokeh cross-attention and grounded self-attention: the one implementation that samples and trains.

Source: Fortes et al., "Bokeh Diffusion" (SIGGRAPH Asia 2025), eqs. 10, 11 and 15.

Shapes: ``R`` rows (samples of the batch, all chunks of classifier-free guidance included), ``H`` heads,
``L`` tokens, ``D`` features per head, ``C = H * D``, ``T`` bokeh tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor

from ..errors import BokehError

Attend = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""Plain attention of the caller: ``(q, k, v, mask)`` with ``[R, H, L, D]`` inputs -> ``[R, L, C]``."""


def split_heads(x: Tensor, heads: int) -> Tensor:
    """``[R, L, H * D]`` -> ``[R, H, L, D]`` (a view)."""
    return rearrange(x, "r l (h d) -> r h l d", h=heads)


def merge_heads(x: Tensor) -> Tensor:
    """``[R, H, L, D]`` -> ``[R, L, H * D]``."""
    return rearrange(x, "r h l d -> r l (h d)")


def sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Ordinary attention in torch, as an :data:`Attend`; a mask ``[R, Lq, Lk]`` serves every head."""
    mask = mask[:, None] if mask is not None and mask.ndim == 3 else mask
    return merge_heads(F.scaled_dot_product_attention(q, k, v, attn_mask=mask))


def bokeh_attention(q: Tensor | None, k_bokeh: Tensor, v_bokeh: Tensor) -> Tensor:
    """The bokeh term of eq. 10, ``Attention(Q, K_b, V_b)``, before the factor lambda.

    With one bokeh token the softmax runs over a single key, so the term is exactly ``V_b`` for every query
    and is returned as a vector to broadcast; with more it is real attention.

    Args:
        q: queries ``[R, H, L, D]`` (not read when ``T == 1``, and may be None).
        k_bokeh: ``[R, T, C]``.
        v_bokeh: ``[R, T, C]``.

    Returns:
        ``[R, 1, C]`` when ``T == 1``, else ``[R, L, C]``.
    """
    if v_bokeh.shape[1] == 1:
        return v_bokeh
    assert q is not None
    heads = q.shape[1]
    return sdpa(q, split_heads(k_bokeh, heads).to(q.dtype), split_heads(v_bokeh, heads).to(q.dtype))


@dataclass(frozen=True)
class Grounding:
    """Which rows of a batch are grounded on which pivot row.

    Attributes:
        rows: number of rows the plan is for.
        plain: rows with ordinary self-attention (pivots among them).
        groups: pairs ``(pivot row, its target rows)``.
    """

    rows: int
    plain: tuple[int, ...]
    groups: tuple[tuple[int, tuple[int, ...]], ...]

    @classmethod
    def from_pivots(cls, pivots: Sequence[int]) -> Grounding:
        """Make a plan from one entry per row: its pivot's row, or -1 (or itself) for ordinary attention.

        Raises:
            BokehError: a pivot outside the batch, or a pivot that is itself grounded on another row.
        """
        rows = len(pivots)
        targets: dict[int, list[int]] = {}
        plain: list[int] = []
        for row, pivot in enumerate(pivots):
            if pivot >= rows:
                raise BokehError(
                    f"Row {row} is to be grounded on row {pivot}, but the batch has only {rows} rows. "
                    "The pivot and its targets must be in the same latent batch."
                )
            if pivot < 0 or pivot == row:
                plain.append(row)
            else:
                targets.setdefault(int(pivot), []).append(row)
        chained = sorted(set(targets) - set(plain))
        if chained:
            raise BokehError(
                f"Row {chained[0]} is a pivot and is grounded itself; a pivot keeps its own attention (eq. 11)."
            )
        return cls(rows, tuple(plain), tuple((p, tuple(t)) for p, t in targets.items()))

    def check(self, rows: int) -> None:
        """Raise unless the attention at hand has the rows of this plan.

        Raises:
            BokehError: it has others.
        """
        if rows != self.rows:
            raise BokehError(
                f"Grounded attention was planned for {self.rows} rows but the model's attention has {rows}. Another "
                "extension splits or merges the batch inside the model (HyperTile does); remove it, or set "
                "grounding_steps to 0."
            )

    @property
    def targets(self) -> int:
        """Number of grounded rows."""
        return self.rows - len(self.plain)


def _span(rows: Sequence[int]) -> slice | list[int]:
    """``rows`` as a slice where they lie at even distances, as those of one pivot do, else as they are."""
    step = rows[1] - rows[0] if len(rows) > 1 else 1
    if step > 0 and list(rows) == list(range(rows[0], rows[-1] + 1, step)):
        return slice(rows[0], rows[-1] + 1, step)
    return list(rows)


def _take(x: Tensor, rows: Sequence[int]) -> Tensor:
    """Rows of ``x``: a view where they lie at even distances, else a copy."""
    return x[_span(rows)]


def _mask_rows(mask: Tensor | None, rows: Sequence[int], total: int) -> Tensor | None:
    """The part of an attention mask that belongs to ``rows``; masks without a row axis serve every row."""
    if mask is None or mask.ndim < 3 or mask.shape[0] != total:
        return mask
    return _take(mask, rows)


def ground_queries(q: Tensor, grounding: Grounding | None) -> Tensor:
    """``q`` with the queries of every target replaced by its pivot's (the ``Q_piv`` of eqs. 11 and 15)."""
    if grounding is None or not grounding.groups:
        return q
    source = list(range(grounding.rows))
    for pivot, targets in grounding.groups:
        for target in targets:
            source[target] = pivot
    return q[source]


def grounded_bokeh_attention(
    q: Tensor, k_bokeh: Tensor, v_bokeh: Tensor, grounding: Grounding | None
) -> Tensor:
    """:func:`bokeh_attention` with the pivots' queries where rows are grounded (the second term of eq. 15)."""
    if grounding is None or v_bokeh.shape[1] == 1:
        return bokeh_attention(q, k_bokeh, v_bokeh)
    return bokeh_attention(ground_queries(q, grounding), k_bokeh, v_bokeh)


def grounded_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    grounding: Grounding,
    attend: Attend = sdpa,
    mask: Tensor | None = None,
    shared: bool | None = None,
    heads: int | None = None,
) -> Tensor:
    """Grounded self-attention, eq. 11 (FLUX: eq. 15 without its bokeh term).

    Targets get ``Attention(Q_piv, [K_tgt ; K_piv], [V_tgt ; V_tgt])``; every other row, the pivots among them, gets
    ``attend`` as it would without grounding.

    Args:
        q, k, v: ``[R, H, L, D]``, or ``[R, L, C]`` where ``attend`` takes that and ``heads`` is given (to split and to
            merge heads copies keys and values); for FLUX after QK-norm and RoPE, text and image tokens together.
        grounding: the plan for these ``R`` rows.
        attend: the caller's plain attention (another extension's, where one is installed).
        mask: additive or boolean mask of the caller, ``[Lq, Lk]`` or with leading row and head axes.
        shared: compute the logits ``Q_piv K_piv^T`` once per pivot instead of once per target
            (:func:`shared_logit_attention`); None decides: where it is the faster way and gives the same
            result (CPU, no mask, no gradient, ``attend`` is a plain softmax attention).
        heads: of ``[R, L, C]``.

    Returns:
        ``[R, L, C]``.

    Raises:
        BokehError: the tensors have another number of rows than the plan.
    """
    grounding.check(q.shape[0])
    if not grounding.groups:
        return attend(q, k, v, mask)
    if shared is None:
        shared = q.device.type == "cpu"
    if torch.is_grad_enabled() and any(t.requires_grad for t in (q, k, v)):
        return _grounded_for_training(q, k, v, grounding, attend, mask)
    out = q.new_empty(q.shape[0], q.shape[-2], v.shape[-1] * (q.shape[1] if heads is None else 1))
    if grounding.plain:
        rows = grounding.plain
        plain = attend(_take(q, rows), _take(k, rows), _take(v, rows), _mask_rows(mask, rows, grounding.rows))
        out[_span(rows)] = plain
    for pivot, targets in grounding.groups:
        if shared and mask is None:
            rows = q[pivot][None], k[pivot][None], _take(k, targets), _take(v, targets)
            if heads is not None:
                rows = tuple(split_heads(t, heads) for t in rows)
            grounded = merge_heads(shared_logit_attention(rows[0][0], rows[1][0], *rows[2:]))
        else:
            grounded = concatenated_attention(q, k, v, pivot, targets, attend, mask)
        out[_span(targets)] = grounded
    return out


def _grounded_for_training(
    q: Tensor, k: Tensor, v: Tensor, grounding: Grounding, attend: Attend, mask: Tensor | None
) -> Tensor:
    """The same attention assembled without writing into a result, so that gradients flow."""
    pieces: dict[int, Tensor] = {}
    if grounding.plain:
        rows = grounding.plain
        plain = attend(_take(q, rows), _take(k, rows), _take(v, rows), _mask_rows(mask, rows, grounding.rows))
        pieces.update(zip(rows, plain, strict=True))
    for pivot, targets in grounding.groups:
        pieces.update(
            zip(targets, concatenated_attention(q, k, v, pivot, targets, attend, mask), strict=True)
        )
    return torch.stack([pieces[row] for row in range(grounding.rows)])


def concatenated_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pivot: int,
    targets: Sequence[int],
    attend: Attend = sdpa,
    mask: Tensor | None = None,
) -> Tensor:
    """Eq. 11 as printed, for the targets of one pivot, through the caller's attention.

    Args:
        q, k, v: all rows, ``[R, H, L, D]`` or in whatever layout with the tokens last but one ``attend`` takes.
        pivot, targets: rows of them.
        attend, mask: as for :func:`grounded_attention`.

    Returns:
        ``[N, L, C]``, the ``targets`` only.
    """
    count = len(targets)
    k_targets, v_targets = _take(k, targets), _take(v, targets)
    q_pivot = q[pivot].expand(count, *q.shape[1:])
    k_both = torch.cat((k_targets, k[pivot].expand(count, *k.shape[1:])), dim=-2)
    v_both = torch.cat((v_targets, v_targets), dim=-2)
    mask_both = None
    if mask is not None:
        own = _mask_rows(mask, targets, q.shape[0])
        anchor = _mask_rows(mask, [pivot], q.shape[0])
        assert own is not None
        assert anchor is not None
        mask_both = torch.cat((own, anchor.expand_as(own)), dim=-1)
    return attend(q_pivot, k_both, v_both, mask_both)


# Logits held at a time: enough rows for the matrix products to run at speed, few enough to stay near the cache.
_BLOCK_ELEMENTS = 1 << 21
_LOG2_E = math.log2(math.e)


def shared_logit_attention(q_pivot: Tensor, k_pivot: Tensor, k_targets: Tensor, v_targets: Tensor) -> Tensor:
    """Eq. 11 for all targets of one pivot, with two savings that change nothing but the rounding.

    The values are duplicated, so attention over the doubled keys is
    ``softmax(logaddexp(Q_piv K_tgt^T, Q_piv K_piv^T)) V_tgt``: one product with the values instead of two.
    And ``Q_piv K_piv^T`` is the same for every target, so it and its exponential are computed once.

    Args:
        q_pivot: ``[H, Lq, D]``.
        k_pivot: ``[H, L, D]``.
        k_targets, v_targets: ``[N, H, L, D]``.

    Returns:
        ``[N, H, Lq, D]``.
    """
    count, heads, length, features = k_targets.shape
    dtype = v_targets.dtype
    # Sums of exponentials overflow in half precision. Powers of 2, as torch computes them faster than of e.
    work = torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype
    queries = q_pivot.to(work) * (features**-0.5 * _LOG2_E)
    keys = torch.cat((k_pivot[None], k_targets)).to(work).transpose(-2, -1)
    values = v_targets.to(work)
    places = queries.shape[1]
    out = torch.empty(count, heads, places, features, dtype=dtype, device=v_targets.device)
    size = max(16, min(places, _BLOCK_ELEMENTS // ((1 + count) * length)))
    together = max(1, min(heads, _BLOCK_ELEMENTS // ((1 + count) * length * size)))
    buffer = queries.new_empty((1 + count) * together * size * length)
    for first in range(0, heads, together):
        group = slice(first, first + together)
        keys_group = rearrange(keys[:, group], "n h d l -> (n h) d l")
        values_group = rearrange(values[:, group], "n h l d -> (n h) l d")
        for start in range(0, places, size):
            block = slice(start, start + size)
            rows = queries[group, block]
            rows = repeat(rows, "h q d -> (n h) q d", n=1 + count)
            shape = (rows.shape[0], rows.shape[1], length)
            logits = torch.bmm(rows, keys_group, out=buffer[: math.prod(shape)].view(shape))
            logits = rearrange(logits, "(n h) q l -> n h q l", n=1 + count)
            tops = logits.amax(dim=-1, keepdim=True)
            shift = torch.maximum(tops, tops[:1])
            weights = logits.sub_(shift).exp2_()
            anchor, weights = weights[:1], weights[1:]
            weights.addcmul_(anchor, (tops[:1] - shift[1:]).exp2_())
            sums = weights.sum(dim=-1, keepdim=True)
            result = torch.bmm(rearrange(weights, "n h q l -> (n h) q l"), values_group)
            out[:, group, block] = rearrange(result, "(n h) q d -> n h q d", n=count) / sums
    return out
