"""Telling the user something that is not an error: in the log, and on the node itself where the host can."""

from __future__ import annotations

import logging

log = logging.getLogger("bokeh")


_told: dict[str, tuple[object, list[str]]] = {}
"""By node, the run of the graph that it spoke in last, and what it said there."""


def say(text: str, node_id: str | None = None) -> None:
    """Warn the user: always in the log; as text on the node too when ``node_id`` is known and a server runs.

    The host shows one text on a node, so everything the node said in this run is in it.

    Args:
        text: one or two plain sentences that say what was found and what to do.
        node_id: the node's unique id (``cls.hidden.unique_id``), or None.
    """
    log.warning("Bokeh: %s", text)
    if not node_id:
        return
    try:
        from server import PromptServer  # type: ignore[import-not-found]
    except ImportError:
        return
    instance = getattr(PromptServer, "instance", None)
    if instance is None:
        return
    run = getattr(instance, "last_prompt_id", None)
    before, said = _told.get(node_id, (run, []))
    said = said if before == run else []
    if text not in said:
        said.append(text)
    _told[node_id] = run, said
    instance.send_progress_text("\n\n".join(said), node_id)
