"""Laying a :class:`~bokeh_ops.host.call.Call` onto FLUX.

The host calls ``optimized_attention_override`` with the post-norm, post-RoPE q, k, v of every joint attention,
before the output projection: exactly where eq. 15 works. Which block calls is told by a wrapper around each
block, on every host version alike.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ..attention import grounded_attention, grounded_bokeh_attention, merge_heads, split_heads
from .call import Call, add_term, bokeh_terms
from .models import HostModel


class _Current:
    """The block that is about to run its attention; None once it has."""

    path: str | None = None


def install(options: dict[str, Any], call: Call, model: HostModel) -> dict[str, Any]:
    """A copy of ``transformer_options`` with ``call`` on it; what others put there is chained."""
    options = options.copy()
    replacements = {name: dict(table) for name, table in options.get("patches_replace", {}).items()}
    blocks = replacements.setdefault("dit", {})
    current = _Current()
    for path in model.widths:
        if call.grounding is None and path not in call.terms:
            continue
        kind, _, number = path.partition(".")
        slot = (kind.removesuffix("s"), int(number))
        blocks[slot] = _stamp(path, current, blocks.get(slot))
    options["patches_replace"] = replacements
    options["optimized_attention_override"] = _override(
        call, current, options.get("optimized_attention_override")
    )
    return options


def _stamp(path: str, current: _Current, previous: Callable[..., Any] | None) -> Callable[..., Any]:
    def block(args: dict[str, Any], extra: dict[str, Any]) -> Any:
        original = extra["original_block"]

        def stamped(args: dict[str, Any]) -> Any:
            current.path = path  # again, as another extension may run the block twice
            return original(args)

        current.path = path
        try:
            if previous is not None:
                return previous(args, {**extra, "original_block": stamped})
            return original(args)
        finally:
            current.path = None

    return block


def _override(call: Call, current: _Current, previous: Callable[..., Any] | None) -> Callable[..., Any]:
    def attention(
        func: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, heads: int, *args: Any, **kwargs: Any
    ):
        def run(q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            if previous is not None:
                return previous(func, q, k, v, heads, *args, **kwargs)
            return func(q, k, v, heads, *args, **kwargs)

        # Only the first attention inside a block is its own; any other belongs to another extension.
        path, current.path = current.path, None
        if path is None:
            return run(q, k, v, *args, **kwargs)
        return _joint_attention(call, path, q, k, v, heads, run, args, kwargs, chained=previous is not None)

    return attention


def _joint_attention(
    call: Call,
    path: str,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    heads: int,
    run: Callable[..., Tensor],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    chained: bool,
) -> Tensor:
    """Eq. 15 in one block: ``Attention(Q_piv, [K; K_piv], [V; V]) + lambda Attention(Q_piv, K_b, V_b)``."""
    by_heads = bool(kwargs.get("skip_reshape"))
    keep_heads = bool(kwargs.get("skip_output_reshape"))
    if call.grounding is None:
        out = run(q, k, v, *args, **kwargs)
        if keep_heads:
            out = merge_heads(out)
    else:
        if not by_heads:
            q, k, v = (split_heads(t, heads) for t in (q, k, v))
        plain = {**kwargs, "skip_reshape": True, "skip_output_reshape": False}
        mask = args[0] if args else plain.pop("mask", None)

        def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
            return run(q, k, v, **({**plain, "mask": mask}))

        out = grounded_attention(q, k, v, call.grounding, attend, mask, shared=False if chained else None)
    queries = q if q.ndim == 4 else split_heads(q, heads)

    def term_of(keys: Tensor, values: Tensor) -> Tensor:
        return grounded_bokeh_attention(queries, keys, values, call.grounding)

    for term in bokeh_terms(call, path, queries.shape[2], term_of):
        out = add_term(out, term)
    return split_heads(out, heads) if keep_heads else out
