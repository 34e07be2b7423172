"""Reading the user's graph (the ``prompt`` of a run), to say early what would silently do nothing."""

from __future__ import annotations

from typing import Any


def _links(node: dict[str, Any]) -> set[str]:
    return {
        str(value[0])
        for value in node.get("inputs", {}).values()
        if isinstance(value, list) and len(value) == 2 and not isinstance(value[0], (list, dict))
    }


def _upstream(prompt: dict[str, Any], start: str) -> set[str]:
    seen: set[str] = set()
    queue = [start]
    while queue:
        node = queue.pop()
        if node in seen or node not in prompt:
            continue
        seen.add(node)
        queue.extend(_links(prompt[node]))
    return seen


def has_upstream_of_consumers(prompt: dict[str, Any] | None, node_id: str | None, *class_types: str) -> bool:
    """Whether any node that (indirectly) consumes ``node_id`` also has a node of one of ``class_types`` before it.

    True where the graph is not known (the node runs inside a script or an expanded sub-graph): no false alarm.
    """
    if not prompt or node_id is None or str(node_id) not in prompt:
        return True
    consumers = {n for n in prompt if str(node_id) in _upstream(prompt, n)} - {str(node_id)}
    if not consumers:
        return True
    return any(
        prompt[before].get("class_type") in class_types
        for node in consumers
        for before in _upstream(prompt, node)
    )
