"""Reading the user's graph (the ``prompt`` of a run), to say early what would silently do nothing.

A prompt holds class names and links alone; what a link carries is told by the host's own classes. Both a false alarm
and silence are faults, so whatever cannot be known (switches of other extensions, pipes that hold several things) is
judged by all that lies around it: there is an alarm only where no adapter is in sight at all.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

ADAPTERS = ("LoadBokehAdapter", "LoadBokehDemoModel")
"""Nodes whose MODEL carries an adapter."""

MODEL, CONDITIONING = "MODEL", "CONDITIONING"
_MAY_BE_ANY = ("*", "COMFY_MATCHTYPE_V3", "")
# What can be seen to hold neither a model nor a prompt; a guider holds both for good.
_ENDS = {
    "INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", "IMAGE", "LATENT", "MASK", "VIDEO", "AUDIO", "CLIP",
    "VAE", "CLIP_VISION", "CLIP_VISION_OUTPUT", "STYLE_MODEL", "CONTROL_NET", "UPSCALE_MODEL", "GLIGEN",
    "SIGMAS", "NOISE", "SAMPLER", "GUIDER", "HOOKS",
}  # fmt: skip


class Link(NamedTuple):
    """One link of a prompt: from output ``output`` of ``source`` to the input ``name`` of ``reader``."""

    source: str
    output: int
    reader: str
    name: str


class Graph:
    """A prompt with the types of its links.

    Args:
        prompt: of the host's server: by node id ``class_type`` and ``inputs``.
        classes: by ``class_type`` the host's node classes, ``nodes.NODE_CLASS_MAPPINGS``.
    """

    def __init__(self, prompt: dict[str, Any], classes: dict[str, Any]) -> None:
        self.prompt, self.classes = prompt, classes
        self._carries: dict[str, bool | None] = {}
        self.into: dict[str, list[Link]] = {node: [] for node in prompt}
        self.out_of: dict[str, list[Link]] = {node: [] for node in prompt}
        for reader, node in prompt.items():
            for name, value in node.get("inputs", {}).items():
                if (
                    isinstance(value, list)
                    and len(value) == 2
                    and isinstance(value[1], int)
                    and str(value[0]) in prompt
                ):
                    link = Link(str(value[0]), value[1], reader, name)
                    self.into[reader].append(link)
                    self.out_of[link.source].append(link)

    def kind(self, node: str) -> str:
        return self.prompt[node].get("class_type", "")

    def outputs(self, node: str) -> tuple[str, ...] | None:
        """Types of a node's outputs; None where its class is not known."""
        found = getattr(self.classes.get(self.kind(node)), "RETURN_TYPES", None)
        return None if found is None else tuple(str(t) if isinstance(t, str) else "COMBO" for t in found)

    def type_of(self, link: Link) -> str:
        """What a link carries, by its source, else by its reader; ``*`` where neither says."""
        types = self.outputs(link.source) or ()
        told = types[link.output] if link.output < len(types) else "*"
        if told not in _MAY_BE_ANY:
            return told
        try:
            declared = self.classes[self.kind(link.reader)].INPUT_TYPES()
        except Exception:  # noqa: BLE001  of another extension, or not known
            return "*"
        for group in ("required", "optional"):
            entry = declared.get(group, {}).get(link.name)
            if entry and isinstance(entry[0], str) and entry[0] not in _MAY_BE_ANY:
                return entry[0]
        return "*"

    def reach(self, starts: Iterable[str], *, down: bool) -> set[str]:
        """``starts`` and every node before them, or after them (``down``)."""
        seen: set[str] = set()
        queue = list(starts)
        while queue:
            node = queue.pop()
            if node not in seen:
                seen.add(node)
                queue.extend(
                    link.reader if down else link.source
                    for link in (self.out_of if down else self.into)[node]
                )
        return seen

    def adapter_in_sight(self, node: str, *, down: bool) -> bool:
        """Whether an adapter is anywhere before a node, or before anything after it (``down``)."""
        around = self.reach([node], down=True) if down else [node]
        return any(self._is_adapter(other) for other in self.reach(around, down=False))

    def _is_adapter(self, node: str) -> bool:
        inputs = self.prompt[node].get("inputs", {})
        return self.kind(node) in ADAPTERS and inputs.get("with_adapter", True) is not False

    def carries_adapter(self, node: str) -> bool | None:
        """Whether the MODEL that comes out of a node has an adapter; None where that cannot be known."""
        passed = [node]
        while node not in self._carries:
            self._carries[node] = None  # in a circle nothing is known
            if self._is_adapter(node):
                self._carries[node] = True
                break
            ways = list(dict.fromkeys(link.source for link in self._ways_of_model(node)))
            if len(ways) != 1:
                found = {self.carries_adapter(source) for source in ways} or {False}
                self._carries[node] = found.pop() if len(found) == 1 else None
                break
            (node,) = ways
            passed.append(node)
        self._carries.update(dict.fromkeys(passed, self._carries[node]))
        return self._carries[node]

    def _ways_of_model(self, node: str) -> list[Link]:
        links = {link: self.type_of(link) for link in self.into[node]}
        ways = [link for link, kind in links.items() if kind == MODEL or kind in _MAY_BE_ANY]
        if not ways:  # a loader, or something taken out of a pipe
            ways = [link for link, kind in links.items() if kind not in _ENDS and kind != CONDITIONING]
        if self.kind(node).startswith("ModelMerge"):
            # The host's merge the second model's weights into the first, which alone keeps what is laid on it.
            ways = [link for link in ways if link.name == "model1"] or ways
        return ways

    def readers_of_conditioning(self, start: str) -> Iterator[tuple[str, bool]]:
        """Every node that a prompt from ``start`` reaches along CONDITIONING, and whether it surely does."""
        best: dict[str, bool] = {}
        queue = [(link, True) for link in self.out_of[start]]
        while queue:
            link, sure = queue.pop()
            node = link.reader
            if best.get(node) in (True, sure):
                continue
            best[node] = sure
            types = self.outputs(node)
            reroute = len(self.into[node]) == 1
            # Of what may be anything and is one of several, another one may be taken.
            sure = sure and (reroute or not (types is None or set(types) & set(_MAY_BE_ANY)))
            for further in self.out_of[node]:
                kind = self.type_of(further)
                if kind == CONDITIONING or (kind in _MAY_BE_ANY and reroute):
                    queue.append((further, sure))
                elif kind not in _ENDS and kind != MODEL:
                    queue.append((further, False))
        yield from best.items()


def samplers_without_adapter(prompt: dict[str, Any] | None, node_id: str | None) -> list[str]:
    """Ids of the samplers (or guiders) that get this node's prompts and a model without adapter.

    Empty where the graph is not known (the node runs inside a script or an expanded sub-graph).

    Args:
        prompt: the graph.
        node_id: of the node whose outputs are CONDITIONING.
    """
    if not prompt or node_id is None or str(node_id) not in prompt:
        return []
    graph = Graph(prompt, getattr(importlib.import_module("nodes"), "NODE_CLASS_MAPPINGS", {}))  # the host's
    found = []
    for node, sure in graph.readers_of_conditioning(str(node_id)):
        models = [link.source for link in graph.into[node] if graph.type_of(link) == MODEL]
        if not models:
            continue
        outputs = graph.outputs(node)
        hands_on = outputs is None or not set(outputs) <= _ENDS
        if sure and not hands_on:
            bare = {graph.carries_adapter(source) for source in models} == {False}
        else:  # it may not get this prompt, or the adapter may come after it
            bare = not graph.adapter_in_sight(node, down=hands_on)
        if bare:
            found.append(node)
    return sorted(found)
