"""FLUX's joint attention, for what changes it; and a :class:`.ModelCall` in it: bokeh terms, grounded.

The host calls ``optimized_attention_override`` with the post-norm, post-RoPE q, k, v of every joint attention,
before the output projection: exactly where eq. 15 works. Which block calls is told twice: by a wrapper in the host's
slot for each block, which compiled models and recomputed blocks see, and by hooks on the block itself, which it meets
whoever runs it. The hooks also give the override to a block that another extension runs without the host's options,
and find out where it had no effect.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from ...adapter.attention import grounded_attention, grounded_bokeh_attention, merge_heads, split_heads
from ...errors import BokehError
from .model_call import ModelCall, add_term, bokeh_terms, check_attention, of_this_call

OVERRIDE = "optimized_attention_override"
_POSITIONAL = ("mask", "attn_precision", "skip_reshape", "skip_output_reshape")
"""What the host's attention takes after q, k, v and heads."""
_ORDINARY = {*_POSITIONAL, "transformer_options", "_inside_attn_wrapper"}
"""Keywords that change nothing of what attention computes; others (``scale``, ``enable_gqa``) came with later hosts."""


class _Current:
    """The block that is about to run its attention; None once it has."""

    path: str | None = None


Run = Callable[..., Tensor]
"""Computes attention as it would be without: ``run(q, k, v, **keywords)``."""
Attend = Callable[[str, Tensor, Tensor, Tensor, int, Run, dict[str, Any], bool], Tensor]
"""Computes the attention of one block: ``attend(path, q, k, v, heads, run, keywords, chained)``.

``keywords`` are those of the host's attention; with ``skip_reshape`` q, k and v are ``[R, heads, L, D]``, else
``[R, L, C]``; the result is ``[R, L, C]``, with ``skip_output_reshape`` ``[R, heads, L, D]``. ``chained``: another
extension computes attention too, in ``run``."""


@contextmanager
def attending(
    options: dict[str, Any], network: nn.Module, paths: Iterable[str], attend: Attend
) -> Iterator[dict[str, Any]]:
    """While this is open, ``attend`` computes the joint attention of blocks of FLUX.

    Args:
        options: the host's ``transformer_options``, which are not changed.
        network: the diffusion model that is about to run.
        paths: of the blocks.
        attend: what computes.

    Returns:
        A copy of the options to give to the network; what other extensions put there is chained.
    """
    options = options.copy()
    replacements = {name: dict(table) for name, table in options.get("patches_replace", {}).items()}
    slots = replacements.setdefault("dit", {})
    current = _Current()
    options["patches_replace"] = replacements
    options[OVERRIDE] = _override(attend, current, options.get(OVERRIDE))
    with ExitStack() as stack:
        for path in paths:
            kind, _, number = path.partition(".")
            slot = (kind.removesuffix("s"), int(number))
            slots[slot] = _stamp(path, current, slots.get(slot))
            for handle in _hooks(network.get_submodule(path), path, current, options):
                stack.callback(handle.remove)
        yield options


@contextmanager
def attach(
    options: dict[str, Any], call: ModelCall, widths: Mapping[str, int], network: nn.Module, x: Tensor
) -> Iterator[dict[str, Any]]:
    """See :meth:`.Architecture.attach`.

    Args:
        widths: features of each block by path.
    """
    patch = getattr(network, "patch_size", 2)
    size = tuple(-(-side // patch) for side in x.shape[-2:])

    def attend(path: str, *given: Any) -> Tensor:
        return _joint_attention(call, path, size, *given)

    def concerned(path: str) -> bool:
        grounded = call.grounding is not None and (call.blocks is None or path in call.blocks)
        return grounded or path in call.terms

    with attending(options, network, filter(concerned, widths), attend) as options:
        yield options


def _hooks(block: nn.Module, path: str, current: _Current, options: dict[str, Any]) -> Iterator[Any]:
    def before(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
        current.path = path
        given = kwargs.get("transformer_options")
        if (given is not None and OVERRIDE in given) or not _takes_options(module, len(args)):
            return None
        return args, {**kwargs, "transformer_options": {**options, **(given or {})}}

    def after(_module: nn.Module, _args: Any, _out: Any) -> None:
        left, current.path = current.path, None
        if left is not None:
            raise BokehError(
                f"Another extension runs {left} of FLUX with attention of its own, past ComfyUI's (as some that skip, "
                "cache or speed up its blocks do), so neither K nor grounding reaches it. Remove that extension from "
                "this model."
            )

    yield block.register_forward_pre_hook(of_this_call(before), with_kwargs=True)
    yield block.register_forward_hook(of_this_call(after))


def _takes_options(block: nn.Module, positional: int) -> bool:
    """Whether a block takes ``transformer_options`` as a keyword, beside so many positional arguments."""
    parameters = inspect.signature(block.forward).parameters
    if "transformer_options" in parameters:
        return list(parameters).index("transformer_options") >= positional
    return any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters.values())


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


def _override(attend: Attend, current: _Current, previous: Callable[..., Any] | None) -> Callable[..., Any]:
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
        keywords = {**dict(zip(_POSITIONAL, args, strict=False)), **kwargs}
        return attend(path, q, k, v, heads, run, keywords, previous is not None)

    return attention


def _joint_attention(
    call: ModelCall,
    path: str,
    size: tuple[int, ...],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    heads: int,
    run: Run,
    kwargs: dict[str, Any],
    chained: bool,
) -> Tensor:
    """Eq. 15 in one block: ``Attention(Q_piv, [K; K_piv], [V; V]) + lambda Attention(Q_piv, K_b, V_b)``."""
    by_heads = bool(kwargs.get("skip_reshape"))
    keep_heads = bool(kwargs.get("skip_output_reshape"))
    # The released code leaves blocks alone that its adapter does not name; without an adapter all are grounded.
    grounding = call.grounding if call.blocks is None or path in call.blocks else None
    if grounding is None:
        out = run(q, k, v, **kwargs)
        if keep_heads:
            out = merge_heads(out)
    else:
        if not by_heads:
            features = q.shape[-1] // heads  # of fewer keys than queries, too
            q, k, v = (split_heads(t, t.shape[-1] // features) for t in (q, k, v))
        plain = {**kwargs, "skip_reshape": True, "skip_output_reshape": False}
        mask = plain.pop("mask", None)

        def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
            return run(q, k, v, **({**plain, "mask": mask}))

        # A shorter way for attention that is softmax of the products and no more.
        ordinary = not chained and kwargs.keys() <= _ORDINARY
        out = grounded_attention(q, k, v, grounding, attend, mask, shared=None if ordinary else False)
    queries = q if q.ndim == 4 else split_heads(q, heads)
    if kwargs.get("scale") is not None:
        queries = queries * (kwargs["scale"] * queries.shape[-1] ** 0.5)

    def term_of(keys: Tensor, values: Tensor) -> Tensor:
        check_attention(values.shape[0], out.shape[0])
        return grounded_bokeh_attention(queries, keys, values, grounding)

    for term in bokeh_terms(call, path, size, queries.shape[2], term_of):
        out = add_term(out, term)
    return split_heads(out, heads) if keep_heads else out
