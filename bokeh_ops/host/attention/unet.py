"""A :class:`.ModelCall` in a UNet: bokeh cross-attention and grounded self-attention.

Grounding (eq. 11) goes into every self-attention, in the host's replacement slots: after the projections of q, k and v,
before the output projection. The bokeh term (eq. 10) is added after the output projection, projected by itself,
``W_o (A + B) = W_o A + W_o B``, in the host's list of output patches: so the layer's own attention is whoever's it is,
another extension's included, and has whatever rows that extension gives it.

The host's slot goes round a ``forward`` that another extension has put on a self-attention. There the whole layer is
run, and its targets again as eq. 11 wants them, by what they are given: ``x`` of the pivot, keys of both, values of the
target twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from comfy.ldm.modules.attention import optimized_attention
from torch import Tensor, nn

from ...adapter.attention import (
    Grounding,
    bokeh_attention,
    concatenated_attention,
    grounded_attention,
    split_heads,
)
from ...errors import BokehError
from ..architectures.architecture import Watch
from .model_call import ModelCall, add_term, bokeh_terms, check_attention, of_this_call

Slot = tuple[str, int, int]
"""Where the UNet runs a transformer block: ``(input | middle | output, block number, index inside it)``."""

Replacement = Callable[[Tensor, Tensor, Tensor, dict[str, Any]], Tensor]


@dataclass
class _Layer:
    """One attention of the network while a model call runs.

    Attributes:
        path: of it.
        module: the host's.
        inputs: what it was given, until our part has come, where that needs it.
        extra: the host's ``extra_options`` with them.
        waits: our part in it is still to come.
    """

    path: str
    module: Any
    inputs: tuple[Tensor, ...] = ()
    extra: dict[str, Any] = field(default_factory=dict)
    waits: bool = False


@contextmanager
def attach(
    options: dict[str, Any], call: ModelCall, widths: Mapping[str, int], network: nn.Module
) -> Iterator[dict[str, Any]]:
    """See :meth:`.Architecture.attach`.

    Args:
        widths: features of each attention by path.
    """
    options = options.copy()
    replacements = {name: dict(table) for name, table in options.get("patches_replace", {}).items()}
    patches = {name: list(functions) for name, functions in options.get("patches", {}).items()}
    cross: dict[Slot, _Layer] = {}
    whole: dict[Slot, _Layer] = {}
    with ExitStack() as stack:
        for path, slot in slots(widths).items():
            layers: list[_Layer] = []
            if call.grounding is not None and f"{path}.attn1" in widths:
                layer = _Layer(f"{path}.attn1", network.get_submodule(f"{path}.attn1"))
                layers.append(layer)
                table = replacements.setdefault("attn1", {})
                if "forward" in vars(layer.module) and previous_in(table, slot) is None:
                    whole[slot] = layer
                else:
                    table[slot] = _self_attention(call.grounding, layer, previous_in(table, slot))
            if f"{path}.attn2" in call.terms:
                cross[slot] = _Layer(f"{path}.attn2", network.get_submodule(f"{path}.attn2"))
                layers.append(cross[slot])
            for handle in _hooks(network.get_submodule(path), layers) if layers else ():
                stack.callback(handle.remove)
        if cross:
            terms = _Terms(call, cross)
            for layer in cross.values():
                if "forward" in vars(layer.module):
                    hook = layer.module.to_out.register_forward_pre_hook(of_this_call(terms.inside(layer)))
                    stack.callback(hook.remove)
            patches["attn2_patch"] = [terms.see, *patches.get("attn2_patch", [])]
            patches["attn2_output_patch"] = [
                terms.add, *patches.get("attn2_output_patch", []), terms.add_after_others,
            ]  # fmt: skip
        if whole and call.grounding is not None:
            again = _WholeLayers(call.grounding, whole)
            patches["attn1_patch"] = [*patches.get("attn1_patch", []), again.see]
            patches["attn1_output_patch"] = [again.ground, *patches.get("attn1_output_patch", [])]
        options["patches_replace"] = replacements
        options["patches"] = patches
        yield options


def slots(widths: Mapping[str, int]) -> dict[str, Slot]:
    """The host's ``(block, number, index)`` of every transformer block, by path."""
    found: dict[str, Slot] = {}
    for path in widths:
        name, number, *_, index, _attention = path.split(".")
        block = name.removesuffix("_blocks").removesuffix("_block")
        # The host numbers the middle block 0 whatever its path says.
        found[path.rpartition(".")[0]] = (block, 0 if block == "middle" else int(number), int(index))
    return found


def slot_of(extra: dict[str, Any]) -> Slot:
    """The slot of the transformer block that calls, from the host's ``extra_options``."""
    block = extra["block"]
    return block[0], block[1], extra["block_index"]


def _hooks(block: nn.Module, layers: Sequence[_Layer]) -> Iterator[Any]:
    """Hooks on a transformer block, which find out where its attention ran without us."""

    def before(*_: Any) -> None:
        for layer in layers:
            layer.waits = True

    def after(*_: Any) -> None:
        for layer in layers:
            if layer.waits:
                layer.waits = False
                raise BokehError(
                    f"Another extension runs {layer.path} of the UNet past ComfyUI's own attention patches, so neither "
                    "K nor grounding reaches it. Remove that extension from this model."
                )

    yield block.register_forward_pre_hook(of_this_call(before))
    yield block.register_forward_hook(of_this_call(after))


def previous_in(table: dict[Any, Replacement], slot: tuple[str, int, int]) -> Replacement | None:
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


def _self_attention(grounding: Grounding, layer: _Layer, previous: Replacement | None) -> Replacement:
    def attention(q: Tensor, k: Tensor, v: Tensor, extra: dict[str, Any]) -> Tensor:
        layer.waits = False
        grounding.check(q.shape[0])
        _check_tokens(q, extra)
        if previous is not None:
            return _chained_self_attention(q, k, v, extra, grounding, previous)

        def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
            return host_attention(q, k, v, extra, mask)

        shared = False if "optimized_attention_override" in extra else None
        return grounded_attention(q, k, v, grounding, attend, shared=shared, heads=extra["n_heads"])

    return attention


def _check_tokens(q: Tensor, extra: dict[str, Any]) -> None:
    shape = extra.get("activations_shape")
    if shape is not None and q.shape[1] != shape[-1] * shape[-2]:
        raise BokehError(
            f"Self-attention has {q.shape[1]} queries for {shape[-2]} x {shape[-1]} places. Another extension merges "
            "tokens, in every picture others (ToMe does), so a pivot's queries fit no target; remove it, or set "
            "grounding_steps to 0."
        )


def _told(extra: dict[str, Any], pivot: int, rows: int) -> dict[str, Any]:
    """The host's ``extra_options`` for the targets of one pivot: of the one branch that they belong to."""
    branches = extra.get("cond_or_uncond") or [0]
    return {**extra, "cond_or_uncond": [branches[pivot * len(branches) // rows]]}


def _chained_self_attention(
    q: Tensor, k: Tensor, v: Tensor, extra: dict[str, Any], grounding: Grounding, previous: Replacement
) -> Tensor:
    """Grounded attention through another extension's replacement.

    It is called with the whole batch first, as it would be without grounding, since some of them read the batch
    (self-attention guidance records the negative branch), and then for the targets of each pivot, told the one
    branch that they belong to.
    """
    out = previous(q, k, v, extra)
    tokens = q.shape[1]
    for pivot, targets in grounding.groups:
        told = _told(extra, pivot, len(q))

        def attend(
            q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, told: dict[str, Any] = told
        ) -> Tensor:
            # Perturbed-attention guidance gives back the values, and a target's come twice, one after the other.
            return previous(q, k, v, told)[:, :tokens]

        out = _regrounded(out, targets, concatenated_attention(q, k, v, pivot, targets, attend))
    return out


def _regrounded(out: Tensor, targets: Sequence[int], grounded: Tensor) -> Tensor:
    """``out [R, L, C]`` with its targets grounded."""
    rows = torch.tensor(targets, device=out.device)
    return out.index_copy(0, rows, grounded.to(out.dtype))


class _WholeLayers:
    """Grounding of self-attention layers whose ``forward`` is another extension's."""

    def __init__(self, grounding: Grounding, layers: dict[Slot, _Layer]) -> None:
        self.grounding, self.layers = grounding, layers

    def see(self, n: Tensor, context: Tensor, value: Tensor, extra: dict[str, Any]) -> tuple[Tensor, ...]:
        """The last of the host's ``attn1_patch``: what the layer is given."""
        layer = self.layers.get(slot_of(extra))
        if layer is not None:
            self.grounding.check(n.shape[0])
            _check_tokens(n, extra)
            layer.inputs = n, context, value
        return n, context, value

    def ground(self, out: Tensor, extra: dict[str, Any]) -> Tensor:
        """The first of the host's ``attn1_output_patch``."""
        layer = self.layers.get(slot_of(extra))
        if layer is None:
            return out
        inputs, layer.inputs, layer.waits = layer.inputs, (), False
        for pivot, targets in self.grounding.groups:
            told = _told(extra, pivot, len(out))

            def attend(
                n: Tensor, context: Tensor, value: Tensor, mask: Tensor | None, told: Any = told
            ) -> Tensor:
                return layer.module(n, context=context, value=value, transformer_options=told)

            n, context, value = inputs
            grounded = concatenated_attention(n, context, value, pivot, targets, attend)
            out = _regrounded(out, targets, grounded)
        return out


class _Terms:
    """The bokeh terms of the cross-attention layers."""

    def __init__(self, call: ModelCall, layers: dict[Slot, _Layer]) -> None:
        self.call, self.layers = call, layers

    def see(self, n: Tensor, context: Tensor, value: Tensor, extra: dict[str, Any]) -> tuple[Tensor, ...]:
        """The first of the host's ``attn2_patch``: what the layer's queries are made of, before others change it."""
        layer = self.layers.get(slot_of(extra))
        if layer is not None:
            layer.inputs, layer.extra = (n,), extra
        return n, context, value

    def add(self, out: Tensor, extra: dict[str, Any], last: bool = False) -> Tensor:
        """The first of the host's ``attn2_output_patch``, so that others change the term as they change attention.

        Where an extension has other rows in here (regional prompts: one for each region), it is the last.

        Raises:
            BokehError: others have not put the rows right.
        """
        layer = self.layers.get(slot_of(extra))
        if layer is None or not layer.inputs or (not last and not self._fits(layer, out)):
            return out
        project = layer.module.to_out
        for term in self._terms(layer, out):
            alone = project(term) - project(term.new_zeros(1, 1, term.shape[2]))  # without the bias
            out = add_term(out, alone)
        return out

    def add_after_others(self, out: Tensor, extra: dict[str, Any]) -> Tensor:
        """The last of the host's ``attn2_output_patch``."""
        return self.add(out, extra, last=True)

    def inside(self, layer: _Layer) -> Callable[..., Any]:
        """A hook before the output projection of a layer whose ``forward`` is another extension's.

        So what that makes of the attention it makes of the term too. Where it goes round the projection, or changes the
        rows, the term is added after it.
        """

        def before(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
            if not layer.inputs or not self._fits(layer, args[0]):
                return None
            out = args[0]
            for term in self._terms(layer, out):
                out = add_term(out, term)
            return (out, *args[1:])

        return before

    @staticmethod
    def _fits(layer: _Layer, out: Tensor) -> bool:
        return out.shape[:2] == layer.inputs[0].shape[:2]

    def _terms(self, layer: _Layer, out: Tensor) -> Iterator[Tensor]:
        """The terms of a layer, which now have come."""
        (n,), extra = layer.inputs, layer.extra
        layer.inputs, layer.waits = (), False

        def attend(keys: Tensor, values: Tensor) -> Tensor:
            check_attention(values.shape[0], out.shape[0])
            # One token's term is its value; queries are for more.
            queries = None if values.shape[1] == 1 else split_heads(layer.module.to_q(n), extra["n_heads"])
            return bokeh_attention(queries, keys, values)

        for term in bokeh_terms(self.call, layer.path, extra["activations_shape"][-2:], n.shape[1], attend):
            yield term.to(out.dtype)


def watch_cross_attention(options: dict[str, Any], paths: Sequence[str], watch: Watch) -> dict[str, Any]:
    """See :meth:`.Architecture.watched`."""

    def looking(path: str, attention: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def attend(q: Tensor, k: Tensor, v: Tensor, extra: dict[str, Any]) -> Tensor:
            watch(path, q, k, extra["n_heads"])
            return attention(q, k, v, extra)

        return attend

    replacements = dict(options.get("patches_replace", {}))
    table = replacements.get("attn2", {})
    looked_at = {
        slot: looking(f"{block}.attn2", previous_in(table, slot) or host_attention)
        for block, slot in slots(dict.fromkeys(paths, 0)).items()
    }
    replacements["attn2"] = {**table, **looked_at}
    return {**options, "patches_replace": replacements}
