"""Telling the user something that is not an error: in the log, and on the node itself where the host can."""

from __future__ import annotations

import logging

log = logging.getLogger("bokeh")


def say(text: str, node_id: str | None = None) -> None:
    """Warn the user: always in the log; as text on the node too when ``node_id`` is known and a server runs.

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
    if instance is not None and hasattr(instance, "send_progress_text"):
        instance.send_progress_text(text, node_id)
