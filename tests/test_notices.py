"""What a node has to say is shown on it, all of it."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pytest


def test_all_that_a_node_said_in_a_run_is_shown(pack: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[tuple[str, str]] = []
    instance = SimpleNamespace(
        last_prompt_id="first", send_progress_text=lambda text, node: shown.append((node, text))
    )
    server = ModuleType("server")
    server.PromptServer = SimpleNamespace(instance=instance)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "server", server)
    say = pack.bokeh_ops.host.notices.say
    for node, text in (("7", "K is 0."), ("9", "Resized."), ("7", "Clipped."), ("7", "K is 0.")):
        say(text, node)
    assert shown[-1] == ("7", "K is 0.\n\nClipped.")
    assert shown[1] == ("9", "Resized.")
    instance.last_prompt_id = "second"
    say("Clipped.", "7")
    assert shown[-1] == ("7", "Clipped.")
    before = len(shown)
    say("Only for the log.")
    assert len(shown) == before
