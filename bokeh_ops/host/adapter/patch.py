"""The one seam to the host: an APPLY_MODEL wrapper that brings adapters and grounding into a single model call.

The wrapper installs itself anew on a copy of ``transformer_options`` at every call. So it sees whatever other
extensions installed, in any graph order, and chains them; and nothing of it remains after the call.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from comfy.patcher_extension import CallbacksMP, WrappersMP
from torch import Tensor

from ...adapter.attention import Grounding
from ...adapter.conditions import Conditions
from ...adapter.network import BokehAdapter
from ...errors import BokehError
from ..architectures import HostModel
from ..attention.model_call import ModelCall, Region, Terms
from ..notices import say
from ..sampling.conditioning import PIVOT_KEY, SUBJECT_KEY, SUBJECT_TOLD_KEY, TOLD_KEY

KEY = "bokeh"
"""Key of this extension's wrapper and callback on a model."""


_NO_K = (
    "the model carries a bokeh adapter but a prompt of this run has no K; where that prompt acts, the adapter does "
    "nothing. Put BokehCondition between the prompts and the sampler, or use GroundedSampler."
)


@dataclass(frozen=True)
class AppliedAdapter:
    """An adapter on a model, with the strength (lambda of eq. 10) it is applied with."""

    adapter: BokehAdapter
    strength: float


class BokehPatch:
    """Adapters and grounding of one MODEL. Immutable in what it does; a changed one replaces it on a clone.

    Args:
        model: the layers it was made for.
        adapters: laid on in this order; their terms add up.
        grounded_above: noise level above which rows are grounded; None: never.
        node_id: the node to speak through.

    Attributes:
        obeys_k: whether K changes anything, and not only the weights of queries and keys.
    """

    def __init__(
        self,
        model: HostModel,
        adapters: Sequence[AppliedAdapter] = (),
        grounded_above: float | None = None,
        node_id: str | None = None,
    ) -> None:
        self.model = model
        self.adapters = tuple(adapters)
        self.grounded_above = grounded_above
        self.node_id = node_id
        self.obeys_k = any(applied.strength and applied.adapter.cross_layers for applied in self.adapters)
        named = {path for applied in self.adapters for path in applied.adapter.widths}
        self._blocks = frozenset(named) if named else None
        self._unsaid = [_NO_K]
        self._terms: OrderedDict[Any, Terms] = OrderedDict()

    def __deepcopy__(self, memo: Any) -> BokehPatch:
        # Hosts deep-copy the options of a cloned model; the adapter's tensors are shared, never doubled.
        return self

    def with_adapter(self, applied: AppliedAdapter, node_id: str | None) -> BokehPatch:
        return BokehPatch(self.model, (*self.adapters, applied), self.grounded_above, node_id)

    def with_grounding(self, above: float | None, node_id: str | None) -> BokehPatch:
        return BokehPatch(self.model, self.adapters, above, node_id)

    def begin_run(self, *args: Any, **kwargs: Any) -> None:
        """Host callback before each sampling run."""
        self._unsaid[:] = [_NO_K]

    def __call__(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        """The APPLY_MODEL wrapper: ``(x, sigma, c_concat, c_crossattn, control, transformer_options, **conds)``."""
        told = kwargs.pop(TOLD_KEY, None)
        pivots = kwargs.pop(PIVOT_KEY, None)
        subject, in_subject = kwargs.pop(SUBJECT_KEY, None), kwargs.pop(SUBJECT_TOLD_KEY, None)
        x, sigma = args[0], args[1]
        in_keywords = "transformer_options" in kwargs
        call = self.prepare(x, sigma, told, pivots)
        if call is None:
            return executor(*args, **kwargs)
        if call.terms and subject is not None:
            text = kwargs["c_crossattn"] if "c_crossattn" in kwargs else args[3]
            before = self.model.architecture.text_places(text)
            check_rows(subject.shape[0], x.shape[0], "masks of the subject")
            call = replace(call, region=Region(self._project(in_subject, x), subject.to(x.device), before))
        given = kwargs["transformer_options"] if in_keywords else args[5]
        network = executor.class_obj.diffusion_model
        with self.model.architecture.attach(given, call, self.model, network, x) as options:
            if in_keywords:
                kwargs["transformer_options"] = options
            else:
                args = (*args[:5], options, *args[6:])
            return executor(*args, **kwargs)

    def prepare(
        self, x: Tensor, sigma: Tensor, told: Tensor | None, pivots: Tensor | None
    ) -> ModelCall | None:
        """Plan one model call; None where it is to run untouched.

        Args:
            x: latent batch ``[R, ...]``.
            sigma: noise level, ``[R]``.
            told: what the adapter is told per row, packed ``[R, fields + 1]``, or None.
            pivots: per row its own number and its pivot's ``[R, 2]`` (:class:`.conditioning.PivotCondition`), or None.

        Raises:
            BokehError: another extension has changed the rows in a way that cannot be followed.
        """
        grounding = None
        if self.grounded_above is not None and float(sigma.flatten()[0]) > self.grounded_above:
            if pivots is None:
                raise BokehError(
                    "Another extension calls the model without what the sampler gave it (which row is the pivot), so "
                    "nothing can be grounded. It calls the model by itself and leaves out the conditions it does not "
                    "know; remove it, or set grounding_steps to 0."
                )
            check_rows(pivots.shape[0], x.shape[0], "pivots")
            grounding = ground_rows(pivots.tolist())
            grounding = grounding if grounding.groups else None
        terms: Terms = {}
        if self.obeys_k:
            if told is None:
                self._warn_once()
            else:
                check_rows(told.shape[0], x.shape[0], "K")
                terms = self._project(told, x)
        if not terms and grounding is None:
            return None
        return ModelCall(terms, grounding, blocks=self._blocks)

    def _warn_once(self) -> None:
        # Taken out in one step: clones of a MODEL share this object and may run in several threads.
        with suppress(IndexError):
            say(self._unsaid.pop(), self.node_id)

    def _project(self, told: Tensor, x: Tensor) -> Terms:
        training = torch.is_grad_enabled() and any(
            p.requires_grad for applied in self.adapters for p in applied.adapter.parameters()
        )
        if training:
            return self._fresh_terms(told, x.device)
        # A trainer changes weights between two evaluations.
        key = (str(told.tolist()), x.device, *(_state(applied.adapter) for applied in self.adapters))
        terms = self._terms.get(key)
        if terms is None:
            with torch.no_grad():
                terms = self._fresh_terms(told, x.device)
            self._terms[key] = terms
            while len(self._terms) > 8:
                self._terms.popitem(last=False)
        return terms

    def _fresh_terms(self, told: Tensor, device: torch.device) -> Terms:
        terms: Terms = {}
        conditions = Conditions.unpack(told)
        for applied in self.adapters:
            strength = applied.strength * applied.adapter.config.bokeh_scale
            if strength == 0:
                continue  # only its query/key adapters are on
            for path, (keys, values) in applied.adapter.project(conditions).items():
                # Scaling the values scales the term: it is linear in them.
                terms.setdefault(path, []).append((keys.to(device), (strength * values).to(device)))
        return terms


def _state(adapter: BokehAdapter) -> tuple[tuple[int, int], ...]:
    """Changes whenever a weight is changed or replaced."""
    return tuple((p.data_ptr(), 0 if p.is_inference() else p._version) for p in adapter.parameters())


def check_rows(given: int, rows: int, what: str) -> None:
    """Raise unless a model call has the rows that the sampler gave a condition for.

    Raises:
        BokehError: it has others.
    """
    if given != rows:
        raise BokehError(
            f"The model is called with {rows} rows, but the sampler gave {given} {what}. Another extension splits or "
            "repeats the batch before the model and leaves out the conditions it does not know; remove it."
        )


def ground_rows(pairs: Sequence[Sequence[float]]) -> Grounding:
    """Which rows of a model call are grounded on which, wherever its caller has put them.

    The host may run the branches of guidance together or apart, and other extensions repeat the batch or run a part of
    it. A row of the sampler may so occur several times; the n-th is grounded on the n-th of its pivot.

    Args:
        pairs: per row its own number and its pivot's, or -1.

    Raises:
        BokehError: a row without its pivot.
    """
    places: defaultdict[int, list[int]] = defaultdict(list)
    plan: list[int] = []
    for row, (own, _) in enumerate(pairs):
        places[int(own)].append(row)
    for row, (own, pivot) in enumerate(pairs):
        of = places[int(pivot)] if pivot >= 0 else [-1] * len(pairs)
        time = places[int(own)].index(row)
        if time >= len(of):
            raise BokehError(
                f"The model is called with {len(pairs)} rows, of which one is grounded on row {int(pivot)} of the "
                "latent batch, which is not among them. Another extension splits the batch before the model, but pivot "
                "and targets must run together; remove it, or set grounding_steps to 0."
            )
        plan.append(of[time])
    return Grounding.from_pivots(plan)


def patch_of(patcher: Any) -> BokehPatch | None:
    """The bokeh patch on a MODEL, if there is one."""
    wrappers = patcher.wrappers.get(WrappersMP.APPLY_MODEL, {}).get(KEY, [])
    return wrappers[0] if wrappers else None


def set_patch(patcher: Any, patch: BokehPatch) -> None:
    """Put ``patch`` on ``patcher``, in place of any it has. The caller has cloned ``patcher``."""
    patcher.remove_wrappers_with_key(WrappersMP.APPLY_MODEL, KEY)
    patcher.remove_callbacks_with_key(CallbacksMP.ON_PRE_RUN, KEY)
    patcher.add_wrapper_with_key(WrappersMP.APPLY_MODEL, KEY, patch)
    patcher.add_callback_with_key(CallbacksMP.ON_PRE_RUN, KEY, patch.begin_run)
