"""Saying what becomes of an adapter where its model is saved or merged.

An adapter is two things: changes of query and key weights, which the host computes into whatever it saves or merges,
and terms in attention, which belong to the MODEL alone. So either takes one half along and leaves the other.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

from comfy.patcher_extension import CallbacksMP

from ..differences import tell_of_saving
from ..notices import say

KEY = "bokeh keeping"


@dataclass(frozen=True)
class Watch:
    """The host's callback after a model with an adapter was loaded.

    Attributes:
        kind: the class of the adapter's weight patches.
        node_id: the node to speak through.
    """

    kind: type
    node_id: str | None

    def __deepcopy__(self, memo: Any) -> Watch:
        # Hosts copy what is on a model; it has no state.
        return self

    def __call__(
        self,
        patcher: Any,
        _device: Any = None,
        _memory: Any = 0,
        written_out: bool = False,
        *_: Any,
        **__: Any,
    ) -> None:
        # Earlier hosts ask for all patches in place where weights are about to be written (LoRAs extracted, too).
        if written_out:
            self.saved(patcher)
        changes = self._changes(patcher)
        if any(_is_merge(entry) for entries in changes for entry in entries[self._place(entries) + 1 :]):
            say(
                "another model was merged into one with a bokeh adapter. The adapter's changes of queries and keys are "
                "mixed with that model's, while K acts in full. Merge first, then LoadBokehAdapter.",
                self.node_id,
            )

    def saved(self, patcher: Any) -> None:
        """Speak up as ``patcher`` is written to a file."""
        goes_along = (
            "Half of the adapter goes into the file: its changes of queries and keys, but not what obeys K. Save the "
            "model that goes into LoadBokehAdapter instead; the adapter is a file of its own."
            if self._changes(patcher)
            else "The adapter does not go into the file; it is one of its own, for LoadBokehAdapter."
        )
        say(f"a model with a bokeh adapter is being saved. {goes_along}", self.node_id)

    def cloned(self, _patcher: Any, clone: Any) -> None:
        """The host's callback after a clone was made: what is on the MODEL alone goes on it too."""
        tell_of_saving(clone, self.saved)

    def _changes(self, patcher: Any) -> list[list[Any]]:
        return [entries for entries in patcher.patches.values() if self._place(entries) >= 0]

    def _place(self, entries: list[Any]) -> int:
        """Place of the last of our patches of a parameter, -1 for none."""
        return max(
            (place for place, entry in enumerate(entries) if isinstance(entry[1], self.kind)), default=-1
        )


def _is_merge(entry: Any) -> bool:
    """Whether a patch scales what is there, or adds the weights of another model with that one's patches."""
    strength, value, strength_model, *_ = entry
    return strength_model != 1 or (isinstance(value, list) and strength != 0)


def watch(patcher: Any, kind: type, node_id: str | None) -> None:
    """Have ``patcher``, a clone with an adapter on it, speak up where it is saved or merged into."""
    watch = Watch(kind, node_id)
    for what, callback in ((CallbacksMP.ON_LOAD, watch), (CallbacksMP.ON_CLONE, watch.cloned)):
        patcher.remove_callbacks_with_key(what, KEY)
        patcher.add_callback_with_key(what, KEY, callback)
    tell_of_saving(patcher, watch.saved)


def say_where_merged(node_id: str | None) -> None:
    """Speak up if the weight patch that calls this belongs to a model that is merged into another one.

    That other model carries nothing else of the adapter. The host computes the weights of a model that is merged in
    inside its own computation of the weights, one function in itself; nothing else tells.
    """
    inner = sys._getframe(2)
    outer = inner.f_back
    if outer is not None and outer.f_code is inner.f_code:
        say(
            "a model with a bokeh adapter was merged into another one. Of the adapter only the changes of queries and "
            "keys are in the result, mixed, and its K does nothing. Merge first, then LoadBokehAdapter.",
            node_id,
        )
