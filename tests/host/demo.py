"""The main jobs, in a real ComfyUI server: a photograph blurred by its depth, a generated sweep, a photograph edited.

    python run.py demo

ends by naming the pictures it wrote into ``output``.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .server import ComfyServer, PromptError, ServerError
from .setup import ROOT, SetupError, say
from .workflow import to_api

WORKFLOWS = [
    ROOT / "workflows" / f"{name}.json"
    for name in ("photo_rerendered_from_depth", "generated_sweep_demo", "photo_edit_demo")
]
ASSETS = ROOT / "workflows" / "assets"
OUTPUT = ROOT / "output"


def main() -> int:
    start = time.monotonic()
    say("Starting the ComfyUI server")
    try:
        with ComfyServer() as server:
            say(f"The server is up after {time.monotonic() - start:.0f} s: {server.url}")
            written = run(server, OUTPUT)
    except ServerError as error:
        say(f"\n{error}")
    except (PromptError, SetupError, ValueError, OSError) as error:
        say(f"\nThe workflows could not be run. {error}")
    else:
        say("\nWritten:")
        for path, what in written.items():
            say(f"  {path}   {what}")
        return 0
    return 1


def run(server: ComfyServer, output: Path, workflows: Sequence[Path] = WORKFLOWS) -> dict[Path, str]:
    """Run the workflows on a running server; the pictures they wrote, each with its node's title."""
    for path in sorted(ASSETS.iterdir()):
        if path.suffix in {".jpg", ".png"}:
            say(f"Uploading {server.upload_image(path)}")
    output.mkdir(exist_ok=True)
    written = {}
    for workflow in workflows:
        prompt = to_api(json.loads(workflow.read_text(encoding="utf-8")), server.object_info())
        say(f"Running {workflow.name}")
        done = server.wait(server.queue(prompt), timeout=3600, on_event=_Progress(prompt))
        say(f"Done in {done.seconds:.1f} s")
        for node in sorted(done.outputs):
            for image in done.images(node):
                if image["type"] == "output":  # not a preview
                    path = output / re.sub(r"_\d+_(?=\.\w+$)", "", image["filename"])
                    path.write_bytes(server.view(**image))
                    written[path] = prompt[node]["_meta"]["title"]
    return written


class _Progress:
    """Says which node runs, and how far it is, a line for every tenth."""

    def __init__(self, prompt: dict[str, Any]) -> None:
        self.prompt = prompt
        self.tenth = 0

    def __call__(self, kind: str, data: dict[str, Any]) -> None:
        if kind == "executing" and data.get("node"):
            self.tenth = 0
            say(f"  {self.prompt[data['node']]['_meta']['title']}")
        elif kind == "progress" and (tenth := 10 * data["value"] // data["max"]) > self.tenth:
            self.tenth = tenth
            say(f"    {10 * tenth} %")
        elif kind == "text":
            say(f"    {data['text']}")


if __name__ == "__main__":
    sys.exit(main())
